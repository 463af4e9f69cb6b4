// Embedding and norm.
//
//   sum[t] = Σ_j scale[j] · table[j][idx[j][t]]       j < N_TABLES, null tables left out
//   out[t] = norm(sum[t])                             (weight null: sum[t])
//
// table[j]: T [_, width] (words, positions, types of token); idx[j]: u32 [n_tokens]; weight, bias: f32
// [width]; out: T [n_tokens, width]. One warp a token.
#include "norm_row.h"

template <class T>
struct Table {
    const T* rows;
    const unsigned* idx;
    float scale;
};

template <class T>
__device__ void embed_of(const Table<T> (&tables)[3], const Norm& norm, unsigned n_tokens,
                         unsigned width, T* out) {
    const unsigned token = blockIdx.x * (blockDim.x / WARP) + warp_idx();
    if (token >= n_tokens) return;
    const auto value = [&](unsigned i) {
        float sum = 0.0f;
#pragma unroll
        for (const Table<T>& table : tables) {
            if (table.rows == nullptr) continue;
            const size_t row = static_cast<size_t>(table.idx[token]) * width;
            sum += table.scale * to_float(table.rows[row + i]);
        }
        return sum;
    };
    T* to = out + static_cast<size_t>(token) * width;
    norm_row(width, norm, value, [&](unsigned i, float x) { to[i] = from_float<T>(x); });
}

#define DEFINE(name, T)                                                                                \
    extern "C" __global__ void embed_##name(                                                           \
        const T* table_0, const unsigned* idx_0, float scale_0, const T* table_1,                      \
        const unsigned* idx_1, float scale_1, const T* table_2, const unsigned* idx_2, float scale_2,  \
        const float* weight, const float* bias, float eps, unsigned is_rms, unsigned n_tokens,         \
        unsigned width, T* out) {                                                                      \
        const Table<T> tables[3] = {                                                                   \
            {table_0, idx_0, scale_0}, {table_1, idx_1, scale_1}, {table_2, idx_2, scale_2}};          \
        embed_of<T>(tables, Norm{weight, bias, eps, is_rms}, n_tokens, width, out);                    \
    }
FOR_EACH_TYPE(DEFINE)
#undef DEFINE

KERNEL(embed_f32)
KERNEL(embed_bf16)
KERNEL(embed_f16)
