// Products of each expert's rows with its matrix, all experts in one launch; or of all rows with one matrix.
//
//   out[i] = activation(x[row(i)] · W[e]ᵀ + bias[e]) ⊙ times[i] + plus[i]     offsets[e] <= i < offsets[e + 1]
//   row(i) = assignment[i] / top_k, or i where assignment is null
//
// x: T [_, k]; W: T [n_experts, n, k]; bias: f32 [n_experts, n]; offsets: u32 [n_experts + 1] and assignment:
// u32 [_], from permute.cu; times, plus, out: T [_, n]. T is bf16 or f16, sums are f32.
// offsets null: one group of n_rows rows (n_experts is 1), else n_rows is not looked at. bias, assignment, times
// and plus may be null; times and plus may be out. k is a multiple of 8; rows of x and W begin at multiples of 16
// bytes, out at one of 4.
//
// A block computes tiles of 128 rows x 128 columns, one after another until none is left: how many there
// are follows from `offsets`, on the device. Its eight warps have 64 x 32 each. Steps of 64 along k come
// to shared memory by asynchronous copies, three of them under way.
//
// For every GPU from Ampere on. Launch: THREADS threads, SHARED_BYTES of shared memory, any number of blocks.
#include "mma.h"
#include "tiles.h"

constexpr unsigned ROWS = 128, COLS = 128, STEP = 64;
constexpr unsigned THREADS = 256;
constexpr unsigned STAGES = 3;
// Of 16 bytes, in a row of a tile.
constexpr unsigned CHUNKS = STEP / PER_CHUNK;
// Of a warp: 4 x 4 products of 16 x 8.
constexpr unsigned WARP_ROWS = 64, WARP_COLS = 32;
constexpr unsigned M_TILES = WARP_ROWS / 16, N_TILES = WARP_COLS / 8;

constexpr unsigned SHARED_BYTES = STAGES * (ROWS + COLS) * STEP * 2;
static_assert(SHARED_BYTES == 98304, "what gpu and emulation are launched with");

// Each thread copies the same 16 bytes of every LINES-th row.
constexpr unsigned LINES = THREADS / CHUNKS;

// What this thread copies of a tile's operands: rows of x and of the expert's matrix, NONE for those that are
// not there.
constexpr unsigned NONE = 0xffffffffu;
struct Lines {
    unsigned rows[ROWS / LINES], cols[COLS / LINES];
};

template <class T>
__device__ Lines lines_of(const Operands<T>& op, const Tile& tile) {
    Lines lines;
    const unsigned line = threadIdx.x / CHUNKS;
#pragma unroll
    for (unsigned i = 0; i < ROWS / LINES; ++i) {
        const unsigned row = tile.first_row + line + i * LINES;
        lines.rows[i] = NONE;
        if (row < tile.end_row) lines.rows[i] = source_row(op.assignment, op.top_k, row);
    }
#pragma unroll
    for (unsigned i = 0; i < COLS / LINES; ++i) {
        const unsigned col = tile.first_col + line + i * LINES;
        lines.cols[i] = col < op.n ? col : NONE;
    }
    return lines;
}

// Starts to copy the operands of one step.
template <class T>
__device__ void copy_step(const Operands<T>& op, unsigned expert, const Lines& lines, unsigned step, T* rows,
                          T* cols) {
    const T* weight = op.weight + static_cast<size_t>(expert) * op.n * op.k;
    const unsigned line = threadIdx.x / CHUNKS, in_line = threadIdx.x % CHUNKS * PER_CHUNK;
    const unsigned k = step * STEP + in_line;
    const auto copy = [&](const T* from, unsigned row, T* to) {
        const bool is_there = row != NONE && k < op.k;
        copy_async(to, from + (is_there ? static_cast<size_t>(row) * op.k + k : 0), is_there);
    };
#pragma unroll
    for (unsigned i = 0; i < ROWS / LINES; ++i) {
        copy(op.x, lines.rows[i], element<STEP>(rows, line + i * LINES, in_line));
    }
#pragma unroll
    for (unsigned i = 0; i < COLS / LINES; ++i) {
        copy(weight, lines.cols[i], element<STEP>(cols, line + i * LINES, in_line));
    }
}

