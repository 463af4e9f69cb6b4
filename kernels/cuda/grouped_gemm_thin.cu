// grouped_gemm.cu for a few rows: weights are read once, as fast as they come, and little else matters. It has not run
// on a GPU yet.
//
//   out[i] = activation(x[row(i)] · W[e]ᵀ + bias[e]) ⊙ times[i] + plus[i]     offsets[e] <= i < offsets[e + 1]
//   row(i) = assignment[i] / top_k, or i where assignment is null
//
// Arguments are those of grouped_gemm.cu.
//
// A block computes tiles of 16 rows x 16 columns, so that a small matrix is still spread over many multiprocessors;
// its warps share out k, and their sums are added in the order of warps. A lane copies eight neighbours along k at a
// time, and is the only one to read them: since the order within a sum does not matter as long as it is the same for
// both operands, lanes exchange nothing. Shared memory is there so that many copies are under way.
//
// For every GPU from Ampere on. Launch: THREADS threads, SHARED_BYTES of shared memory, any number of blocks.
#include "mma.h"
#include "tiles.h"

constexpr unsigned ROWS = 16, COLS = 16;
constexpr unsigned WARPS = 8, THREADS = WARPS * WARP;
static_assert(THREADS == ROWS * COLS, "each thread finishes one sum");

// What four lanes copy along k at a time, for two blocks of eight rows and two of eight columns.
constexpr unsigned STEP = 4 * PER_CHUNK;
constexpr unsigned BLOCKS = ROWS / 8 + COLS / 8;
// As many as the smallest shared memory has room for, 99 KiB, beside the partial sums.
constexpr unsigned STAGES = 5;

constexpr unsigned SHARED_BYTES = STAGES * BLOCKS * THREADS * 16;
static_assert(SHARED_BYTES == 81920, "what gpu and emulation are launched with");

// Where this lane's rows of x and of the expert's matrix begin; null for those that are not there.
template <class T>
struct Lines {
    const T* of[BLOCKS];
    // An address where nothing is read.
    const T* nothing;
};

template <class T>
__device__ Lines<T> lines_of(const Operands<T>& op, const Tile& tile) {
    Lines<T> lines;
    lines.nothing = op.x;
    const unsigned g = lane_idx() / 4;
#pragma unroll
    for (unsigned i = 0; i < ROWS / 8; ++i) {
        const unsigned row = tile.first_row + g + 8 * i;
        lines.of[i] = nullptr;
        if (row >= tile.end_row) continue;
        const size_t from = source_row(op.assignment, op.top_k, row);
        lines.of[i] = op.x + from * op.k;
    }
#pragma unroll
    for (unsigned i = 0; i < COLS / 8; ++i) {
        const unsigned col = tile.first_col + g + 8 * i;
        const size_t from = static_cast<size_t>(tile.expert) * op.n + col;
        lines.of[ROWS / 8 + i] = col < op.n ? op.weight + from * op.k : nullptr;
    }
    return lines;
}

// Eight numbers of 16 bits, two in a register.
struct alignas(16) Chunk {
    unsigned pairs[4];
};

// This thread's chunks of a stage.
__device__ inline Chunk* chunk_at(Chunk* memory, unsigned step, unsigned block) {
    return memory + (step % STAGES * BLOCKS + block) * THREADS + threadIdx.x;
}

// Adds the products of one step, of depth 32: each half of a chunk is what one of depth 16 takes from a lane.
template <class T>
__device__ void multiply_step(Chunk* memory, unsigned step, float (&sums)[COLS / 8][4]) {
    Chunk of[BLOCKS];
#pragma unroll
    for (unsigned i = 0; i < BLOCKS; ++i) of[i] = *chunk_at(memory, step, i);
#pragma unroll
    for (unsigned p = 0; p < 4; p += 2) {
        const unsigned a[4] = {of[0].pairs[p], of[1].pairs[p], of[0].pairs[p + 1], of[1].pairs[p + 1]};
#pragma unroll
        for (unsigned j = 0; j < COLS / 8; ++j) {
            const Chunk& cols = of[ROWS / 8 + j];
            const unsigned b[2] = {cols.pairs[p], cols.pairs[p + 1]};
            mma<T>(sums[j], a, b);
        }
    }
}

