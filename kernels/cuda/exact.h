// Products of two tiles in f32 with plain multiply-adds, by a block of 256 threads.
//
//   sums[i][j] += Σ_k row(r, k) · col(c, k)      r = threadIdx.x / 16 + 16 i, c = threadIdx.x % 16 + 16 j
//
// Each element is summed by one thread in the order of k: its bits depend on its row and column alone.
#pragma once
#include "types.h"

// Of k, what lies in shared memory at a time.
constexpr unsigned EXACT_STEP = 32;

// Lines begin four banks apart, so that threads read four numbers of neighbouring lines without conflicts.
template <unsigned ROWS, unsigned COLS>
struct ExactTiles {
    alignas(16) float rows[ROWS][EXACT_STEP + 4];
    alignas(16) float cols[COLS][EXACT_STEP + 4];
};

// The products of what lies in shared memory.
template <unsigned ROWS, unsigned COLS>
__device__ void multiply_exact_step(const ExactTiles<ROWS, COLS>& tiles, float (&sums)[ROWS / 16][COLS / 16]) {
    const unsigned y = threadIdx.x / 16, x = threadIdx.x % 16;
#pragma unroll
    for (unsigned k = 0; k < EXACT_STEP; k += 4) {
        float4 b[COLS / 16];
#pragma unroll
        for (unsigned j = 0; j < COLS / 16; ++j) {
            b[j] = *reinterpret_cast<const float4*>(&tiles.cols[x + 16 * j][k]);
        }
#pragma unroll
        for (unsigned i = 0; i < ROWS / 16; ++i) {
            const float4 a = *reinterpret_cast<const float4*>(&tiles.rows[y + 16 * i][k]);
#pragma unroll
            for (unsigned j = 0; j < COLS / 16; ++j) {
                sums[i][j] += a.x * b[j].x;
                sums[i][j] += a.y * b[j].y;
                sums[i][j] += a.z * b[j].z;
                sums[i][j] += a.w * b[j].w;
            }
        }
    }
}

// `row` and `col` are asked for k < depth by the lanes of a warp in order; the next step is fetched while one is
// multiplied. What they read that others have written needs a barrier before.
template <unsigned ROWS, unsigned COLS, class Row, class Col>
__device__ void multiply_exact(ExactTiles<ROWS, COLS>& tiles, unsigned depth, Row row, Col col,
                               float (&sums)[ROWS / 16][COLS / 16]) {
    constexpr unsigned WARPS = 8;
    float next_rows[ROWS / WARPS], next_cols[COLS / WARPS];
    const auto fetch = [&](unsigned first) {
        const unsigned k = first + lane_idx();
#pragma unroll
        for (unsigned i = 0; i < ROWS / WARPS; ++i) {
            next_rows[i] = k < depth ? row(warp_idx() + i * WARPS, k) : 0.0f;
        }
#pragma unroll
        for (unsigned i = 0; i < COLS / WARPS; ++i) {
            next_cols[i] = k < depth ? col(warp_idx() + i * WARPS, k) : 0.0f;
        }
    };
    fetch(0);
    for (unsigned first = 0; first < depth; first += EXACT_STEP) {
        // Nobody reads the last step any more.
        __syncthreads();
#pragma unroll
        for (unsigned i = 0; i < ROWS / WARPS; ++i) tiles.rows[warp_idx() + i * WARPS][lane_idx()] = next_rows[i];
#pragma unroll
        for (unsigned i = 0; i < COLS / WARPS; ++i) tiles.cols[warp_idx() + i * WARPS][lane_idx()] = next_cols[i];
        __syncthreads();
        if (first + EXACT_STEP < depth) fetch(first + EXACT_STEP);
        multiply_exact_step(tiles, sums);
    }
}
