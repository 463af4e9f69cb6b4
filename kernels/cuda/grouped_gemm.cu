// Products of each expert's rows with its matrix, all experts in one launch.
//
//   out[i] = activation(x[row(i)] · W[e]ᵀ + bias[e])     offsets[e] <= i < offsets[e + 1]
//   row(i) = assignment[i] / top_k, or i where assignment is null
//
// x: T [_, k]; W: T [n_experts, n, k]; bias: f32 [n_experts, n] or null; offsets: u32 [n_experts + 1] and
// assignment: u32 [_], from permute.cu; out: T [_, n]. T is bf16 or f16, sums are f32. k is a multiple of
// 8, and rows of x and W begin at multiples of 16 bytes.
//
// A block computes tiles of 128 rows x 128 columns, one after another until none is left: how many there
// are follows from `offsets`, on the device. Its eight warps have 64 x 32 each. Steps of 64 along k come
// to shared memory by asynchronous copies, three of them under way.
//
// For every GPU from Ampere on. Launch: THREADS threads, SHARED_BYTES of shared memory.
#include "activation.h"
#include "mma.h"

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

// Where a tile lies.
struct Tile {
    unsigned expert, first_row, end_row, first_col;
};

// The tile number `idx` in the order of experts, rows and columns; false beyond the last.
__device__ inline bool find_tile(unsigned idx, const unsigned* offsets, unsigned n_experts, unsigned n,
                                 Tile& tile) {
    const unsigned n_cols = (n + COLS - 1) / COLS;
    unsigned row_tile = idx / n_cols;
    for (unsigned e = 0; e < n_experts; ++e) {
        const unsigned start = offsets[e], end = offsets[e + 1];
        const unsigned n_rows = (end - start + ROWS - 1) / ROWS;
        if (row_tile < n_rows) {
            tile = {e, start + row_tile * ROWS, end, idx % n_cols * COLS};
            return true;
        }
        row_tile -= n_rows;
    }
    return false;
}

template <class T>
struct Operands {
    const T* x;
    const T* weight;
    const unsigned* assignment;
    unsigned top_k, n, k;
};

// Starts to copy the operands of one step.
template <class T>
__device__ void copy_step(const Operands<T>& op, const Tile& tile, unsigned step, T* rows, T* cols) {
    const T* weight = op.weight + static_cast<size_t>(tile.expert) * op.n * op.k;
    for (unsigned i = threadIdx.x; i < (ROWS + COLS) * CHUNKS; i += THREADS) {
        const unsigned line = i / CHUNKS, in_line = i % CHUNKS * PER_CHUNK;
        const unsigned col = step * STEP + in_line;
        if (line < ROWS) {
            const unsigned row = tile.first_row + line;
            const bool is_there = row < tile.end_row && col < op.k;
            size_t from = 0;
            if (is_there) from = op.assignment == nullptr ? row : op.assignment[row] / op.top_k;
            copy_async(element<STEP>(rows, line, in_line), op.x + from * op.k + (is_there ? col : 0), is_there);
        } else {
            const unsigned row = tile.first_col + line - ROWS;
            const bool is_there = row < op.n && col < op.k;
            const size_t from = is_there ? static_cast<size_t>(row) * op.k + col : 0;
            copy_async(element<STEP>(cols, line - ROWS, in_line), weight + from, is_there);
        }
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
                           unsigned warp_row, unsigned warp_col, const float* bias,
                           unsigned activation, unsigned n, T* out) {
    const unsigned g = lane_idx() / 4, t = lane_idx() % 4;
    const float* of_expert = bias == nullptr ? nullptr : bias + static_cast<size_t>(tile.expert) * n;
#pragma unroll
    for (unsigned m = 0; m < M_TILES; ++m) {
#pragma unroll
        for (unsigned i = 0; i < N_TILES * 4; ++i) {
            const unsigned row = tile.first_row + warp_row + 16 * m + g + i % 4 / 2 * 8;
            const unsigned col = tile.first_col + warp_col + i / 4 * 8 + 2 * t + i % 2;
            if (row >= tile.end_row || col >= n) continue;
            const float sum = sums[m][i / 4][i % 4] + (bias == nullptr ? 0.0f : of_expert[col]);
            out[static_cast<size_t>(row) * n + col] = from_float<T>(activate(sum, activation));
        }
    }
}

template <class T>
__device__ void grouped_gemm_of(const Operands<T>& op, const unsigned* offsets, unsigned n_experts,
                                const float* bias, unsigned activation, T* out) {
    DYNAMIC_SHARED(float4, shared);
    T* rows = reinterpret_cast<T*>(shared);
    T* cols = rows + STAGES * ROWS * STEP;
    const unsigned warp_row = warp_idx() / 4 * WARP_ROWS, warp_col = warp_idx() % 4 * WARP_COLS;
    const unsigned n_steps = (op.k + STEP - 1) / STEP;
    Tile tile;
    for (unsigned idx = blockIdx.x; find_tile(idx, offsets, n_experts, op.n, tile); idx += gridDim.x) {
        const auto start = [&](unsigned step) {
            const unsigned stage = step % STAGES;
            if (step < n_steps) copy_step(op, tile, step, rows + stage * ROWS * STEP, cols + stage * COLS * STEP);
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
        store_tile(sums, tile, warp_row, warp_col, bias, activation, op.n, out);
    }
}

#define DEFINE(T)                                                                                   \
    extern "C" __global__ void __launch_bounds__(THREADS) grouped_gemm_##T(                         \
        const T* x, const T* weight, const float* bias, const unsigned* offsets,                    \
        const unsigned* assignment, unsigned n_experts, unsigned top_k, unsigned n, unsigned k,     \
        unsigned activation, T* out) {                                                              \
        const Operands<T> op{x, weight, assignment, top_k, n, k};                                   \
        grouped_gemm_of<T>(op, offsets, n_experts, bias, activation, out);                          \
    }
DEFINE(bf16)
DEFINE(f16)
#undef DEFINE

KERNEL(grouped_gemm_bf16)
KERNEL(grouped_gemm_f16)
