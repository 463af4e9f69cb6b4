// Rotary positions: queries and keys turned by angles that grow with the position, in place.
//
//   (a, b) = (x[i], x[i + dim/2])                   i < dim / 2, x a query or a key
//   x[i], x[i + dim/2] = a · cos - b · sin, b · cos + a · sin      cos, sin = rotation[position[t], i]
//
// qkv: T [n_tokens, 3, n_heads, head_dim]; position: u32 [n_tokens]; rotation: f32 [_, dim / 2, 2], which the
// host has computed in double precision. Dimensions of a head from dim on, and values, stay.
//
// One warp a token, a lane some pairs of all heads.
// Launch: 256 threads, ceil(n_tokens / 8) blocks.
//
// Source: RoFormer, arXiv:2104.09864, with the pairs of GPT-NeoX.
#include "types.h"

template <class T>
__device__ void rotary_of(T* qkv, const unsigned* position, const float* rotation, unsigned n_tokens,
                          unsigned n_heads, unsigned head_dim, unsigned dim) {
    const unsigned token = blockIdx.x * (blockDim.x / WARP) + warp_idx();
    if (token >= n_tokens) return;
    T* row = qkv + static_cast<size_t>(token) * 3 * n_heads * head_dim;
    const unsigned half = dim / 2;
    for (unsigned i = lane_idx(); i < half; i += WARP) {
        const float* of_pair = rotation + (static_cast<size_t>(position[token]) * half + i) * 2;
        const float c = of_pair[0], s = of_pair[1];
        // Queries' heads, then keys'.
        for (unsigned head = 0; head < 2 * n_heads; ++head) {
            T* x = row + head * head_dim + i;
            const float a = to_float(x[0]), b = to_float(x[half]);
            x[0] = from_float<T>(a * c - b * s);
            x[half] = from_float<T>(b * c + a * s);
        }
    }
}

#define DEFINE(name, T)                                                                              \
    extern "C" __global__ void rotary_##name(T* qkv, const unsigned* position,                       \
                                             const float* rotation, unsigned n_tokens,              \
                                             unsigned n_heads, unsigned head_dim, unsigned dim) {    \
        rotary_of<T>(qkv, position, rotation, n_tokens, n_heads, head_dim, dim);                    \
    }
FOR_EACH_TYPE(DEFINE)
#undef DEFINE

KERNEL(rotary_f32)
KERNEL(rotary_bf16)
KERNEL(rotary_f16)
