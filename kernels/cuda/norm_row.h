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

// Calls store(i, (x - mean) / sqrt(variance + eps) * weight[i] + bias[i]) for each x = value(i), i < width,
// which is asked for three times: rows lie in the first-level cache after the first.
template <class Value, class Store>
__device__ void norm_row(unsigned width, const Norm& norm, Value value, Store store) {
    if (norm.weight == nullptr) {
        for (unsigned i = lane_idx(); i < width; i += WARP) store(i, value(i));
        return;
    }
    float mean = 0.0f;
    if (!norm.is_rms) {
        for (unsigned i = lane_idx(); i < width; i += WARP) mean += value(i);
        mean = warp_sum(mean) / width;
    }
    float variance = 0.0f;
    for (unsigned i = lane_idx(); i < width; i += WARP) {
        const float x = value(i) - mean;
        variance += x * x;
    }
    variance = warp_sum(variance) / width;
    const float factor = 1.0f / sqrtf(variance + norm.eps);
    for (unsigned i = lane_idx(); i < width; i += WARP) {
        const float x = (value(i) - mean) * factor * norm.weight[i];
        store(i, norm.bias == nullptr ? x : x + norm.bias[i]);
    }
}
