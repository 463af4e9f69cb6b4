// Router: which experts a token goes to, and with what weight.
//
//   p[t] = softmax(logits[t])
//   idx[t, k] = the most probable expert that is not among idx[t, ..k], the first of equals
//   weight[t, k] = p[t, idx[t, k]], divided by max(sum over k, 2^-23) if normalize
//
// logits: f32 [n_tokens, n_experts]; idx: u32 [n_tokens, top_k]; weight: f32 [n_tokens, top_k]
// top_k <= n_experts, and at most MAX_TOP_K.
//
// One warp a token: lanes take every 32nd expert. The row is read once for the maximum and once more
// for the sum and for each choice, from the first-level cache: with a few hundred experts, keeping it
// in registers would gain nothing that can be seen beside the launch.
#include "common.h"

constexpr unsigned MAX_TOP_K = 8;
constexpr float LEAST_SUM = 1.1920929e-7f;

// Whether expert `i` of probability `p` comes before expert `j` of `q`.
__device__ inline bool comes_before(float p, unsigned i, float q, unsigned j) {
    return p > q || (p == q && i < j);
}

extern "C" __global__ void route(const float* __restrict__ logits, unsigned n_tokens,
                                 unsigned n_experts, unsigned top_k, unsigned normalize,
                                 unsigned* __restrict__ idx, float* __restrict__ weight) {
    const unsigned token = blockIdx.x * (blockDim.x / WARP) + warp_idx();
    if (token >= n_tokens) return;  // A whole warp.
    const float* row = logits + static_cast<size_t>(token) * n_experts;

    float largest = -INFINITY;
    for (unsigned i = lane_idx(); i < n_experts; i += WARP) largest = fmaxf(largest, row[i]);
    largest = warp_max(largest);
    float sum = 0.0f;
    for (unsigned i = lane_idx(); i < n_experts; i += WARP) sum += expf(row[i] - largest);
    sum = warp_sum(sum);

    unsigned chosen[MAX_TOP_K];
    float chosen_p[MAX_TOP_K];
    float of_chosen = 0.0f;
#pragma unroll
    for (unsigned k = 0; k < MAX_TOP_K; ++k) {
        if (k >= top_k) break;
        // What is not a number is never more probable than this, so that some expert is always chosen.
        float best_p = -1.0f;
        unsigned best = 0;
        for (unsigned i = lane_idx(); i < n_experts; i += WARP) {
            bool is_free = true;
#pragma unroll
            for (unsigned j = 0; j < MAX_TOP_K; ++j) is_free &= j >= k || chosen[j] != i;
            const float p = expf(row[i] - largest) / sum;
            if (is_free && comes_before(p, i, best_p, best)) best_p = p, best = i;
        }
        for (unsigned step = WARP / 2; step > 0; step /= 2) {
            const float p = __shfl_xor_sync(ALL_LANES, best_p, step);
            const unsigned i = __shfl_xor_sync(ALL_LANES, best, step);
            if (comes_before(p, i, best_p, best)) best_p = p, best = i;
        }
        chosen[k] = best;
        chosen_p[k] = best_p >= 0.0f ? best_p : NAN;
        of_chosen += chosen_p[k];
    }
    if (lane_idx() > 0) return;
    const float divisor = normalize ? fmaxf(of_chosen, LEAST_SUM) : 1.0f;
#pragma unroll
    for (unsigned k = 0; k < MAX_TOP_K; ++k) {
        if (k >= top_k) break;
        idx[static_cast<size_t>(token) * top_k + k] = chosen[k];
        weight[static_cast<size_t>(token) * top_k + k] = chosen_p[k] / divisor;
    }
}
KERNEL(route)
