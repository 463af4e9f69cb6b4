// Residual, bias and norm.
//
//   out[t] = norm(factor · x[t] + y[t] + bias)     (y or bias null: left out; weight null: no norm)
//
// x, y, out: T [n_tokens, width]; bias, weight, norm_bias: f32 [width], norm_bias may be null. out may be x or y.
// The sum is normalised before it is rounded to T.
//
// One warp a token: what this costs is reading x and y once.
// Launch: 256 threads, ceil(n_tokens / 8) blocks, no dynamic shared memory.
#include "norm_row.h"

template <class T>
struct Sum {
    const T* x;
    float factor;
    const T* y;
    const float* bias;
};

template <class T>
__device__ void norm_of(const Sum<T>& sum, const Norm& norm, unsigned n_tokens, unsigned width, T* out) {
    const unsigned token = blockIdx.x * (blockDim.x / WARP) + warp_idx();
    if (token >= n_tokens) return;
    const size_t row = static_cast<size_t>(token) * width;
    const auto value = [&](unsigned i) {
        float x = sum.factor * to_float(sum.x[row + i]);
        if (sum.y != nullptr) x += to_float(sum.y[row + i]);
        return sum.bias == nullptr ? x : x + sum.bias[i];
    };
    norm_row(width, norm, value, [&](unsigned i, float x) { out[row + i] = from_float<T>(x); });
}

#define DEFINE(name, T)                                                                             \
    extern "C" __global__ void norm_##name(                                                         \
        const T* x, float factor, const T* y, const float* bias, const float* weight,               \
        const float* norm_bias, float eps, unsigned is_rms, unsigned n_tokens, unsigned width,      \
        T* out) {                                                                                   \
        const Norm norm{weight, norm_bias, eps, is_rms};                                            \
        norm_of<T>(Sum<T>{x, factor, y, bias}, norm, n_tokens, width, out);                         \
    }
FOR_EACH_TYPE(DEFINE)
#undef DEFINE

KERNEL(norm_f32)
KERNEL(norm_bf16)
KERNEL(norm_f16)
