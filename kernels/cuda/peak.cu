// What a GPU could do at most: the ceilings that operations are compared with.
//
//   fma, mma: each thread or warp adds products of numbers in registers, N_CHAINS sums at a time, so that none
//   waits for the last; 2 · N_CHAINS · n_steps operations a thread, or 4096 times that a warp
//   read: adds up n_chunks times 16 bytes
//
// Launch: THREADS threads and as many blocks as fill the GPU; out: f32, one element a block, so that nothing
// is left out as useless.
#include "mma.h"

constexpr unsigned THREADS = 256, N_CHAINS = 8;

__device__ inline void keep(float x, float* out) {
    // Never equal in fact, which the compiler does not know.
    if (x == 1.2345e30f) out[blockIdx.x] = x;
}

extern "C" __global__ void __launch_bounds__(THREADS) peak_fma(unsigned n_steps, float factor, float* out) {
    float sums[N_CHAINS];
#pragma unroll
    for (unsigned i = 0; i < N_CHAINS; ++i) sums[i] = static_cast<float>(threadIdx.x + i);
    for (unsigned step = 0; step < n_steps; ++step) {
#pragma unroll
        for (unsigned i = 0; i < N_CHAINS; ++i) sums[i] = sums[i] * factor + 1.0f;
    }
    float sum = 0.0f;
#pragma unroll
    for (unsigned i = 0; i < N_CHAINS; ++i) sum += sums[i];
    keep(sum, out);
}
KERNEL(peak_fma)

template <class T>
__device__ void peak_mma_of(unsigned n_steps, float* out) {
    float sums[N_CHAINS][4] = {};
    unsigned a[4], b[2];
#pragma unroll
    for (unsigned i = 0; i < 4; ++i) a[i] = threadIdx.x + i;
#pragma unroll
    for (unsigned i = 0; i < 2; ++i) b[i] = threadIdx.x + i;
    for (unsigned step = 0; step < n_steps; ++step) {
#pragma unroll
        for (unsigned i = 0; i < N_CHAINS; ++i) mma<T>(sums[i], a, b);
    }
    float sum = 0.0f;
#pragma unroll
    for (unsigned i = 0; i < N_CHAINS; ++i) sum += sums[i][0] + sums[i][3];
    keep(sum, out);
}

extern "C" __global__ void __launch_bounds__(THREADS) peak_mma_bf16(unsigned n_steps, float* out) {
    peak_mma_of<bf16>(n_steps, out);
}
KERNEL(peak_mma_bf16)

extern "C" __global__ void __launch_bounds__(THREADS) peak_mma_f16(unsigned n_steps, float* out) {
    peak_mma_of<f16>(n_steps, out);
}
KERNEL(peak_mma_f16)

extern "C" __global__ void __launch_bounds__(THREADS) peak_read(const float4* from, unsigned n_chunks, float* out) {
    float sum = 0.0f;
    for (unsigned i = blockIdx.x * THREADS + threadIdx.x; i < n_chunks; i += gridDim.x * THREADS) {
        const float4 x = from[i];
        sum += x.x + x.y + x.z + x.w;
    }
    keep(sum, out);
}
KERNEL(peak_read)