// Sums over this warp's part of k: every WARPS-th step.
template <class T>
__device__ void multiply(const Lines<T>& lines, unsigned k, Chunk* memory, float (&sums)[COLS / 8][4]) {
    const unsigned n_steps = (k + WARPS * STEP - 1) / (WARPS * STEP);
    const auto start = [&](unsigned step) {
        const unsigned first = (step * WARPS + warp_idx()) * STEP + lane_idx() % 4 * PER_CHUNK;
#pragma unroll
        for (unsigned i = 0; i < BLOCKS; ++i) {
            const bool is_there = lines.of[i] != nullptr && first < k;
            const T* from = is_there ? lines.of[i] + first : lines.nothing;
            if (step < n_steps) copy_async(chunk_at(memory, step, i), from, is_there);
        }
        // Ended even if it is empty, so that the number of groups tells which is done.
        end_group();
    };
    for (unsigned step = 0; step + 1 < STAGES; ++step) start(step);
    for (unsigned step = 0; step < n_steps; ++step) {
        wait_for_groups<STAGES - 2>();
        multiply_step<T>(memory, step, sums);
        // Into the stage that was read in the step before.
        start(step + STAGES - 1);
    }
}

template <class T>
__device__ void grouped_gemm_thin_of(const Operands<T>& op, const Groups& groups, const Finish<T>& finish,
                                     T* out) {
    __shared__ float partial[WARPS][ROWS][COLS];
    DYNAMIC_SHARED(float4, shared);
    Chunk* memory = reinterpret_cast<Chunk*>(shared);
    const unsigned g = lane_idx() / 4, t = lane_idx() % 4;
    TileFinder<ROWS, COLS> finder;
    Tile tile;
    for (unsigned idx = blockIdx.x; finder.find(idx, groups, op.n, tile); idx += gridDim.x) {
        float sums[COLS / 8][4] = {};
        multiply(lines_of(op, tile), op.k, memory, sums);
#pragma unroll
        for (unsigned j = 0; j < COLS / 8; ++j) {
#pragma unroll
            for (unsigned i = 0; i < 4; ++i) partial[warp_idx()][g + i / 2 * 8][8 * j + 2 * t + i % 2] = sums[j][i];
        }
        __syncthreads();
        const unsigned in_row = threadIdx.x / COLS, in_col = threadIdx.x % COLS;
        const unsigned row = tile.first_row + in_row, col = tile.first_col + in_col;
        if (row < tile.end_row && col < op.n) {
            float sum = 0.0f;
#pragma unroll
            for (unsigned warp = 0; warp < WARPS; ++warp) sum += partial[warp][in_row][in_col];
            out[static_cast<size_t>(row) * op.n + col] = from_float<T>(finish(sum, tile.expert, row, col));
        }
        // Before the next tile's sums overwrite what others still read.
        __syncthreads();
    }
}

#define DEFINE(T)                                                                                           \
    extern "C" __global__ void __launch_bounds__(THREADS) grouped_gemm_thin_##T(GROUPED_GEMM_PARAMETERS(T)) { \
        const Operands<T> op{x, weight, assignment, top_k, n, k};                                           \
        const Groups groups{offsets, n_rows, n_experts};                                                    \
        grouped_gemm_thin_of<T>(op, groups, Finish<T>{bias, activation, times, plus, n}, out);                   \
    }
DEFINE(bf16)
DEFINE(f16)
#undef DEFINE

KERNEL(grouped_gemm_thin_bf16)
KERNEL(grouped_gemm_thin_f16)
