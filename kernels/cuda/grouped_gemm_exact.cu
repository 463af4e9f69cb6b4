// The products of grouped_gemm.cu in f32, with plain multiply-adds: for models in f32 and for exact checks.
//
//   out[i] = activation(x[row(i)] · W[e]ᵀ + bias[e]) ⊙ times[i] + plus[i]     offsets[e] <= i < offsets[e + 1]
//   row(i) = assignment[i] / top_k, or i where assignment is null
//
// Arguments and shapes are those of grouped_gemm.cu with T = f32; n and k are any, and nothing is aligned.
// A block computes tiles of 64 x 64, one after another until none is left, each thread 4 x 4 of them.
//
// Launch: THREADS threads, no dynamic shared memory, any number of blocks.
#include "exact.h"
#include "tiles.h"

constexpr unsigned ROWS = 64, COLS = 64;
constexpr unsigned THREADS = 256;
constexpr unsigned NONE = 0xffffffffu;

extern "C" __global__ void __launch_bounds__(THREADS) grouped_gemm_f32(GROUPED_GEMM_PARAMETERS(float)) {
    __shared__ ExactTiles<ROWS, COLS> tiles;
    // Rows of x, NONE for those that are not there.
    __shared__ unsigned from[ROWS];
    const Groups groups{offsets, n_rows, n_experts};
    const Finish<float> finish{bias, activation, times, plus, n};
    TileFinder<ROWS, COLS> finder;
    Tile tile;
    for (unsigned idx = blockIdx.x; finder.find(idx, groups, n, tile); idx += gridDim.x) {
        if (threadIdx.x < ROWS) {
            const unsigned row = tile.first_row + threadIdx.x;
            unsigned is_from = NONE;
            if (row < tile.end_row) is_from = source_row(assignment, top_k, row);
            from[threadIdx.x] = is_from;
        }
        __syncthreads();
        const float* of_expert = weight + static_cast<size_t>(tile.expert) * n * k;
        const auto row = [&](unsigned line, unsigned i) {
            return from[line] == NONE ? 0.0f : x[static_cast<size_t>(from[line]) * k + i];
        };
        const auto col = [&](unsigned line, unsigned i) {
            const unsigned at = tile.first_col + line;
            return at < n ? of_expert[static_cast<size_t>(at) * k + i] : 0.0f;
        };
        float sums[ROWS / 16][COLS / 16] = {};
        multiply_exact(tiles, k, row, col, sums);
#pragma unroll
        for (unsigned i = 0; i < ROWS / 16 * (COLS / 16); ++i) {
            const unsigned at = tile.first_row + threadIdx.x / 16 + i / (COLS / 16) * 16;
            const unsigned to = tile.first_col + threadIdx.x % 16 + i % (COLS / 16) * 16;
            if (at >= tile.end_row || to >= n) continue;
            const float sum = sums[i / (COLS / 16)][i % (COLS / 16)];
            out[static_cast<size_t>(at) * n + to] = finish(sum, tile.expert, at, to);
        }
    }
}
KERNEL(grouped_gemm_f32)
