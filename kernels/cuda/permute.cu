// Assignments of tokens to experts, sorted by expert: a stable counting sort, without atomics that
// would make the order depend on chance.
//
//   offsets[e] = number of assignments to experts first .. first + e
//   place[a] = where assignment a lies in the sorted order, DROPPED if it is dropped
//   assignment[place[a]] = a
//
// Of the experts `first` .. first + n_experts, which are those that this rank has; assignments to others are
// dropped here.
//
// idx: u32 [n_assignments], experts or DROPPED; offsets: u32 [n_experts + 1]; place, assignment: u32
// [n_assignments]; kept: u64, to which is added how many of the first *n_real assignments are to these experts
// (the others belong to rows of padding); counts: u32 [n_chunks, n_experts], working memory, with
// n_chunks = max(1, ceil(n_assignments / CHUNK)). Of `assignment`, offsets[n_experts] rows are written.
//
// Two launches whatever the routing, of THREADS threads and n_chunks blocks: `count`, with n_experts words of
// shared memory, and `place`, with (WARPS + 1) · n_experts = 9 · n_experts words. Nothing is read back by the
// host. Each block of `place` adds up the counts by itself instead of waiting for one more launch: for 118 chunks of
// 256 experts it reads 121 kB from the second-level cache.
#include "queues.h"

constexpr unsigned THREADS = Queues::THREADS, WARPS = Queues::WARPS;
// Assignments of a block.
constexpr unsigned CHUNK = 1024;
// Counts that a thread fetches before it waits for them.
constexpr unsigned AT_ONCE = 16;

__device__ inline unsigned n_chunks_of(unsigned n_assignments) {
    return max((n_assignments + CHUNK - 1) / CHUNK, 1u);
}

// How many assignments of each chunk go to each expert.
// Shared: u32 [n_experts].
extern "C" __global__ void count(const unsigned* __restrict__ idx, unsigned n_assignments,
                                 unsigned first, unsigned n_experts,
                                 const unsigned* __restrict__ n_real, unsigned* __restrict__ counts,
                                 unsigned long long* kept) {
    DYNAMIC_SHARED(unsigned, of_expert);
    if (blockIdx.x >= n_chunks_of(n_assignments)) return;
    for (unsigned e = threadIdx.x; e < n_experts; e += THREADS) of_expert[e] = 0;
    __syncthreads();
    const unsigned end = min((blockIdx.x + 1) * CHUNK, n_assignments);
    unsigned n_kept = 0;
    for (unsigned a = blockIdx.x * CHUNK + threadIdx.x; a < end; a += THREADS) {
        const unsigned e = idx[a] - first;  // Wraps around, beyond n_experts.
        if (e >= n_experts) continue;
        // A sum of ones does not depend on their order.
        atomicAdd(&of_expert[e], 1u);
        n_kept += a < *n_real;
    }
    n_kept = warp_sum(n_kept);
    if (n_kept > 0 && lane_idx() == 0) atomicAdd(kept, static_cast<unsigned long long>(n_kept));
    __syncthreads();
    unsigned* to = counts + static_cast<size_t>(blockIdx.x) * n_experts;
    for (unsigned e = threadIdx.x; e < n_experts; e += THREADS) to[e] = of_expert[e];
}
KERNEL(count)

// For each expert, how many assignments earlier chunks have (added to `earlier`) and all chunks (to `all`).
__device__ inline void add_counts(const unsigned* counts, unsigned n_chunks, unsigned n_experts,
                                  unsigned* earlier, unsigned* all) {
    for (unsigned e = lane_idx(); e < n_experts; e += WARP) {
        unsigned n_earlier = 0, n_all = 0;
        for (unsigned first = warp_idx(); first < n_chunks; first += WARPS * AT_ONCE) {
#pragma unroll
            for (unsigned i = 0; i < AT_ONCE; ++i) {
                const unsigned c = first + i * WARPS;
                const unsigned n = c < n_chunks ? counts[static_cast<size_t>(c) * n_experts + e] : 0;
                n_all += n;
                n_earlier += c < blockIdx.x ? n : 0;
            }
        }
        // A sum of integers does not depend on their order.
        atomicAdd(&earlier[e], n_earlier);
        atomicAdd(&all[e], n_all);
    }
}

// Adds to starts[e] how many assignments experts below e have, and makes `all` zero again; block 0 writes
// `offsets`.
__device__ inline void add_offsets(unsigned n_experts, unsigned* all, unsigned* starts, unsigned* offsets) {
    __shared__ unsigned of_warp[WARPS];
    unsigned before = 0;
    for (unsigned first = 0; first < n_experts; first += THREADS) {
        const unsigned e = first + threadIdx.x;
        const unsigned own = e < n_experts ? all[e] : 0;
        const unsigned sum = warp_prefix_sum(own);
        if (lane_idx() == WARP - 1) of_warp[warp_idx()] = sum;
        __syncthreads();
        unsigned offset = before + sum - own;
        for (unsigned w = 0; w < WARPS; ++w) {
            if (w < warp_idx()) offset += of_warp[w];
            before += of_warp[w];
        }
        if (e < n_experts) {
            all[e] = 0;
            starts[e] += offset;
            if (blockIdx.x == 0) offsets[e] = offset;
        }
        // Before the next experts overwrite what others still read.
        __syncthreads();
    }
    if (blockIdx.x == 0 && threadIdx.x == 0) offsets[n_experts] = before;
}

extern "C" __global__ void place(const unsigned* __restrict__ idx, unsigned n_assignments,
                                 unsigned first, unsigned n_experts,
                                 const unsigned* __restrict__ counts, unsigned* __restrict__ offsets,
                                 unsigned* __restrict__ place, unsigned* __restrict__ assignment) {
    DYNAMIC_SHARED(unsigned, shared);
    const unsigned n_chunks = n_chunks_of(n_assignments);
    if (blockIdx.x >= n_chunks) return;
    Queues queues(shared, n_experts);
    __syncthreads();
    // The warps' counts are not needed yet.
    unsigned* all = queues.of_warps;
    add_counts(counts, n_chunks, n_experts, queues.next, all);
    __syncthreads();
    add_offsets(n_experts, all, queues.next, offsets);
    for (unsigned pass = 0; pass < CHUNK / THREADS; ++pass) {
        const unsigned a = blockIdx.x * CHUNK + pass * THREADS + threadIdx.x;
        const unsigned e = a < n_assignments && idx[a] != DROPPED ? idx[a] - first : DROPPED;
        const unsigned at = queues.join(e);
        if (e < n_experts) {
            place[a] = at;
            assignment[at] = a;
        } else if (a < n_assignments) {
            place[a] = DROPPED;
        }
    }
}
KERNEL(place)
