// What the experts of a token have said, weighted; residual, bias and norm.
//
//   sum[t] = Σ_k gate[t, k] · y[place[t, k]]        assignments that were dropped left out
//   out[t] = norm(factor · sum[t] + residual[t] + bias)
//
// y: T [_, width], rows in the order of experts; place: u32 [n_tokens, top_k], DROPPED for none; gate: f32
// [n_tokens, top_k]; residual, out: T [n_tokens, width]; bias, weight, norm_bias: f32 [width]. residual, bias and
// norm_bias may be null; weight null: no norm. out may be residual. Summed in the order of k: no atomics, so that
// the bits do not depend on who is done first.
//
// One warp a token. Launch: 256 threads, ceil(n_tokens / 8) blocks, no dynamic shared memory.
#include "norm_row.h"

template <class T>
struct Experts {
    const T* y;
    const unsigned* place;
    const float* gate;
    unsigned top_k;
    float factor;
    const T* residual;
    const float* bias;
};

template <class T>
__device__ void combine_of(const Experts<T>& experts, const Norm& norm, unsigned n_tokens, unsigned width,
                           T* out) {
    const unsigned token = blockIdx.x * (blockDim.x / WARP) + warp_idx();
    if (token >= n_tokens) return;
    const unsigned* places = experts.place + static_cast<size_t>(token) * experts.top_k;
    const float* gates = experts.gate + static_cast<size_t>(token) * experts.top_k;
    const size_t row = static_cast<size_t>(token) * width;
    const auto value = [&](unsigned i) {
        float sum = 0.0f;
        for (unsigned k = 0; k < experts.top_k; ++k) {
            if (places[k] == DROPPED) continue;
            sum += gates[k] * to_float(experts.y[static_cast<size_t>(places[k]) * width + i]);
        }
        sum *= experts.factor;
        if (experts.residual != nullptr) sum += to_float(experts.residual[row + i]);
        return experts.bias == nullptr ? sum : sum + experts.bias[i];
    };
    norm_row(width, norm, value, [&](unsigned i, float x) { out[row + i] = from_float<T>(x); });
}

#define DEFINE(name, T)                                                                              \
    extern "C" __global__ void combine_##name(                                                       \
        const T* y, const unsigned* place, const float* gate, unsigned top_k, float factor,          \
        const T* residual, const float* bias, const float* weight, const float* norm_bias,           \
        float eps, unsigned is_rms, unsigned n_tokens, unsigned width, T* out) {                     \
        const Experts<T> experts{y, place, gate, top_k, factor, residual, bias};                     \
        combine_of<T>(experts, Norm{weight, norm_bias, eps, is_rms}, n_tokens, width, out);          \
    }
FOR_EACH_TYPE(DEFINE)
#undef DEFINE

KERNEL(combine_f32)
KERNEL(combine_bf16)
KERNEL(combine_f16)
