// Rotary positions: queries and keys turned by angles that grow with the position, in place.
//
//   (a, b) = (x[i], x[i + dim/2])                   i < dim / 2, x a query or a key
//   x[i], x[i + dim/2] = a · cos - b · sin, b · cos + a · sin      of position[t] · frequency[i]
//
// qkv: T [n_tokens, 3, n_heads, head_dim]; position: u32 [n_tokens]; frequency: f32 [dim / 2], which the host
// has computed. Dimensions of a head from dim on, and values, stay. The angle is in f32.
//
// One warp a token, a lane some pairs of all heads: an angle's cosine and sine are computed once.
// Launch: 256 threads, ceil(n_tokens / 8) blocks.
//
// Source: RoFormer, arXiv:2104.09864, with the pairs of GPT-NeoX.
#include "types.h"

template <class T>
__device__ void rotary_of(T* qkv, const unsigned* position, const float* frequency, unsigned n_tokens,
                          unsigned n_heads, unsigned head_dim, unsigned dim) {
    const unsigned token = blockIdx.x * (blockDim.x / WARP) + warp_idx();
    if (token >= n_tokens) return;
    T* row = qkv + static_cast<size_t>(token) * 3 * n_heads * head_dim;
    const unsigned half = dim / 2;
    for (unsigned i = lane_idx(); i < half; i += WARP) {
        const float angle = static_cast<float>(position[token]) * frequency[i];
        const float c = cosf(angle), s = sinf(angle);
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
                                             const float* frequency, unsigned n_tokens,              \
                                             unsigned n_heads, unsigned head_dim, unsigned dim) {    \
        rotary_of<T>(qkv, position, frequency, n_tokens, n_heads, head_dim, dim);                    \
    }
FOR_EACH_TYPE(DEFINE)
#undef DEFINE

KERNEL(rotary_f32)
KERNEL(rotary_bf16)
KERNEL(rotary_f16)
