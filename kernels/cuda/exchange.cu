// Rows from all ranks and sums over ranks, by reading each other's memory: ranks on one GPU, or on GPUs that reach
// each other. It has not run on a GPU yet.
//
//   gather: out[starts[p] + i] = rows[p][i]                                  0 <= i < starts[p + 1] - starts[p]
//   sum:    out[i] = Σ_p rows[p][starts[rank] + i], in the order of ranks    0 <= i < starts[rank + 1] - starts[rank]
//
// A rank publishes its rows in a buffer of its own (`publish`), meets the others (`meet`), and reads theirs
// (`gather` or `sum`). A buffer has two halves, used in turn: who writes to a half for the second time has met the
// others since, and they were done reading before they came.
//
// state: u64 [2], this rank's: how often it has met the others, and 1 + the rank that it has waited for in vain (and
// HAS_LEFT if that will never come); inboxes: u64 [world], where each rank's inbox is, u64 [2, world]: how often rank p
// has come, and whether it has left; buffers: u64 [world], where each rank's buffer is, of 2 · half bytes. Counts are
// in `starts`, u32 [world + 1], so that a graph serves any; rows of `out` beyond the last, up to n_padded, are `fill`
// or zero.
//
// Where a library has brought all ranks' rows here, they lie `stride` bytes apart from `buffers` on, and half is zero:
// `gather` as above, after `publish`; `sum` of rows that are for this rank alone, after the others' were taken apart
// for them (`spread`).
//
// Nothing here waits but `meet`, in one warp: other ranks' kernels find room on the same GPU. After a rank has waited
// in vain it waits for nobody any more, and what it computes is worthless; whoever reads a result looks at `state`.
//
// `gather_once` and `sum_once` do all of it in one block, for batches so small that launches take longer than rows.
//
// Launch: any number of threads and blocks; `meet` one block of a warp, so that there are 32 ranks at most; those at
// once one block. No dynamic shared memory.
#include "peers.h"
#include "tiles.h"

using u64 = unsigned long long;

// Of those that do all of it at once.
constexpr unsigned ONCE_THREADS = 1024;
constexpr u64 HAS_LEFT = 1ull << 32;

// Which half of its buffer a rank writes to before it has met the others for the `n`-th time, and is read after.
__device__ inline u64 half_of(u64 n, u64 half_bytes) { return n % 2 * half_bytes; }

// Where the rows of a rank are: at an address of its own, or one after the other.
__device__ inline const unsigned char* rows_of(const u64* buffers, u64 stride, unsigned peer) {
    if (stride == 0) return reinterpret_cast<const unsigned char*>(buffers[peer]);
    return reinterpret_cast<const unsigned char*>(buffers) + peer * stride;
}

// How a rank meets the others.
struct Meeting {
    const u64* inboxes;
    u64* state;
    unsigned rank, world;
    u64 patience;
};

// Where all ranks' rows are, and how many each has.
struct Rows {
    const u64* buffers;
    u64 stride, half_bytes;
    const u64* state;
    const unsigned* starts;
    unsigned world;
};

// Copies n_words words of four bytes to this rank's buffer, from `offset` bytes on; a multiple of 16.
__device__ inline void publish(const unsigned* from, u64 n_words, unsigned char* buffer, u64 half_bytes, u64 offset,
                               const u64* state) {
    unsigned char* to = buffer + half_of(state[0] + 1, half_bytes) + offset;
    const u64 first = static_cast<u64>(blockIdx.x) * blockDim.x + threadIdx.x;
    const u64 step = static_cast<u64>(gridDim.x) * blockDim.x, n_fours = n_words / 4;
    const uint4* from_fours = reinterpret_cast<const uint4*>(from);
    for (u64 i = first; i < n_fours; i += step) reinterpret_cast<uint4*>(to)[i] = from_fours[i];
    for (u64 i = 4 * n_fours + first; i < n_words; i += step) reinterpret_cast<unsigned*>(to)[i] = from[i];
}

