// What activations and weights are kept in. Everything is computed in float.
#pragma once
#include "common.h"

#ifndef MOESHARD_EMULATED
#include <cuda_bf16.h>
#include <cuda_fp16.h>
using bf16 = __nv_bfloat16;
using f16 = __half;
#endif

__device__ inline float to_float(float x) { return x; }
__device__ inline float to_float(bf16 x) { return __bfloat162float(x); }
__device__ inline float to_float(f16 x) { return __half2float(x); }

// Rounds to the nearest, ties to even.
template <class T>
__device__ T from_float(float x);
template <>
__device__ inline float from_float<float>(float x) { return x; }
template <>
__device__ inline bf16 from_float<bf16>(float x) { return __float2bfloat16_rn(x); }
template <>
__device__ inline f16 from_float<f16>(float x) { return __float2half_rn(x); }

// Two numbers rounded to a type of 16 bits, side by side.
template <class T>
__device__ unsigned pair_of(float low, float high) {
    const T values[2] = {from_float<T>(low), from_float<T>(high)};
    static_assert(sizeof(values) == sizeof(unsigned), "types of 16 bits alone");
    unsigned pair;
    memcpy(&pair, values, sizeof(pair));
    return pair;
}

// Defines a kernel for each type from a template `name_of<T>`: name_f32, name_bf16, name_f16.
#define FOR_EACH_TYPE(DEFINE) \
    DEFINE(f32, float)        \
    DEFINE(bf16, bf16)        \
    DEFINE(f16, f16)
