// Capacity: assignments that find their expert full are dropped.
//
//   idx[t, k] = DROPPED where `capacity` assignments of the same segment to the same expert come before it
//   First choices (k = 0) of all tokens of a segment come before second ones, each in the order of tokens.
//
// idx: u32 [n_tokens, top_k], in place, each below n_experts or DROPPED (which takes no room); segments: u32
// [n_segments + 1], where segments of tokens begin; n_dropped: u64, to which the number of those that are
// dropped is added, or null.
//
// A block a segment. Launch: THREADS threads, n_segments blocks, (WARPS + 1) · n_experts = 9 · n_experts words of
// shared memory.
#include "queues.h"

constexpr unsigned THREADS = Queues::THREADS;

extern "C" __global__ void limit(unsigned* idx, const unsigned* segments, unsigned top_k, unsigned n_experts,
                                 unsigned capacity, unsigned long long* n_dropped) {
    DYNAMIC_SHARED(unsigned, shared);
    Queues queues(shared, n_experts);
    __syncthreads();
    const unsigned start = segments[blockIdx.x], end = segments[blockIdx.x + 1];
    // Of this warp.
    unsigned n = 0;
    for (unsigned k = 0; k < top_k; ++k) {
        for (unsigned first = start; first < end; first += THREADS) {
            const size_t token = first + threadIdx.x;
            const unsigned e = token < end ? idx[token * top_k + k] : DROPPED;
            // Who is dropped is given a number too; whoever comes later finds the expert full as well.
            const bool is_full = queues.join(e) >= capacity && e < n_experts;
            if (is_full) idx[token * top_k + k] = DROPPED;
            n += __popc(__ballot_sync(ALL_LANES, is_full));
        }
    }
    if (n_dropped != nullptr && n > 0 && lane_idx() == 0) atomicAdd(n_dropped, static_cast<unsigned long long>(n));
}
KERNEL(limit)
