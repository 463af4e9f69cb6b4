// What the products of groups of rows have in common: where their tiles lie, and what becomes of a sum.
#pragma once
#include "activation.h"
#include "types.h"

// What every kernel of grouped products takes; grouped_gemm.cu says what it is.
#define GROUPED_GEMM_PARAMETERS(T)                                                                             \
    const T *x, const T *weight, const float *bias, const unsigned *offsets, const unsigned *assignment,       \
        unsigned n_rows, unsigned n_experts, unsigned top_k, unsigned n, unsigned k, unsigned activation,      \
        const T *times, const T *plus, T *out

// What is multiplied.
template <class T>
struct Operands {
    const T* x;
    const T* weight;
    const unsigned* assignment;
    unsigned top_k, n, k;
};

// The row of x that row `row` of the result is made of.
__device__ inline unsigned source_row(const unsigned* assignment, unsigned top_k, unsigned row) {
    return assignment == nullptr ? row : assignment[row] / top_k;
}

// Rows of one expert behind those of another.
struct Groups {
    const unsigned* offsets;  // u32 [n_experts + 1]; null: one group of n_rows rows.
    unsigned n_rows, n_experts;
};

// Where a tile lies.
struct Tile {
    unsigned expert, first_row, end_row, first_col;
};

// Finds tiles of ROWS x COLS in the order of experts, rows and columns. All lanes of a warp ask for the same
// one; each looks at another expert. What a block asks for ascends, so that no expert is passed twice.
template <unsigned ROWS, unsigned COLS>
struct TileFinder {
    // Experts below this one are passed; so many tiles, in rows, were theirs.
    unsigned expert = 0, n_passed = 0;

    // Tile `idx` of a result of n columns; false beyond the last.
    __device__ bool find(unsigned idx, const Groups& groups, unsigned n, Tile& tile) {
        const unsigned n_cols = (n + COLS - 1) / COLS, wanted = idx / n_cols;
        for (; expert < groups.n_experts; expert += WARP) {
            const unsigned e = expert + lane_idx();
            unsigned start = 0, end = 0;
            if (e < groups.n_experts) {
                start = groups.offsets == nullptr ? 0 : groups.offsets[e];
                end = groups.offsets == nullptr ? groups.n_rows : groups.offsets[e + 1];
            }
            const unsigned n_tiles = (end - start + ROWS - 1) / ROWS;
            const unsigned sum = n_passed + warp_prefix_sum(n_tiles);
            const unsigned beyond = __ballot_sync(ALL_LANES, wanted < sum);
            if (beyond != 0) {
                // The first lane of them.
                const unsigned lane = __popc(~beyond & (beyond - 1));
                const unsigned first_row = start + (wanted - (sum - n_tiles)) * ROWS;
                tile = {expert + lane, __shfl_sync(ALL_LANES, first_row, lane),
                        __shfl_sync(ALL_LANES, end, lane), idx % n_cols * COLS};
                return true;
            }
            n_passed = __shfl_sync(ALL_LANES, sum, WARP - 1);
        }
        return false;
    }
};

// activation(sum + bias) ⊙ times + plus
template <class T>
struct Finish {
    const float* bias;  // f32 [n_experts, n] or null
    unsigned activation;
    const T* times;  // T [_, n] or null
    const T* plus;   // T [_, n] or null
    unsigned n;

    __device__ float operator()(float sum, unsigned expert, unsigned row, unsigned col) const {
        if (bias != nullptr) sum += bias[static_cast<size_t>(expert) * n + col];
        const size_t at = static_cast<size_t>(row) * n + col;
        float x = activate(sum, activation);
        if (times != nullptr) x *= to_float(times[at]);
        if (plus != nullptr) x += to_float(plus[at]);
        return x;
    }
};

// Eight neighbours of a row, 16 bytes of them.
template <class T>
struct alignas(16) Eight {
    T of[8];
};

// Finishes eight sums and stores those whose column is there. `col` is a multiple of 8. Where n is one as well,
// everything is read and written in pieces of 16 bytes, and must begin at a multiple of that.
template <class T>
__device__ void store_eight(const Finish<T>& finish, const float* sums, unsigned expert, unsigned row,
                            unsigned col, T* out) {
    const unsigned n = finish.n;
    const size_t at = static_cast<size_t>(row) * n + col;
    if (n % 8 != 0) {
        for (unsigned i = 0; i < 8 && col + i < n; ++i) {
            out[at + i] = from_float<T>(finish(sums[i], expert, row, col + i));
        }
        return;
    }
    if (col >= n) return;
    float x[8];
    memcpy(x, sums, sizeof(x));
    if (finish.bias != nullptr) {
        const float4* bias = reinterpret_cast<const float4*>(finish.bias + static_cast<size_t>(expert) * n + col);
        const float4 low = bias[0], high = bias[1];
        x[0] += low.x, x[1] += low.y, x[2] += low.z, x[3] += low.w;
        x[4] += high.x, x[5] += high.y, x[6] += high.z, x[7] += high.w;
    }
    Eight<T> times, plus, result;
    if (finish.times != nullptr) times = *reinterpret_cast<const Eight<T>*>(finish.times + at);
    if (finish.plus != nullptr) plus = *reinterpret_cast<const Eight<T>*>(finish.plus + at);
#pragma unroll
    for (unsigned i = 0; i < 8; ++i) {
        float y = activate(x[i], finish.activation);
        if (finish.times != nullptr) y *= to_float(times.of[i]);
        if (finish.plus != nullptr) y += to_float(plus.of[i]);
        result.of[i] = from_float<T>(y);
    }
    *reinterpret_cast<Eight<T>*>(out + at) = result;
}