// Tells all ranks that this one has come, and waits until all have, for `patience` nanoseconds at most. One warp.
__device__ inline void meet(const Meeting& with) {
    const unsigned peer = lane_idx();
    const u64 n = with.state[0] + 1;
    const bool has_failed = with.state[1] != 0, is_rank = peer < with.world;
    // All are told before anybody is waited for.
    if (is_rank) {
        u64* inbox = reinterpret_cast<u64*>(with.inboxes[peer]);
        store_for_peers(inbox + (has_failed ? with.world : 0) + with.rank, has_failed ? 1 : n);
    }
    __syncwarp();
    bool is_missing = false, has_left = false;
    if (is_rank && !has_failed) {
        const u64* inbox = reinterpret_cast<const u64*>(with.inboxes[with.rank]);
        const u64 start = nanoseconds();
        do {
            // It may have come before it left.
            has_left = load_from_peers(inbox + with.world + peer) != 0;
            is_missing = load_from_peers(inbox + peer) < n;
            if (is_missing) rest();
        } while (is_missing && !has_left && nanoseconds() - start < with.patience);
    }
    const unsigned missing = __ballot_sync(ALL_LANES, is_missing);
    const unsigned gone = __ballot_sync(ALL_LANES, is_missing && has_left);
    if (peer != 0) return;
    with.state[0] = n;
    if (missing == 0) return;
    // One that has left is why others do not come.
    const unsigned blamed = gone != 0 ? gone : missing;
    with.state[1] = 1 + __popc(~blamed & (blamed - 1)) + (gone != 0 ? HAS_LEFT : 0);
}

// The rows of all ranks, of row_words words each, from `offset` bytes on.
__device__ inline void gather(const Rows& of, u64 offset, unsigned row_words, unsigned n_padded, unsigned fill,
                              unsigned* out) {
    const u64 half = half_of(of.state[0], of.half_bytes) + offset;
    const bool is_fours = row_words % 4 == 0;
    const u64 words = is_fours ? row_words / 4 : row_words;
    const u64 step = static_cast<u64>(gridDim.x) * blockDim.x;
    for (u64 i = static_cast<u64>(blockIdx.x) * blockDim.x + threadIdx.x; i < n_padded * words; i += step) {
        const unsigned row = static_cast<unsigned>(i / words);
        unsigned peer = 0;
        while (peer < of.world && row >= of.starts[peer + 1]) ++peer;
        const bool is_there = peer < of.world;
        const u64 from = is_there ? i - of.starts[peer] * words : 0;
        const unsigned char* rows = is_there ? rows_of(of.buffers, of.stride, peer) + half : nullptr;
        if (is_fours) {
            uint4 four = {fill, fill, fill, fill};
            if (is_there) four = reinterpret_cast<const uint4*>(rows)[from];
            reinterpret_cast<uint4*>(out)[i] = four;
        } else {
            out[i] = is_there ? reinterpret_cast<const unsigned*>(rows)[from] : fill;
        }
    }
}

// This rank's rows, summed over ranks in f32.
template <class T>
__device__ void sum(const Rows& of, unsigned rank, unsigned n_cols, unsigned n_padded, T* out) {
    // Rows of types of 16 bits begin at multiples of 16 bytes.
    constexpr unsigned N = sizeof(T) == 2 ? 8 : 1;
    struct alignas(N * sizeof(T)) Piece {
        T of[N];
    };
    const u64 pieces = n_cols / N, n_rows = of.starts[rank + 1] - of.starts[rank];
    const u64 first = of.stride == 0 ? of.starts[rank] * pieces : 0, half = half_of(of.state[0], of.half_bytes);
    const u64 step = static_cast<u64>(gridDim.x) * blockDim.x;
    for (u64 i = static_cast<u64>(blockIdx.x) * blockDim.x + threadIdx.x; i < n_padded * pieces; i += step) {
        float sums[N] = {};
        if (i < n_rows * pieces) {
            for (unsigned peer = 0; peer < of.world; ++peer) {
                const Piece* rows = reinterpret_cast<const Piece*>(rows_of(of.buffers, of.stride, peer) + half);
                const Piece piece = rows[first + i];
#pragma unroll
                for (unsigned j = 0; j < N; ++j) sums[j] += to_float(piece.of[j]);
            }
        }
        Piece result;
#pragma unroll
        for (unsigned j = 0; j < N; ++j) result.of[j] = from_float<T>(sums[j]);
        reinterpret_cast<Piece*>(out)[i] = result;
    }
}

// Meets the others when all of this block is written; all of theirs can be read then.
__device__ inline void meet_at_once(const Meeting& with) {
    __syncthreads();
    if (warp_idx() == 0) meet(with);
    __syncthreads();
}

