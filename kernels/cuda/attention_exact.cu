// The attention of attention.cu with plain multiply-adds in f32, for any head_dim: for models in f32, for exact
// checks and for odd heads.
//
//   s[i, j] = scale · q[i] · k[j] + bias[head, j - i]       i, j rows of one sequence
//   out[i] = Σ_j softmax(s[i, ..])[j] · v[j]
//
// qkv: T [n_tokens, 3, n_heads, head_dim]; out: T [n_tokens, n_heads, head_dim]; start: u32 [n_seqs + 1]; tiles:
// u32 [n_tiles, 2], a sequence and the first of its ROWS queries (at or beyond its length, or 0xffffffff whatever
// the sequence: nothing to do); bias: f32 [n_heads, 2 · max_distance + 1], distances beyond which are taken for
// the largest, or null. T is f32, bf16 or f16.
//
// A block a tile (blockIdx.x) and a head (blockIdx.y). Keys pass by, KEYS at a time; a query's largest score, its
// sum and its result are kept by the sixteen lanes that have the query's products (exact.h), the result in shared
// memory. Nothing is rounded to T before the end.
//
// Launch: THREADS threads, 16384 · ceil(head_dim / 64) bytes of shared memory; 35072 bytes more are static.
#include "exact.h"

constexpr unsigned ROWS = 64, KEYS = 64, THREADS = 256;
// Columns of the result that are multiplied at a time.
constexpr unsigned COLS = 64;
// The first query of a tile that is none.
constexpr unsigned NONE = 0xffffffffu;

// Products of a thread: rows threadIdx.x / 16 + 16 i, columns threadIdx.x % 16 + 16 j.
constexpr unsigned PER_ROW = ROWS / 16, PER_COL = COLS / 16;
// Over the sixteen lanes that have a row.
__device__ inline float row_max(float x) {
    for (unsigned step = 8; step > 0; step /= 2) x = fmaxf(x, __shfl_xor_sync(ALL_LANES, x, step));
    return x;
}
__device__ inline float row_sum(float x) {
    for (unsigned step = 8; step > 0; step /= 2) x += __shfl_xor_sync(ALL_LANES, x, step);
    return x;
}

// A head of a sequence, which has fewer than 2^32 numbers.
template <class T>
struct Head {
    const T* q;
    const T* k;
    const T* v;
    unsigned stride, len, dim;
    float scale;
    const float* bias;  // Of the head, its middle being distance 0; or null.
    int max_distance;

    __device__ float score(float dot, unsigned query, unsigned key) const {
        if (key >= len) return -INFINITY;
        const int distance = static_cast<int>(key) - static_cast<int>(query);
        const float s = dot * scale;
        return bias == nullptr ? s : s + bias[max(-max_distance, min(max_distance, distance))];
    }
};

// What a thread keeps of its rows.
struct Queries {
    float largest[PER_ROW], sum[PER_ROW];
    // By which what was summed up before the last block of keys is to be multiplied.
    float factor[PER_ROW];
};

struct Shared {
    ExactTiles<ROWS, KEYS> tiles;
    float p[ROWS][KEYS + 1];
};

// This thread's sum of row y + 16 i and column COLS · part + x + 16 j.
__device__ inline float& result_at(float* results, unsigned part, unsigned i, unsigned j) {
    return results[((part * PER_ROW + i) * PER_COL + j) * THREADS + threadIdx.x];
}

// Scores of a block of keys become powers relative to the largest so far, in shared memory.
template <class T>
__device__ void score_keys(const Head<T>& head, unsigned first, unsigned first_key, Shared& shared,
                           Queries& queries) {
    const auto row = [&](unsigned line, unsigned i) {
        const unsigned at = first + line;
        return at < head.len ? to_float(head.q[at * head.stride + i]) : 0.0f;
    };
    const auto col = [&](unsigned line, unsigned i) {
        const unsigned at = first_key + line;
        return at < head.len ? to_float(head.k[at * head.stride + i]) : 0.0f;
    };
    float s[PER_ROW][KEYS / 16] = {};
    multiply_exact(shared.tiles, head.dim, row, col, s);
    const unsigned y = threadIdx.x / 16, x = threadIdx.x % 16;
#pragma unroll
    for (unsigned i = 0; i < PER_ROW; ++i) {
        const unsigned line = y + 16 * i;
        float largest = queries.largest[i], sum = 0.0f;
#pragma unroll
        for (unsigned j = 0; j < KEYS / 16; ++j) {
            s[i][j] = head.score(s[i][j], first + line, first_key + x + 16 * j);
            largest = fmaxf(largest, s[i][j]);
        }
        // Every block has a key, so that the largest is a number.
        largest = row_max(largest);
        queries.factor[i] = expf(queries.largest[i] - largest);
        queries.largest[i] = largest;
#pragma unroll
        for (unsigned j = 0; j < KEYS / 16; ++j) {
            const float p = expf(s[i][j] - largest);
            shared.p[line][x + 16 * j] = p;
            sum += p;
        }
        // Lanes add up their own; the row's lanes are added in the end.
        queries.sum[i] = queries.sum[i] * queries.factor[i] + sum;
    }
}

