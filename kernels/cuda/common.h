// What every kernel needs. The same sources are compiled by nvcc, and by a C++ compiler with
// `emulation/emulate.h` in front, where MOESHARD_EMULATED is defined.
#pragma once

// Names a kernel for whoever launches it: after its definition, once.
#ifndef MOESHARD_EMULATED
#define KERNEL(name)
// Shared memory whose size the launch gives.
#define DYNAMIC_SHARED(type, name) extern __shared__ type name[]
#endif

constexpr unsigned WARP = 32;
constexpr unsigned ALL_LANES = 0xffffffffu;

// The expert of an assignment that is dropped.
constexpr unsigned DROPPED = 0xffffffffu;

__device__ inline unsigned lane_idx() { return threadIdx.x % WARP; }
__device__ inline unsigned warp_idx() { return threadIdx.x / WARP; }

// Sums in an order that does not depend on anything: the same bits on every lane.
template <class T>
__device__ T warp_sum(T x) {
    for (unsigned step = WARP / 2; step > 0; step /= 2) x += __shfl_xor_sync(ALL_LANES, x, step);
    return x;
}

// The sum over this lane and those before it.
__device__ inline unsigned warp_prefix_sum(unsigned x) {
    for (unsigned step = 1; step < WARP; step *= 2) {
        const unsigned other = __shfl_up_sync(ALL_LANES, x, step);
        if (lane_idx() >= step) x += other;
    }
    return x;
}

__device__ inline float warp_max(float x) {
    for (unsigned step = WARP / 2; step > 0; step /= 2) x = fmaxf(x, __shfl_xor_sync(ALL_LANES, x, step));
    return x;
}
