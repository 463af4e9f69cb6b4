// One vector a sequence.
//
//   out[s] = mean of x[first..last], divided by max(its length, 1e-12) if is_normalized
//   rows of sequence s: start[s]..start[s + 1]; rule 0: the first of them, 1: all, 2: the last
//
// x: T [n_tokens, width]; start: u32 [n_seqs + 1]; out: f32 [n_seqs, width]. A sequence without rows has
// zeroes. A block a sequence; shared: f32 [width].
#include "types.h"

constexpr unsigned THREADS = 256;
constexpr float LEAST_LENGTH = 1e-12f;

template <class T>
__device__ void pool_of(const T* x, const unsigned* start, unsigned rule, unsigned is_normalized,
                        unsigned width, float* out) {
    DYNAMIC_SHARED(float, row);
    __shared__ float of_warp[THREADS / WARP];
    unsigned first = start[blockIdx.x], last = start[blockIdx.x + 1];
    if (rule == 0) last = min(last, first + 1);
    if (rule == 2 && last > first) first = last - 1;
    const float share = 1.0f / max(last - first, 1u);
    float squares = 0.0f;
    for (unsigned i = threadIdx.x; i < width; i += THREADS) {
        float sum = 0.0f;
        for (unsigned t = first; t < last; ++t) sum += to_float(x[static_cast<size_t>(t) * width + i]);
        row[i] = sum * share;
        squares += row[i] * row[i];
    }
    squares = warp_sum(squares);
    if (lane_idx() == 0) of_warp[warp_idx()] = squares;
    __syncthreads();
    float total = 0.0f;
    for (unsigned w = 0; w < THREADS / WARP; ++w) total += of_warp[w];
    const float divisor = is_normalized ? fmaxf(sqrtf(total), LEAST_LENGTH) : 1.0f;
    float* to = out + static_cast<size_t>(blockIdx.x) * width;
    for (unsigned i = threadIdx.x; i < width; i += THREADS) to[i] = row[i] / divisor;
}

#define DEFINE(name, T)                                                                          \
    extern "C" __global__ void pool_##name(const T* x, const unsigned* start, unsigned rule,     \
                                           unsigned is_normalized, unsigned width, float* out) { \
        pool_of<T>(x, start, rule, is_normalized, width, out);                                   \
    }
FOR_EACH_TYPE(DEFINE)
#undef DEFINE

KERNEL(pool_f32)
KERNEL(pool_bf16)
KERNEL(pool_f16)