// Adds the products of one step to a warp's sums.
template <class T>
__device__ void multiply_step(const T* rows, const T* cols, unsigned warp_row, unsigned warp_col,
                              float (&sums)[M_TILES][N_TILES][4]) {
    const unsigned lane = lane_idx();
#pragma unroll
    for (unsigned k = 0; k < STEP; k += 16) {
        unsigned a[M_TILES][4], b[N_TILES][2];
#pragma unroll
        for (unsigned m = 0; m < M_TILES; ++m) {
            // Matrices 0 and 1 are the upper and the lower eight rows, 2 and 3 the same eight columns on.
            load_matrices(a[m], element<STEP>(rows, warp_row + 16 * m + lane % 16, k + lane / 16 * 8));
        }
#pragma unroll
        for (unsigned n = 0; n < N_TILES; n += 2) {
            // Two tiles of eight columns, the lower and the upper half of k each.
            unsigned both[4];
            const unsigned col = warp_col + 8 * n + lane / 16 * 8 + lane % 8;
            load_matrices(both, element<STEP>(cols, col, k + lane / 8 % 2 * 8));
            b[n][0] = both[0], b[n][1] = both[1];
            b[n + 1][0] = both[2], b[n + 1][1] = both[3];
        }
#pragma unroll
        for (unsigned m = 0; m < M_TILES; ++m) {
#pragma unroll
            for (unsigned n = 0; n < N_TILES; ++n) mma<T>(sums[m][n], a[m], b[n]);
        }
    }
}

template <class T>
__device__ void store_tile(const float (&sums)[M_TILES][N_TILES][4], const Tile& tile,
                           unsigned warp_row, unsigned warp_col, const Finish<T>& finish, T* out) {
    const unsigned g = lane_idx() / 4, t = lane_idx() % 4, n = finish.n;
#pragma unroll
    for (unsigned i = 0; i < M_TILES * 2; ++i) {
        const unsigned row = tile.first_row + warp_row + 8 * i + g;
        if (row >= tile.end_row) continue;
        T* to = out + static_cast<size_t>(row) * n;
#pragma unroll
        for (unsigned j = 0; j < N_TILES; ++j) {
            const unsigned col = tile.first_col + warp_col + 8 * j + 2 * t;
            if (col >= n) continue;
            const float low = finish(sums[i / 2][j][i % 2 * 2], tile.expert, row, col);
            if (col + 1 == n) {
                to[col] = from_float<T>(low);
                continue;
            }
            const float high = finish(sums[i / 2][j][i % 2 * 2 + 1], tile.expert, row, col + 1);
            if (n % 2 == 0) {
                *reinterpret_cast<unsigned*>(to + col) = pair_of<T>(low, high);
            } else {
                to[col] = from_float<T>(low);
                to[col + 1] = from_float<T>(high);
            }
        }
    }
}

template <class T>
__device__ void grouped_gemm_of(const Operands<T>& op, const Groups& groups, const Finish<T>& finish,
                                T* out) {
    DYNAMIC_SHARED(float4, shared);
    T* rows = reinterpret_cast<T*>(shared);
    T* cols = rows + STAGES * ROWS * STEP;
    const unsigned warp_row = warp_idx() / 4 * WARP_ROWS, warp_col = warp_idx() % 4 * WARP_COLS;
    const unsigned n_steps = (op.k + STEP - 1) / STEP;
    TileFinder<ROWS, COLS> finder;
    Tile tile;
    for (unsigned idx = blockIdx.x; finder.find(idx, groups, op.n, tile); idx += gridDim.x) {
        const Lines lines = lines_of(op, tile);
        const auto start = [&](unsigned step) {
            T* to_rows = rows + step % STAGES * ROWS * STEP;
            T* to_cols = cols + step % STAGES * COLS * STEP;
            if (step < n_steps) copy_step(op, tile.expert, lines, step, to_rows, to_cols);
            // Ended even if it is empty, so that the number of groups tells which is done.
            end_group();
        };
        float sums[M_TILES][N_TILES][4] = {};
        for (unsigned step = 0; step + 1 < STAGES; ++step) start(step);
        for (unsigned step = 0; step < n_steps; ++step) {
            wait_for_groups<STAGES - 2>();
            // All threads' copies are there, and nobody reads the stage that is filled next any more.
            __syncthreads();
            start(step + STAGES - 1);
            const unsigned stage = step % STAGES;
            multiply_step(rows + stage * ROWS * STEP, cols + stage * COLS * STEP, warp_row, warp_col, sums);
        }
        // Before the next tile's copies overwrite what others still read.
        wait_for_groups<0>();
        __syncthreads();
        store_tile(sums, tile, warp_row, warp_col, finish, out);
    }
}

#define DEFINE(T)                                                                                           \
    extern "C" __global__ void __launch_bounds__(THREADS) grouped_gemm_##T(GROUPED_GEMM_PARAMETERS(T)) { \
        const Operands<T> op{x, weight, assignment, top_k, n, k};                                           \
        const Groups groups{offsets, n_rows, n_experts};                                                    \
        grouped_gemm_of<T>(op, groups, Finish<T>{bias, activation, times, plus, n}, out);                   \
    }
DEFINE(bf16)
DEFINE(f16)
#undef DEFINE

KERNEL(grouped_gemm_bf16)
KERNEL(grouped_gemm_f16)
