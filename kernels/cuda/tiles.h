// What the products of groups of rows have in common: where their tiles lie, and what becomes of a sum.
#pragma once
#include "activation.h"
#include "types.h"

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
