// Activations of feed-forward layers; the numbers are those of `Activation` on the host.
#pragma once
#include "common.h"

enum : unsigned { IDENTITY, RELU, GELU, GELU_TANH, SILU, TANH };

__device__ inline float activate(float x, unsigned activation) {
    switch (activation) {
        case RELU:
            // NaN stays.
            return x < 0.0f ? 0.0f : x;
        case GELU:
            return 0.5f * x * (1.0f + erff(x * 0.70710678f));
        case GELU_TANH:
            return 0.5f * x * (1.0f + tanhf(0.79788456f * (x + 0.044715f * x * x * x)));
        case SILU:
            return x / (1.0f + expf(-x));
        case TANH:
            return tanhf(x);
        default:
            return x;
    }
}
