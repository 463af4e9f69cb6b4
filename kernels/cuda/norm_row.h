// The norm of a row by one warp.
#pragma once
#include "types.h"

// How a row is normalised.
struct Norm {
    const float* weight;  // f32 [width]; null: not at all
    const float* bias;    // f32 [width] or null
    float eps;
    unsigned is_rms;  // Without a mean.
};

// Warps of a block, at most.
constexpr unsigned NORM_WARPS = 8;
// Numbers of a row that are kept in shared memory; those of longer rows are asked for again.
constexpr unsigned KEPT = 1024;

// Calls store(i, (x - mean) / sqrt(variance + eps) * weight[i] + bias[i]) for each x = value(i), i < width. A
// lane stores an element after it has asked for it for the last time, and keeps its own elements alone: nobody
// waits for anybody.
template <class Value, class Store>
__device__ void norm_row(unsigned width, const Norm& norm, Value value, Store store) {
    if (norm.weight == nullptr) {
        for (unsigned i = lane_idx(); i < width; i += WARP) store(i, value(i));
        return;
    }
    __shared__ float kept[NORM_WARPS][KEPT];
    float* own = kept[warp_idx()];
    float mean = 0.0f;
    for (unsigned i = lane_idx(); i < width; i += WARP) {
        const float x = value(i);
        if (i < KEPT) own[i] = x;
        mean += x;
    }
    mean = norm.is_rms ? 0.0f : warp_sum(mean) / width;
    const auto again = [&](unsigned i) { return i < KEPT ? own[i] : value(i); };
    float variance = 0.0f;
    for (unsigned i = lane_idx(); i < width; i += WARP) {
        const float x = again(i) - mean;
        variance += x * x;
    }
    variance = warp_sum(variance) / width;
    const float factor = 1.0f / sqrtf(variance + norm.eps);
    for (unsigned i = lane_idx(); i < width; i += WARP) {
        const float x = (again(i) - mean) * factor * norm.weight[i];
        store(i, norm.bias == nullptr ? x : x + norm.bias[i]);
    }
}
