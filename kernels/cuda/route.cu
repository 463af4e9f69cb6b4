// Router: which experts a token goes to, and with what weight.
//
//   logits[t] = x[t] · Wᵀ
//   p[t] = softmax(logits[t])
//   idx[t, i] = the most probable expert that is not among idx[t, ..i], the first of equals
//   gate[t, i] = p[t, idx[t, i]], divided by max(sum over i, 2^-23) if normalize
//
// x: T [n_tokens, k]; W: f32 [n_experts, k]; logits: f32 [n_tokens, n_experts], working memory and result;
// idx: u32 [n_tokens, top_k]; gate: f32 [n_tokens, top_k]. top_k <= n_experts, and at most WARP.
//
// Products are in f32 with plain multiply-adds whatever T is: experts that are nearly as probable must not change
// places by rounding. A block has TOKENS tokens and computes their logits for 64 experts at a time; then each
// warp chooses for some of the tokens. Lanes take every 32nd expert. A row is read once for the maximum and once
// more for the sum and for each choice, from the first-level cache: with a few hundred experts, keeping it in
// registers would gain nothing that can be seen beside the launch.
//
// Launch: THREADS threads, ceil(n_tokens / TOKENS) blocks, no dynamic shared memory.
#include "exact.h"

constexpr unsigned THREADS = 256;
constexpr unsigned TOKENS = 32, EXPERTS = 64;
constexpr float LEAST_SUM = 1.1920929e-7f;

// What the tokens from `first` on say to all experts.
template <class T>
__device__ void multiply_all(const T* x, const float* weight, unsigned first, unsigned n_tokens, unsigned k,
                             unsigned n_experts, float* logits) {
    __shared__ ExactTiles<TOKENS, EXPERTS> tiles;
    for (unsigned expert = 0; expert < n_experts; expert += EXPERTS) {
        const auto row = [&](unsigned line, unsigned i) {
            const unsigned token = first + line;
            return token < n_tokens ? to_float(x[static_cast<size_t>(token) * k + i]) : 0.0f;
        };
        const auto col = [&](unsigned line, unsigned i) {
            const unsigned e = expert + line;
            return e < n_experts ? weight[static_cast<size_t>(e) * k + i] : 0.0f;
        };
        float sums[TOKENS / 16][EXPERTS / 16] = {};
        multiply_exact(tiles, k, row, col, sums);
#pragma unroll
        for (unsigned i = 0; i < TOKENS / 16; ++i) {
            const unsigned token = first + threadIdx.x / 16 + 16 * i;
#pragma unroll
            for (unsigned j = 0; j < EXPERTS / 16; ++j) {
                const unsigned e = expert + threadIdx.x % 16 + 16 * j;
                if (token < n_tokens && e < n_experts) {
                    logits[static_cast<size_t>(token) * n_experts + e] = sums[i][j];
                }
            }
        }
    }
}

// Whether expert `i` of probability `p` comes before expert `j` of `q`.
__device__ inline bool comes_before(float p, unsigned i, float q, unsigned j) {
    return p > q || (p == q && i < j);
}

// By a warp, for one token.
__device__ inline void choose(const float* row, unsigned n_experts, unsigned top_k, unsigned normalize,
                              unsigned* idx, float* gate) {
    float largest = -INFINITY;
    for (unsigned i = lane_idx(); i < n_experts; i += WARP) largest = fmaxf(largest, row[i]);
    largest = warp_max(largest);
    float sum = 0.0f;
    for (unsigned i = lane_idx(); i < n_experts; i += WARP) sum += expf(row[i] - largest);
    sum = warp_sum(sum);

    // Choices are in the order of comes_before: each is the first of those that come behind the last one.
    float last_p = INFINITY, of_chosen = 0.0f, own_p = 0.0f;
    unsigned last = 0, own = 0;
    for (unsigned k = 0; k < top_k; ++k) {
        // What is not a number is never more probable than this, so that some expert is always chosen.
        float best_p = -1.0f;
        unsigned best = 0;
        for (unsigned i = lane_idx(); i < n_experts; i += WARP) {
            const float p = expf(row[i] - largest) / sum;
            const bool is_free = comes_before(last_p, last, p, i);
            if (is_free && comes_before(p, i, best_p, best)) best_p = p, best = i;
        }
        for (unsigned step = WARP / 2; step > 0; step /= 2) {
            const float p = __shfl_xor_sync(ALL_LANES, best_p, step);
            const unsigned i = __shfl_xor_sync(ALL_LANES, best, step);
            if (comes_before(p, i, best_p, best)) best_p = p, best = i;
        }
        last_p = best_p, last = best;
        const float p = best_p >= 0.0f ? best_p : NAN;
        of_chosen += p;
        if (lane_idx() == k) own_p = p, own = best;
    }
    const float divisor = normalize ? fmaxf(of_chosen, LEAST_SUM) : 1.0f;
    if (lane_idx() < top_k) {
        idx[lane_idx()] = own;
        gate[lane_idx()] = own_p / divisor;
    }
}

template <class T>
__device__ void router_of(const T* x, const float* weight, unsigned n_tokens, unsigned k, unsigned n_experts,
                          unsigned top_k, unsigned normalize, float* logits, unsigned* idx, float* gate) {
    const unsigned first = blockIdx.x * TOKENS;
    multiply_all(x, weight, first, n_tokens, k, n_experts, logits);
    // Logits are read by others than wrote them.
    __syncthreads();
    const unsigned end = min(first + TOKENS, n_tokens);
    for (size_t token = first + warp_idx(); token < end; token += THREADS / WARP) {
        const size_t at = token * top_k;
        choose(logits + token * n_experts, n_experts, top_k, normalize, idx + at, gate + at);
    }
}

// Told of THREADS, the compiler spills registers for the sake of more blocks at a time.
#define DEFINE(name, T)                                                                              \
    extern "C" __global__ void router_##name(                                                        \
        const T* x, const float* weight, unsigned n_tokens, unsigned k, unsigned n_experts,          \
        unsigned top_k, unsigned normalize, float* logits, unsigned* idx, float* gate) {             \
        router_of<T>(x, weight, n_tokens, k, n_experts, top_k, normalize, logits, idx, gate);        \
    }
FOR_EACH_TYPE(DEFINE)
#undef DEFINE

KERNEL(router_f32)
KERNEL(router_bf16)
KERNEL(router_f16)