template <class T>
__device__ void add_values(const Head<T>& head, unsigned first_key, Shared& shared, const Queries& queries,
                           float* results) {
    const unsigned n_keys = min(KEYS, head.len - first_key);
    for (unsigned part = 0; part * COLS < head.dim; ++part) {
        const auto row = [&](unsigned line, unsigned key) { return shared.p[line][key]; };
        const auto col = [&](unsigned line, unsigned key) {
            const unsigned i = part * COLS + line;
            const unsigned at = first_key + key;
            return i < head.dim ? to_float(head.v[at * head.stride + i]) : 0.0f;
        };
        float sums[PER_ROW][PER_COL] = {};
        multiply_exact(shared.tiles, n_keys, row, col, sums);
#pragma unroll
        for (unsigned i = 0; i < PER_ROW * PER_COL; ++i) {
            const unsigned row = i / PER_COL, col = i % PER_COL;
            float& result = result_at(results, part, row, col);
            const float before = first_key == 0 ? 0.0f : result * queries.factor[row];
            result = before + sums[row][col];
        }
    }
}

template <class T>
__device__ void store(const Head<T>& head, unsigned first, const Queries& queries, float* results,
                      unsigned stride, T* out) {
#pragma unroll
    for (unsigned i = 0; i < PER_ROW; ++i) {
        const float sum = row_sum(queries.sum[i]);
        const size_t row = first + threadIdx.x / 16 + 16 * i;
        if (row >= head.len) continue;
        for (unsigned col = threadIdx.x % 16; col < head.dim; col += 16) {
            const float result = result_at(results, col / COLS, i, col % COLS / 16);
            out[row * stride + col] = from_float<T>(result / sum);
        }
    }
}

template <class T>
__device__ void attention_of(const T* qkv, const unsigned* start, const unsigned* tiles, unsigned n_heads,
                             unsigned dim, float scale, const float* bias, unsigned max_distance, T* out) {
    __shared__ Shared shared;
    DYNAMIC_SHARED(float, results);
    const unsigned seq = tiles[2 * blockIdx.x], first = tiles[2 * blockIdx.x + 1], head_idx = blockIdx.y;
    if (first == NONE) return;
    const unsigned len = start[seq + 1] - start[seq], width = n_heads * dim;
    if (first >= len) return;
    const T* q = qkv + static_cast<size_t>(start[seq]) * 3 * width + head_idx * dim;
    const float* of_head = nullptr;
    if (bias != nullptr) of_head = bias + static_cast<size_t>(head_idx) * (2 * max_distance + 1) + max_distance;
    const int farthest = static_cast<int>(max_distance);
    const Head<T> head{q, q + width, q + 2 * width, 3 * width, len, dim, scale, of_head, farthest};
    Queries queries;
#pragma unroll
    for (unsigned i = 0; i < PER_ROW; ++i) queries.largest[i] = -INFINITY, queries.sum[i] = 0.0f;
    for (unsigned first_key = 0; first_key < len; first_key += KEYS) {
        score_keys(head, first, first_key, shared, queries);
        // Powers are read by others than wrote them.
        __syncthreads();
        // Begins and ends between barriers of products, so that nobody overwrites powers that others still read.
        add_values(head, first_key, shared, queries, results);
    }
    T* to = out + static_cast<size_t>(start[seq]) * width + head_idx * dim;
    store(head, first, queries, results, width, to);
}

// Told of THREADS, the compiler spills registers for the sake of more blocks at a time.
#define DEFINE(name, T)                                                                               \
    extern "C" __global__ void attention_exact_##name(                                                \
        const T* qkv, const unsigned* start, const unsigned* tiles, unsigned n_heads,                 \
        unsigned head_dim, float scale, const float* bias, unsigned max_distance, T* out) {           \
        attention_of<T>(qkv, start, tiles, n_heads, head_dim, scale, bias, max_distance, out);        \
    }
FOR_EACH_TYPE(DEFINE)
#undef DEFINE

KERNEL(attention_exact_f32)
KERNEL(attention_exact_bf16)
KERNEL(attention_exact_f16)
