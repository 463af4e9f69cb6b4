// Bidirectional attention within sequences that lie one behind the other, without padding.
//
//   s[i, j] = scale · q[i] · k[j] + bias[head, j - i]       i, j rows of one sequence
//   out[i] = Σ_j softmax(s[i, ..])[j] · v[j]
//
// qkv: T [n_tokens, 3, n_heads, D]; out: T [n_tokens, n_heads, D]; start: u32 [n_seqs + 1];
// tiles: u32 [n_tiles, 2], a sequence and the first of its ROWS queries, as the host has listed them (a first
// query at or beyond the sequence's length, or 0xffffffff whatever the sequence: nothing to do);
// bias: f32 [n_heads, 2 · max_distance + 1], distances beyond which are taken for the largest, or null (T5's
// buckets are such a table; rotary positions are part of q and k already). T is bf16 or f16, D 32, 64 or 128.
//
// A block a tile (blockIdx.x) and a head (blockIdx.y); each of its four warps has 16 queries and keeps their
// sums, largest scores and results in registers while keys and values pass by, 64 at a time, the next ones
// being copied meanwhile. Scores never leave the registers. The probabilities are rounded to T before they
// meet the values, their sum is not.
//
// For every GPU from Ampere on. Launch: THREADS threads, (ROWS + 4 · KEYS) · D · 2 bytes of shared memory.
#include "mma.h"

constexpr unsigned ROWS = 64, KEYS = 64, THREADS = 128;
// Tiles of eight keys.
constexpr unsigned KEY_TILES = KEYS / 8;
// The first query of a tile that is none.
constexpr unsigned NONE = 0xffffffffu;
constexpr float LOG2_E = 1.44269504f;

// Starts to copy rows `first`.. of one of the three parts of a sequence; zeroes beyond its end.
template <unsigned D, class T>
__device__ void copy_rows(const T* from, unsigned stride, unsigned first, unsigned len, unsigned n_rows,
                          T* to) {
    constexpr unsigned n_chunks = D / PER_CHUNK;
    for (unsigned i = threadIdx.x; i < n_rows * n_chunks; i += THREADS) {
        const unsigned row = i / n_chunks, col = i % n_chunks * PER_CHUNK;
        const bool is_there = first + row < len;
        const size_t at = is_there ? static_cast<size_t>(first + row) * stride + col : 0;
        copy_async(element<D>(to, row, col), from + at, is_there);
    }
}

// Over the four lanes that hold a row.
__device__ inline float row_max(float x) {
    x = fmaxf(x, __shfl_xor_sync(ALL_LANES, x, 1));
    return fmaxf(x, __shfl_xor_sync(ALL_LANES, x, 2));
}
__device__ inline float row_sum(float x) {
    x += __shfl_xor_sync(ALL_LANES, x, 1);
    return x + __shfl_xor_sync(ALL_LANES, x, 2);
}

// What a warp keeps of its 16 queries: rows g and g + 8 on each lane.
template <unsigned D>
struct Queries {
    unsigned q[D / 16][4];
    float out[D / 8][4] = {};
    float largest[2] = {-INFINITY, -INFINITY};
    float sum[2] = {};
};

// Scores of a block of keys, in powers of two.
template <unsigned D, class T>
__device__ void score(const Queries<D>& queries, const T* keys, float (&s)[KEY_TILES][4]) {
    const unsigned lane = lane_idx();
#pragma unroll
    for (unsigned n = 0; n < KEY_TILES; n += 2) {
#pragma unroll
        for (unsigned k = 0; k < D / 16; ++k) {
            unsigned both[4];
            const unsigned row = 8 * n + lane / 16 * 8 + lane % 8;
            load_matrices(both, element<D>(keys, row, 16 * k + lane / 8 % 2 * 8));
            mma<T>(s[n], queries.q[k], {both[0], both[1]});
            mma<T>(s[n + 1], queries.q[k], {both[2], both[3]});
        }
    }
}

// Makes probabilities of scores, relative to the largest so far, and takes account of a new largest.
template <unsigned D>
__device__ void soften(Queries<D>& queries, float (&s)[KEY_TILES][4]) {
#pragma unroll
    for (unsigned half = 0; half < 2; ++half) {
        float largest = queries.largest[half];
#pragma unroll
        for (unsigned n = 0; n < KEY_TILES; ++n) {
            largest = fmaxf(largest, fmaxf(s[n][2 * half], s[n][2 * half + 1]));
        }
        largest = row_max(largest);
        // Every block has a key, so that the largest is a number.
        const float factor = exp2f(queries.largest[half] - largest);
        queries.largest[half] = largest;
        float sum = 0.0f;
#pragma unroll
        for (unsigned n = 0; n < KEY_TILES; ++n) {
#pragma unroll
            for (unsigned i = 2 * half; i < 2 * half + 2; ++i) {
                s[n][i] = exp2f(s[n][i] - largest);
                sum += s[n][i];
            }
        }
        // Lanes add up their own; the row's lanes are added in the end.
        queries.sum[half] = queries.sum[half] * factor + sum;
#pragma unroll
        for (unsigned n = 0; n < D / 8; ++n) {
            queries.out[n][2 * half] *= factor;
            queries.out[n][2 * half + 1] *= factor;
        }
    }
}

