// Embedding and norm.
//
//   sum[t] = Σ_j scale[j] · table[j][idx[j][t]]       j < 3, null tables left out
//   out[t] = norm(sum[t])                             (weight null: sum[t])
//
// table[j]: [_, width] (words, positions, types of token), f32 where is_exact[j], else T; idx[j]: u32 [n_tokens];
// weight, norm_bias: f32 [width], norm_bias may be null; out: T [n_tokens, width].
//
// One warp a token. Launch: 256 threads, ceil(n_tokens / 8) blocks, no dynamic shared memory.
#include "norm_row.h"

struct Table {
    const void* rows;
    unsigned is_exact;
    const unsigned* idx;
    float scale;
};

template <class T>
__device__ void embed_of(const Table (&tables)[3], const Norm& norm, unsigned n_tokens, unsigned width,
                         T* out) {
    const unsigned token = blockIdx.x * (blockDim.x / WARP) + warp_idx();
    if (token >= n_tokens) return;
    const auto value = [&](unsigned i) {
        float sum = 0.0f;
#pragma unroll
        for (const Table& table : tables) {
            if (table.rows == nullptr) continue;
            const size_t at = static_cast<size_t>(table.idx[token]) * width + i;
            const float x = table.is_exact ? static_cast<const float*>(table.rows)[at]
                                           : to_float(static_cast<const T*>(table.rows)[at]);
            sum += table.scale * x;
        }
        return sum;
    };
    T* to = out + static_cast<size_t>(token) * width;
    norm_row(width, norm, value, [&](unsigned i, float x) { to[i] = from_float<T>(x); });
}

#define DEFINE(name, T)                                                                              \
    extern "C" __global__ void embed_##name(                                                         \
        const void* table_0, unsigned is_exact_0, const unsigned* idx_0, float scale_0,              \
        const void* table_1, unsigned is_exact_1, const unsigned* idx_1, float scale_1,              \
        const void* table_2, unsigned is_exact_2, const unsigned* idx_2, float scale_2,              \
        const float* weight, const float* norm_bias, float eps, unsigned is_rms, unsigned n_tokens,  \
        unsigned width, T* out) {                                                                    \
        const Table tables[3] = {{table_0, is_exact_0, idx_0, scale_0},                              \
                                 {table_1, is_exact_1, idx_1, scale_1},                              \
                                 {table_2, is_exact_2, idx_2, scale_2}};                             \
        embed_of<T>(tables, Norm{weight, norm_bias, eps, is_rms}, n_tokens, width, out);             \
    }
FOR_EACH_TYPE(DEFINE)
#undef DEFINE

KERNEL(embed_f32)
KERNEL(embed_bf16)
KERNEL(embed_f16)
