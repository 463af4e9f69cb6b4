// Assignments of tokens to experts, sorted by expert: a stable counting sort, without atomics that
// would make the order depend on chance.
//
//   offsets[e] = number of assignments to experts below e
//   place[a] = where assignment a lies in the sorted order, DROPPED if it is dropped
//   assignment[place[a]] = a
//
// idx: u32 [n_assignments], each below n_experts or DROPPED; offsets: u32 [n_experts + 1];
// place, assignment: u32 [n_assignments]; counts: u32 [n_chunks, n_experts], working memory, with
// n_chunks = ceil(n_assignments / CHUNK).
//
// Three launches whatever the routing: `count` (a block a chunk), `scan` (one block), `place` (a block
// a chunk). Nothing is read back by the host.
#include "common.h"

constexpr unsigned THREADS = 256;
constexpr unsigned WARPS = THREADS / WARP;
// Assignments of a block.
constexpr unsigned CHUNK = 1024;

// How many assignments of each chunk go to each expert.
// Shared: u32 [n_experts].
extern "C" __global__ void count(const unsigned* __restrict__ idx, unsigned n_assignments,
                                 unsigned n_experts, unsigned* __restrict__ counts) {
    DYNAMIC_SHARED(unsigned, of_expert);
    for (unsigned e = threadIdx.x; e < n_experts; e += THREADS) of_expert[e] = 0;
    __syncthreads();
    const unsigned end = min((blockIdx.x + 1) * CHUNK, n_assignments);
    for (unsigned a = blockIdx.x * CHUNK + threadIdx.x; a < end; a += THREADS) {
        // A sum of ones does not depend on their order.
        if (idx[a] < n_experts) atomicAdd(&of_expert[idx[a]], 1u);
    }
    __syncthreads();
    unsigned* to = counts + static_cast<size_t>(blockIdx.x) * n_experts;
    for (unsigned e = threadIdx.x; e < n_experts; e += THREADS) to[e] = of_expert[e];
}
KERNEL(count)

// Where each chunk's assignments to each expert begin, in place of their counts.
extern "C" __global__ void scan(unsigned* __restrict__ counts, unsigned n_chunks, unsigned n_experts,
                                unsigned* __restrict__ offsets) {
    __shared__ unsigned of_warp[WARPS];
    __shared__ unsigned before;
    if (threadIdx.x == 0) before = 0;
    for (unsigned first = 0; first < n_experts; first += THREADS) {
        const unsigned e = first + threadIdx.x;
        unsigned total = 0;
        for (unsigned c = 0; c < n_chunks && e < n_experts; ++c) {
            unsigned* at = counts + static_cast<size_t>(c) * n_experts + e;
            const unsigned n = *at;
            *at = total;
            total += n;
        }
        // Inclusive sums within the warp, then over warps.
        unsigned sum = total;
        for (unsigned step = 1; step < WARP; step *= 2) {
            const unsigned other = __shfl_up_sync(ALL_LANES, sum, step);
            if (lane_idx() >= step) sum += other;
        }
        if (lane_idx() == WARP - 1) of_warp[warp_idx()] = sum;
        __syncthreads();
        unsigned start = before + sum - total;
        for (unsigned w = 0; w < warp_idx(); ++w) start += of_warp[w];
        if (e < n_experts) {
            offsets[e] = start;
            for (unsigned c = 0; c < n_chunks; ++c) counts[static_cast<size_t>(c) * n_experts + e] += start;
        }
        __syncthreads();
        if (threadIdx.x == THREADS - 1) before = start + total;
        __syncthreads();
    }
    if (threadIdx.x == 0) offsets[n_experts] = before;
}
KERNEL(scan)

// Shared: u32 [WARPS + 1, n_experts].
extern "C" __global__ void place(const unsigned* __restrict__ idx, unsigned n_assignments,
                                 unsigned n_experts, const unsigned* __restrict__ starts,
                                 unsigned* __restrict__ place, unsigned* __restrict__ assignment) {
    DYNAMIC_SHARED(unsigned, shared);
    unsigned* next = shared;
    unsigned* of_warps = shared + n_experts;
    for (unsigned e = threadIdx.x; e < n_experts; e += THREADS) {
        next[e] = starts[static_cast<size_t>(blockIdx.x) * n_experts + e];
    }
    for (unsigned pass = 0; pass < CHUNK / THREADS; ++pass) {
        for (unsigned i = threadIdx.x; i < WARPS * n_experts; i += THREADS) of_warps[i] = 0;
        __syncthreads();
        const unsigned a = blockIdx.x * CHUNK + pass * THREADS + threadIdx.x;
        const unsigned e = a < n_assignments ? idx[a] : DROPPED;
        const bool is_placed = e < n_experts;
        // The lanes of this warp that go to the same expert, of which earlier ones come first.
        const unsigned alike = __match_any_sync(ALL_LANES, e);
        const unsigned rank = __popc(alike & ((1u << lane_idx()) - 1));
        if (is_placed && rank == 0) of_warps[warp_idx() * n_experts + e] = __popc(alike);
        __syncthreads();
        if (is_placed) {
            unsigned at = next[e] + rank;
            for (unsigned w = 0; w < warp_idx(); ++w) at += of_warps[w * n_experts + e];
            place[a] = at;
            assignment[at] = a;
        } else if (a < n_assignments) {
            place[a] = DROPPED;
        }
        __syncthreads();
        for (unsigned i = threadIdx.x; i < n_experts; i += THREADS) {
            for (unsigned w = 0; w < WARPS; ++w) next[i] += of_warps[w * n_experts + i];
        }
        __syncthreads();
    }
}
KERNEL(place)
