// Residual and norm.
//
//   sum[t] = x[t] + y[t]                    (y null: x[t])
//   out[t] = norm(sum[t])                   (weight null: sum[t])
//
// x, y, sum, out: T [n_tokens, width]; weight, bias: f32 [width]. `sum` may be null where nobody needs it,
// and may be x. A token's sum is normalised before it is rounded to T.
//
// One warp a token: what this costs is reading x and y once.
#include "norm_row.h"

template <class T>
__device__ void norm_of(const T* x, const T* y, const float* weight, const float* bias, float eps,
                        unsigned is_rms, unsigned n_tokens, unsigned width, T* sum, T* out) {
    const unsigned token = blockIdx.x * (blockDim.x / WARP) + warp_idx();
    if (token >= n_tokens) return;
    const size_t row = static_cast<size_t>(token) * width;
    const auto value = [&](unsigned i) {
        const float a = to_float(x[row + i]);
        return y == nullptr ? a : a + to_float(y[row + i]);
    };
    const auto store = [&](unsigned i, float normed) {
        // The last time that this lane reads element i.
        const float whole = value(i);
        if (sum != nullptr) sum[row + i] = from_float<T>(whole);
        out[row + i] = from_float<T>(normed);
    };
    norm_row(width, Norm{weight, bias, eps, is_rms}, value, store);
}

#define DEFINE(name, T)                                                                                 \
    extern "C" __global__ void norm_##name(const T* x, const T* y, const float* weight,                 \
                                           const float* bias, float eps, unsigned is_rms,               \
                                           unsigned n_tokens, unsigned width, T* sum, T* out) {         \
        norm_of<T>(x, y, weight, bias, eps, is_rms, n_tokens, width, sum, out);                         \
    }
FOR_EACH_TYPE(DEFINE)
#undef DEFINE

KERNEL(norm_f32)
KERNEL(norm_bf16)
KERNEL(norm_f16)
