// What the experts of a token have said, weighted.
//
//   out[t] = Σ_k weight[t, k] · y[place[t, k]]        assignments that were dropped left out
//
// y: T [_, width], rows in the order of experts; place: u32 [n_tokens, top_k], DROPPED for none; weight:
// f32 [n_tokens, top_k]; out: T [n_tokens, width]. Summed in the order of k: no atomics, so that the bits
// do not depend on who is done first.
//
// A thread an element of the result, a block some columns of one token (blockIdx.x).
#include "types.h"

template <class T>
__device__ void combine_of(const T* y, const unsigned* place, const float* weight, unsigned top_k,
                           unsigned width, T* out) {
    const size_t token = blockIdx.x;
    const unsigned* places = place + token * top_k;
    const float* weights = weight + token * top_k;
    for (unsigned i = blockIdx.y * blockDim.x + threadIdx.x; i < width; i += gridDim.y * blockDim.x) {
        float sum = 0.0f;
        for (unsigned k = 0; k < top_k; ++k) {
            if (places[k] == DROPPED) continue;
            sum += weights[k] * to_float(y[static_cast<size_t>(places[k]) * width + i]);
        }
        out[token * width + i] = from_float<T>(sum);
    }
}

#define DEFINE(name, T)                                                                           \
    extern "C" __global__ void combine_##name(const T* y, const unsigned* place,                  \
                                              const float* weight, unsigned top_k, unsigned width, \
                                              T* out) {                                           \
        combine_of<T>(y, place, weight, top_k, width, out);                                       \
    }
FOR_EACH_TYPE(DEFINE)
#undef DEFINE

KERNEL(combine_f32)
KERNEL(combine_bf16)
KERNEL(combine_f16)