extern "C" __global__ void exchange_publish(const unsigned* from, u64 n_words, unsigned char* buffer, u64 half_bytes,
                                            u64 offset, const u64* state) {
    publish(from, n_words, buffer, half_bytes, offset, state);
}
KERNEL(exchange_publish)

extern "C" __global__ void exchange_meet(const u64* inboxes, u64* state, unsigned rank, unsigned world, u64 patience) {
    meet({inboxes, state, rank, world, patience});
}
KERNEL(exchange_meet)

extern "C" __global__ void exchange_gather(const u64* buffers, u64 stride, u64 half_bytes, u64 offset,
                                           const u64* state, const unsigned* starts, unsigned world,
                                           unsigned row_words, unsigned n_padded, unsigned fill, unsigned* out) {
    gather({buffers, stride, half_bytes, state, starts, world}, offset, row_words, n_padded, fill, out);
}
KERNEL(exchange_gather)

// Two arrays with rows of the same size, the second `offset` bytes behind the first, filled with zero; or one, if
// `second` is null.
extern "C" __global__ void __launch_bounds__(ONCE_THREADS) exchange_gather_once(const unsigned* from, const unsigned* second, u64 n_words,
                                                u64 offset, unsigned char* buffer, u64 half_bytes, u64* state,
                                                const u64* inboxes, unsigned rank, unsigned world, u64 patience,
                                                const u64* buffers, const unsigned* starts, unsigned row_words,
                                                unsigned n_padded, unsigned fill, unsigned* out,
                                                unsigned* second_out) {
    publish(from, n_words, buffer, half_bytes, 0, state);
    if (second != nullptr) publish(second, n_words, buffer, half_bytes, offset, state);
    meet_at_once({inboxes, state, rank, world, patience});
    const Rows of{buffers, 0, half_bytes, state, starts, world};
    gather(of, 0, row_words, n_padded, fill, out);
    if (second != nullptr) gather(of, offset, row_words, n_padded, 0, second_out);
}
KERNEL(exchange_gather_once)

#define DEFINE(name, T)                                                                                           \
    extern "C" __global__ void exchange_sum_##name(const u64* buffers, u64 stride, u64 half_bytes,                \
                                                   const u64* state, const unsigned* starts, unsigned rank,       \
                                                   unsigned world, unsigned n_cols, unsigned n_padded, T* out) {  \
        sum<T>({buffers, stride, half_bytes, state, starts, world}, rank, n_cols, n_padded, out);                 \
    }                                                                                                             \
    extern "C" __global__ void __launch_bounds__(ONCE_THREADS) exchange_sum_once_##name(                          \
        const unsigned* from, u64 n_words, unsigned char* buffer, u64 half_bytes, u64* state, const u64* inboxes, \
        unsigned rank, unsigned world, u64 patience, const u64* buffers, const unsigned* starts, unsigned n_cols, \
        unsigned n_padded, T* out) {                                                                              \
        publish(from, n_words, buffer, half_bytes, 0, state);                                                     \
        meet_at_once({inboxes, state, rank, world, patience});                                                    \
        sum<T>({buffers, 0, half_bytes, state, starts, world}, rank, n_cols, n_padded, out);                      \
    }
FOR_EACH_TYPE(DEFINE)
#undef DEFINE

KERNEL(exchange_sum_f32)
KERNEL(exchange_sum_bf16)
KERNEL(exchange_sum_f16)
KERNEL(exchange_sum_once_f32)
KERNEL(exchange_sum_once_bf16)
KERNEL(exchange_sum_once_f16)

// Takes rows for all ranks apart: those of rank p, of row_words words each, begin p · slot bytes behind `to`.
extern "C" __global__ void exchange_spread(const unsigned* from, const unsigned* starts, unsigned world,
                                           unsigned row_words, u64 slot, unsigned char* to) {
    const u64 step = static_cast<u64>(gridDim.x) * blockDim.x, n_words = static_cast<u64>(starts[world]) * row_words;
    for (u64 i = static_cast<u64>(blockIdx.x) * blockDim.x + threadIdx.x; i < n_words; i += step) {
        const unsigned row = static_cast<unsigned>(i / row_words);
        unsigned peer = 0;
        while (row >= starts[peer + 1]) ++peer;
        reinterpret_cast<unsigned*>(to + peer * slot)[i - static_cast<u64>(starts[peer]) * row_words] = from[i];
    }
}
KERNEL(exchange_spread)