template <unsigned D, class T>
__device__ void add_values(Queries<D>& queries, const float (&p)[KEY_TILES][4], const T* values) {
    const unsigned lane = lane_idx();
#pragma unroll
    for (unsigned k = 0; k < KEYS / 16; ++k) {
        // What a lane holds of scores is what it has to hold of a left operand.
        const unsigned a[4] = {
            pair_of<T>(p[2 * k][0], p[2 * k][1]), pair_of<T>(p[2 * k][2], p[2 * k][3]),
            pair_of<T>(p[2 * k + 1][0], p[2 * k + 1][1]), pair_of<T>(p[2 * k + 1][2], p[2 * k + 1][3])};
#pragma unroll
        for (unsigned n = 0; n < D / 8; n += 2) {
            unsigned both[4];
            load_transposed(both, element<D>(values, 16 * k + lane % 16, 8 * n + lane / 16 * 8));
            mma<T>(queries.out[n], a, {both[0], both[1]});
            mma<T>(queries.out[n + 1], a, {both[2], both[3]});
        }
    }
}

struct Scale {
    float scale;
    const float* bias;  // Of the head, its middle being distance 0; or null.
    int max_distance;
};

// s = scale · s + bias in powers of two; nothing is like what is not there.
__device__ inline void finish_scores(const Scale& scale, unsigned first_row, unsigned first_key,
                                     unsigned len, float (&s)[KEY_TILES][4]) {
    const unsigned g = lane_idx() / 4, t = lane_idx() % 4;
#pragma unroll
    for (unsigned n = 0; n < KEY_TILES; ++n) {
#pragma unroll
        for (unsigned i = 0; i < 4; ++i) {
            const unsigned row = first_row + g + i / 2 * 8, key = first_key + 8 * n + 2 * t + i % 2;
            float x = s[n][i] * scale.scale;
            if (scale.bias != nullptr) {
                const int distance = static_cast<int>(key) - static_cast<int>(row);
                x += scale.bias[max(-scale.max_distance, min(scale.max_distance, distance))];
            }
            s[n][i] = key < len ? x * LOG2_E : -INFINITY;
        }
    }
}

template <unsigned D, class T>
__device__ void attention_of(const T* qkv, const unsigned* start, const unsigned* tiles,
                             unsigned n_heads, float factor, const float* bias, unsigned max_distance,
                             T* out) {
    DYNAMIC_SHARED(float4, shared);
    T* of_queries = reinterpret_cast<T*>(shared);
    T* of_keys = of_queries + ROWS * D;
    T* of_values = of_keys + 2 * KEYS * D;
    const unsigned seq = tiles[2 * blockIdx.x], first = tiles[2 * blockIdx.x + 1], head = blockIdx.y;
    if (first == NONE) return;
    const unsigned len = start[seq + 1] - start[seq], stride = 3 * n_heads * D;
    if (first >= len) return;
    const T* q = qkv + static_cast<size_t>(start[seq]) * stride + head * D;
    const T* k = q + n_heads * D;
    const T* v = k + n_heads * D;
    const unsigned n_blocks = (len + KEYS - 1) / KEYS;
    const auto copy_block = [&](unsigned block) {
        if (block < n_blocks) {
            copy_rows<D>(k, stride, block * KEYS, len, KEYS, of_keys + block % 2 * KEYS * D);
            copy_rows<D>(v, stride, block * KEYS, len, KEYS, of_values + block % 2 * KEYS * D);
        }
        end_group();
    };
    copy_rows<D>(q, stride, first, len, ROWS, of_queries);
    copy_block(0);

    const unsigned lane = lane_idx(), first_row = first + warp_idx() * 16;
    const int farthest = static_cast<int>(max_distance);
    const float* of_head = bias == nullptr ? nullptr : bias + head * (2 * max_distance + 1) + max_distance;
    const Scale scale{factor, of_head, farthest};
    Queries<D> queries;
    for (unsigned block = 0; block < n_blocks; ++block) {
        copy_block(block + 1);
        wait_for_groups<1>();
        __syncthreads();
        if (block == 0) {
#pragma unroll
            for (unsigned i = 0; i < D / 16; ++i) {
                load_matrices(queries.q[i],
                              element<D>(of_queries, warp_idx() * 16 + lane % 16, 16 * i + lane / 16 * 8));
            }
        }
        float s[KEY_TILES][4] = {};
        score<D>(queries, of_keys + block % 2 * KEYS * D, s);
        finish_scores(scale, first_row, block * KEYS, len, s);
        soften<D>(queries, s);
        add_values<D>(queries, s, of_values + block % 2 * KEYS * D);
        // Before the next copies overwrite what others still read.
        __syncthreads();
    }
#pragma unroll
    for (unsigned half = 0; half < 2; ++half) {
        const float sum = row_sum(queries.sum[half]);
        const unsigned row = first_row + lane / 4 + half * 8;
        if (row >= len) continue;
        T* to = out + (static_cast<size_t>(start[seq] + row) * n_heads + head) * D;
#pragma unroll
        for (unsigned n = 0; n < D / 8; ++n) {
            const unsigned col = 8 * n + lane % 4 * 2;
            *reinterpret_cast<unsigned*>(to + col) =
                pair_of<T>(queries.out[n][2 * half] / sum, queries.out[n][2 * half + 1] / sum);
        }
    }
}

#define DEFINE(T, D)                                                                               \
    extern "C" __global__ void __launch_bounds__(THREADS) attention_##T##_##D(                     \
        const T* qkv, const unsigned* start, const unsigned* tiles, unsigned n_heads, float scale, \
        const float* bias, unsigned max_distance, T* out) {                                        \
        attention_of<D>(qkv, start, tiles, n_heads, scale, bias, max_distance, out);               \
    }
DEFINE(bf16, 32)
DEFINE(bf16, 64)
DEFINE(bf16, 128)
DEFINE(f16, 32)
DEFINE(f16, 64)
DEFINE(f16, 128)
#undef DEFINE

KERNEL(attention_bf16_32)
KERNEL(attention_bf16_64)
KERNEL(attention_bf16_128)
KERNEL(attention_f16_32)
KERNEL(attention_f16_64)
KERNEL(attention_f16_128)
