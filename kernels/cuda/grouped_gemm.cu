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
// to shared memory by asynchronous copies, three of them under way. `grouped_gemm_short` has tiles of 32 rows,
// for many experts with a few rows each: eight warps of 32 x 16, and four steps under way.
//
// For every GPU from Ampere on. Launch: THREADS threads, SHARED_BYTES of shared memory, any number of blocks.
#include "mma.h"
#include "tiles.h"

constexpr unsigned COLS = 128, STEP = 64;
constexpr unsigned WARPS = 8, THREADS = WARPS * WARP;
// Of 16 bytes, in a row of a tile.
constexpr unsigned CHUNKS = STEP / PER_CHUNK;
// Each thread copies the same 16 bytes of every LINES-th row.
constexpr unsigned LINES = THREADS / CHUNKS;

// How a tile is shared out: a warp has M_TILES x N_TILES products of 16 x 8.
template <unsigned ROWS_, unsigned WARP_ROWS_, unsigned STAGES_>
struct Shape {
    static constexpr unsigned ROWS = ROWS_, WARP_ROWS = WARP_ROWS_, STAGES = STAGES_;
    static constexpr unsigned WARPS_ABREAST = WARPS / (ROWS / WARP_ROWS), WARP_COLS = COLS / WARPS_ABREAST;
    static constexpr unsigned M_TILES = WARP_ROWS / 16, N_TILES = WARP_COLS / 8;
    static constexpr unsigned SHARED_BYTES = STAGES * (ROWS + COLS) * STEP * 2;
    using Sums = float[M_TILES][N_TILES][4];
};
using Tall = Shape<128, 64, 3>;
using Short = Shape<32, 32, 4>;
static_assert(Tall::SHARED_BYTES == 98304 && Short::SHARED_BYTES == 81920, "what gpu and emulation are launched with");

// What this thread copies of a tile's operands: rows of x and of the expert's matrix, NONE for those that are
// not there.
constexpr unsigned NONE = 0xffffffffu;
template <class S>
struct Lines {
    unsigned rows[S::ROWS / LINES], cols[COLS / LINES];
};

template <class S, class T>
__device__ Lines<S> lines_of(const Operands<T>& op, const Tile& tile) {
    Lines<S> lines;
    const unsigned line = threadIdx.x / CHUNKS;
#pragma unroll
    for (unsigned i = 0; i < S::ROWS / LINES; ++i) {
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
template <class S, class T>
__device__ void copy_step(const Operands<T>& op, unsigned expert, const Lines<S>& lines, unsigned step, T* rows,
                          T* cols) {
    const T* weight = op.weight + static_cast<size_t>(expert) * op.n * op.k;
    const unsigned line = threadIdx.x / CHUNKS, in_line = threadIdx.x % CHUNKS * PER_CHUNK;
    const unsigned k = step * STEP + in_line;
    const auto copy = [&](const T* from, unsigned row, T* to) {
        const bool is_there = row != NONE && k < op.k;
        copy_async(to, from + (is_there ? static_cast<size_t>(row) * op.k + k : 0), is_there);
    };
#pragma unroll
    for (unsigned i = 0; i < S::ROWS / LINES; ++i) {
        copy(op.x, lines.rows[i], element<STEP>(rows, line + i * LINES, in_line));
    }
#pragma unroll
    for (unsigned i = 0; i < COLS / LINES; ++i) {
        copy(weight, lines.cols[i], element<STEP>(cols, line + i * LINES, in_line));
    }
}

// Adds the products of one step to a warp's sums.
template <class S, class T>
__device__ void multiply_step(const T* rows, const T* cols, unsigned warp_row, unsigned warp_col,
                              typename S::Sums& sums) {
    constexpr unsigned M_TILES = S::M_TILES, N_TILES = S::N_TILES;
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

template <class S, class T>
__device__ void store_tile(const typename S::Sums& sums, const Tile& tile, unsigned warp_row, unsigned warp_col, const Finish<T>& finish, T* out) {
    const unsigned g = lane_idx() / 4, t = lane_idx() % 4, n = finish.n;
#pragma unroll
    for (unsigned i = 0; i < S::M_TILES * 2; ++i) {
        const unsigned row = tile.first_row + warp_row + 8 * i + g;
        if (row >= tile.end_row) continue;
        T* to = out + static_cast<size_t>(row) * n;
#pragma unroll
        for (unsigned j = 0; j < S::N_TILES; ++j) {
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

template <class S, class T>
__device__ void grouped_gemm_of(const Operands<T>& op, const Groups& groups, const Finish<T>& finish,
                                T* out) {
    DYNAMIC_SHARED(float4, shared);
    T* rows = reinterpret_cast<T*>(shared);
    T* cols = rows + S::STAGES * S::ROWS * STEP;
    const unsigned warp_row = warp_idx() / S::WARPS_ABREAST * S::WARP_ROWS;
    const unsigned warp_col = warp_idx() % S::WARPS_ABREAST * S::WARP_COLS;
    const unsigned n_steps = (op.k + STEP - 1) / STEP;
    TileFinder<S::ROWS, COLS> finder;
    Tile tile;
    for (unsigned idx = blockIdx.x; finder.find(idx, groups, op.n, tile); idx += gridDim.x) {
        const Lines<S> lines = lines_of<S>(op, tile);
        const auto start = [&](unsigned step) {
            T* to_rows = rows + step % S::STAGES * S::ROWS * STEP;
            T* to_cols = cols + step % S::STAGES * COLS * STEP;
            if (step < n_steps) copy_step<S>(op, tile.expert, lines, step, to_rows, to_cols);
            // Ended even if it is empty, so that the number of groups tells which is done.
            end_group();
        };
        typename S::Sums sums = {};
        for (unsigned step = 0; step + 1 < S::STAGES; ++step) start(step);
        for (unsigned step = 0; step < n_steps; ++step) {
            wait_for_groups<S::STAGES - 2>();
            // All threads' copies are there, and nobody reads the stage that is filled next any more.
            __syncthreads();
            start(step + S::STAGES - 1);
            const unsigned stage = step % S::STAGES;
            multiply_step<S>(rows + stage * S::ROWS * STEP, cols + stage * COLS * STEP, warp_row, warp_col, sums);
        }
        // Before the next tile's copies overwrite what others still read.
        wait_for_groups<0>();
        __syncthreads();
        store_tile<S>(sums, tile, warp_row, warp_col, finish, out);
    }
}

#define DEFINE(name, S, T)                                                                               \
    extern "C" __global__ void __launch_bounds__(THREADS) name##_##T(GROUPED_GEMM_PARAMETERS(T)) {      \
        const Operands<T> op{x, weight, assignment, top_k, n, k};                                        \
        const Groups groups{offsets, n_rows, n_experts};                                                 \
        grouped_gemm_of<S, T>(op, groups, Finish<T>{bias, activation, times, plus, n}, out);             \
    }
DEFINE(grouped_gemm, Tall, bf16)
DEFINE(grouped_gemm, Tall, f16)
DEFINE(grouped_gemm_short, Short, bf16)
DEFINE(grouped_gemm_short, Short, f16)
#undef DEFINE

KERNEL(grouped_gemm_bf16)
KERNEL(grouped_gemm_f16)
KERNEL(grouped_gemm_short_bf16)
KERNEL(grouped_gemm_short_f16)
