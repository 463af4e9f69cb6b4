// Assignments stand in a queue before each expert: a block lets them join in their order, without atomics that
// would make the order depend on chance.
#pragma once
#include "common.h"

struct Queues {
    static constexpr unsigned THREADS = 256, WARPS = THREADS / WARP;

    unsigned* next;      // u32 [n_experts], shared: the number that who joins next is given.
    unsigned* of_warps;  // u32 [WARPS, n_experts], shared: how many of a warp join, zero in between.
    unsigned n_experts;

    // From (WARPS + 1) · n_experts words of shared memory; all threads call it, and a barrier follows.
    __device__ Queues(unsigned* shared, unsigned n_experts)
        : next(shared), of_warps(shared + n_experts), n_experts(n_experts) {
        for (unsigned i = threadIdx.x; i < (WARPS + 1) * n_experts; i += THREADS) shared[i] = 0;
    }

    // The number that this thread's assignment to `expert` is given, threads of the block in order; nothing
    // that counts, and nobody joins, from n_experts on. All threads call it.
    __device__ unsigned join(unsigned expert) {
        const bool is_there = expert < n_experts;
        // The lanes of this warp that join the same queue, of which earlier ones come first.
        const unsigned alike = __match_any_sync(ALL_LANES, expert);
        const unsigned ahead = __popc(alike & ((1u << lane_idx()) - 1));
        const bool is_first = is_there && ahead == 0;
        unsigned* of_warp = of_warps + warp_idx() * n_experts;
        if (is_first) of_warp[expert] = __popc(alike);
        __syncthreads();
        unsigned number = 0;
        if (is_there) {
            number = next[expert] + ahead;
            for (unsigned w = 0; w < warp_idx(); ++w) number += of_warps[w * n_experts + expert];
        }
        __syncthreads();
        if (is_first) {
            // A sum of integers does not depend on their order.
            atomicAdd(&next[expert], of_warp[expert]);
            of_warp[expert] = 0;
        }
        // Before other lanes of this warp join the same queue.
        __syncwarp();
        return number;
    }
};
