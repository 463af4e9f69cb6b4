// grouped_gemm.cu on Hopper's own instructions: the same equation and arguments, and the address of W's tensor map.
// It has not run on a GPU yet: emulation checks it, with wgmma, barriers and tensor maps as they are documented.
//
//   out[i] = activation(x[row(i)] · W[e]ᵀ + bias[e]) ⊙ times[i] + plus[i]     offsets[e] <= i < offsets[e + 1]
//   row(i) = assignment[i] / top_k, or i where assignment is null
//
// map: of W as a matrix [n_experts · n, k] in boxes of 128 rows x 64 columns with 128-byte swizzle, 64 bytes aligned
// in global memory; weight itself is not looked at. Where n is a multiple of 8, bias, times, plus and out begin at
// multiples of 16 bytes. All else is as in grouped_gemm.cu.
//
// A block stays on its multiprocessor and computes tiles of 128 rows x 256 columns (`narrow`: 128 x 128), one after
// another until none is left. Steps of 64 along k go through a ring of stages. Four warps fill it: the tensor map
// brings the columns, that is rows of W, and since rows of x are gathered, each thread copies chunks of them in the
// same layout. Eight warps empty it, four for each half of the rows, and finish the tile while the next one's
// stages are filled.
//
// Elsewhere than on sm_90a the kernels are empty. Launch: THREADS threads, SHARED_BYTES of shared memory, any number
// of blocks.
#include "hopper.h"
#include "tiles.h"

constexpr unsigned GROUP = 4 * WARP;
constexpr unsigned THREADS = 3 * GROUP;

#ifdef MOESHARD_HOPPER

constexpr unsigned ROWS = 128, STEP = LINE_BYTES / 2;
constexpr unsigned ROW_BYTES = ROWS * LINE_BYTES;

// What a warp lays out of its 16 rows before it stores them. The pitch spreads rows over banks.
constexpr unsigned PASS = 32, PITCH = PASS + 4;
constexpr unsigned PASS_BYTES = 16 * PITCH * 4;

// The stages are as many as fit, 192 KiB for both widths; then what warps lay out, then barriers.
constexpr unsigned STAGES_BYTES = 196608;
constexpr unsigned SHARED_BYTES = PATTERN_BYTES + STAGES_BYTES + 8 * PASS_BYTES + 128;
static_assert(SHARED_BYTES == 216192, "what gpu and emulation are launched with");

// 56 registers for each of 128 threads and 224 for each of 256: no more than a multiprocessor has.
constexpr unsigned FILLER_REGISTERS = 56, PRODUCT_REGISTERS = 224;
static_assert(GROUP * FILLER_REGISTERS + 2 * GROUP * PRODUCT_REGISTERS <= 65536, "registers of a multiprocessor");

template <class T>
struct MappedOperands {
    const T* x;
    const unsigned* assignment;
    const void* map;
    unsigned top_k, n, k;
};

// The parts of a block's shared memory.
template <unsigned COLS>
struct Shared {
    static constexpr unsigned COL_BYTES = COLS * LINE_BYTES;
    static constexpr unsigned STAGES = STAGES_BYTES / (ROW_BYTES + COL_BYTES);
    static_assert(STAGES * (ROW_BYTES + COL_BYTES) == STAGES_BYTES && 2 * STAGES * sizeof(Barrier) <= 128, "");

    unsigned char* base;

    __device__ explicit Shared(unsigned char* memory) {
        base = memory + (PATTERN_BYTES - shared_address(memory) % PATTERN_BYTES) % PATTERN_BYTES;
    }
    __device__ unsigned char* rows(unsigned stage) const { return base + stage * ROW_BYTES; }
    __device__ unsigned char* cols(unsigned stage) const { return rows(STAGES) + stage * COL_BYTES; }
    __device__ float* pass(unsigned warp) const {
        return reinterpret_cast<float*>(base + STAGES_BYTES + warp * PASS_BYTES);
    }
    // Over when a stage is filled: by four warps, and by the copies that one thread starts.
    __device__ Barrier* full(unsigned stage) const { return reinterpret_cast<Barrier*>(pass(8)) + stage; }
    // Over when none of eight warps reads it any more.
    __device__ Barrier* empty(unsigned stage) const { return full(STAGES) + stage; }

    __device__ void init_barriers() const {
        for (unsigned stage = 0; stage < STAGES; ++stage) {
            init_barrier(full(stage), 4 + 1);
            init_barrier(empty(stage), 8);
        }
        fence_barriers();
    }
};

// Each of the threads that fill copies the same chunk of every LINES-th row.
constexpr unsigned LINES = GROUP / LINE_CHUNKS;
constexpr unsigned NONE = 0xffffffffu;
struct Lines {
    unsigned of[ROWS / LINES];
};

// Rows of x that this thread copies, NONE for those that are not there.
template <class T>
__device__ Lines lines_of(const MappedOperands<T>& op, const Tile& tile) {
    Lines lines;
#pragma unroll
    for (unsigned i = 0; i < ROWS / LINES; ++i) {
        const unsigned row = tile.first_row + threadIdx.x / LINE_CHUNKS + i * LINES;
        lines.of[i] = NONE;
        if (row < tile.end_row) lines.of[i] = source_row(op.assignment, op.top_k, row);
    }
    return lines;
}

template <class T>
__device__ void copy_rows(const MappedOperands<T>& op, const Lines& lines, unsigned step, unsigned char* to) {
    const unsigned line = threadIdx.x / LINE_CHUNKS, chunk = threadIdx.x % LINE_CHUNKS;
    const unsigned k = step * STEP + chunk * PER_CHUNK;
#pragma unroll
    for (unsigned i = 0; i < ROWS / LINES; ++i) {
        const bool is_there = lines.of[i] != NONE && k < op.k;
        const T* from = op.x + (is_there ? static_cast<size_t>(lines.of[i]) * op.k + k : 0);
        copy_async(to + swizzled(line + i * LINES, chunk), from, is_there);
    }
}

// Fills stages. What a thread copies itself is handed over some steps later, so that copies of several steps are
// under way. No later than two steps before the ring is round: a stage is emptied only when the product of the one
// behind it has begun, so otherwise both sides would wait for each other.
template <class T, unsigned COLS>
__device__ void fill(const MappedOperands<T>& op, const Groups& groups, const Shared<COLS>& shared) {
    constexpr unsigned STAGES = Shared<COLS>::STAGES, UNDER_WAY = STAGES - 2;
    Ring<STAGES> next, oldest;
    unsigned n_under_way = 0;
    const auto hand_over = [&] {
        fence_for_products();
        __syncwarp();
        if (lane_idx() == 0) arrive(shared.full(oldest.stage));
        oldest.go_on();
    };
    const unsigned n_steps = (op.k + STEP - 1) / STEP;
    TileFinder<ROWS, COLS> finder;
    Tile tile;
    if (threadIdx.x == 0) acquire_map(op.map);
    for (unsigned idx = blockIdx.x; finder.find(idx, groups, op.n, tile); idx += gridDim.x) {
        const Lines lines = lines_of(op, tile);
        for (unsigned step = 0; step < n_steps; ++step) {
            wait_for_phase(shared.empty(next.stage), next.parity ^ 1);
            if (threadIdx.x == 0) {
                Barrier* full = shared.full(next.stage);
                arrive_expecting(full, Shared<COLS>::COL_BYTES);
                // Beyond the expert's columns are those of the next one: computed, and not stored.
                const unsigned first = tile.expert * op.n + tile.first_col;
                for (unsigned col = 0; col < COLS; col += BOX_ROWS) {
                    copy_box(shared.cols(next.stage) + col * LINE_BYTES, op.map, step * STEP, first + col, full);
                }
            }
            copy_rows(op, lines, step, shared.rows(next.stage));
            end_group();
            next.go_on();
            if (n_under_way == UNDER_WAY) {
                wait_for_groups<UNDER_WAY>();
                hand_over();
            } else {
                ++n_under_way;
            }
        }
    }
    wait_for_groups<0>();
    for (; n_under_way > 0; --n_under_way) hand_over();
}

// Finishes and stores a warp's 16 rows of a tile. Sums go through shared memory, some columns at a time, so that a
// lane has eight neighbours of a row.
template <class T, unsigned COLS>
__device__ void store_rows(const float (&sums)[COLS / 2], float* pass, const Tile& tile, unsigned first_row,
                           const Finish<T>& finish, T* out) {
    const unsigned thread = threadIdx.x % GROUP, lane = lane_idx();
    if (first_row >= tile.end_row) return;
#pragma unroll 1
    for (unsigned p = 0; p < COLS / PASS && tile.first_col + p * PASS < finish.n; ++p) {
        // What the pass before has laid out is read.
        __syncwarp();
        // Registers have no index: each pass has its own stores.
#pragma unroll
        for (unsigned q = 0; q < COLS / PASS; ++q) {
            if (q != p) continue;
#pragma unroll
            for (unsigned i = q * PASS / 2; i < (q + 1) * PASS / 2; i += 2) {
                const unsigned at = sum_row(thread, i) % 16 * PITCH + sum_col(thread, i) % PASS;
                *reinterpret_cast<float2*>(pass + at) = float2{sums[i], sums[i + 1]};
            }
        }
        __syncwarp();
        const unsigned col = lane % 4 * 8;
#pragma unroll 1
        for (unsigned line = lane / 4; line < 16; line += WARP / 4) {
            if (first_row + line >= tile.end_row) break;
            store_eight(finish, pass + line * PITCH + col, tile.expert, first_row + line,
                        tile.first_col + p * PASS + col, out);
        }
    }
}

// Empties stages: the sums of this group's half of a tile's rows.
template <class T, unsigned COLS>
__device__ void multiply(unsigned n_steps, unsigned group, const Shared<COLS>& shared, Ring<Shared<COLS>::STAGES>& next,
                         float (&sums)[COLS / 2]) {
    unsigned before = 0;
    const auto release = [&] {
        if (lane_idx() == 0) arrive(shared.empty(before));
    };
    for (unsigned step = 0; step < n_steps; ++step) {
        wait_for_phase(shared.full(next.stage), next.parity);
        const unsigned rows = shared_address(shared.rows(next.stage)) + group * ROW_BYTES / 2;
        const unsigned long long a = descriptor(rows);
        const unsigned long long b = descriptor(shared_address(shared.cols(next.stage)));
        begin_products();
#pragma unroll
        for (unsigned k = 0; k < STEP; k += 16) start_product<T>(sums, advance(a, k), advance(b, k), step + k > 0);
        end_products();
        // The step before is done; this one goes on.
        wait_for_products<1>(sums);
        if (step > 0) release();
        before = next.stage;
        next.go_on();
    }
    wait_for_products<0>(sums);
    release();
}

template <class T, unsigned COLS>
__device__ void grouped_gemm_hopper_of(const MappedOperands<T>& op, const Groups& groups, const Finish<T>& finish, T* out) {
    DYNAMIC_SHARED(float4, memory);
    const Shared<COLS> shared(reinterpret_cast<unsigned char*>(memory));
    if (threadIdx.x == 0) shared.init_barriers();
    __syncthreads();
    if (threadIdx.x < GROUP) {
        give_registers_up_to<FILLER_REGISTERS>();
        fill(op, groups, shared);
        return;
    }
    take_registers_up_to<PRODUCT_REGISTERS>();
    const unsigned warp = warp_idx() - GROUP / WARP, n_steps = (op.k + STEP - 1) / STEP;
    Ring<Shared<COLS>::STAGES> next;
    TileFinder<ROWS, COLS> finder;
    Tile tile;
    for (unsigned idx = blockIdx.x; finder.find(idx, groups, op.n, tile); idx += gridDim.x) {
        float sums[COLS / 2];
        multiply<T, COLS>(n_steps, warp / 4, shared, next, sums);
        store_rows<T, COLS>(sums, shared.pass(warp), tile, tile.first_row + 16 * warp, finish, out);
    }
}

#define BODY(T, cols)                                               \
    const MappedOperands<T> op{x, assignment, map, top_k, n, k};          \
    const Groups groups{offsets, n_rows, n_experts};                \
    const Finish<T> finish{bias, activation, times, plus, n};       \
    grouped_gemm_hopper_of<T, cols>(op, groups, finish, out);

#else
#define BODY(T, cols)
#endif

#define DEFINE(name, T, cols)                                                                           \
    extern "C" __global__ void __launch_bounds__(THREADS, 1) name(                                      \
        GROUPED_GEMM_PARAMETERS(T), const void* map) {                                                  \
        BODY(T, cols)                                                                                   \
    }
DEFINE(grouped_gemm_hopper_bf16, bf16, 256)
DEFINE(grouped_gemm_hopper_f16, f16, 256)
DEFINE(grouped_gemm_hopper_narrow_bf16, bf16, 128)
DEFINE(grouped_gemm_hopper_narrow_f16, f16, 128)
#undef DEFINE
#undef BODY

KERNEL(grouped_gemm_hopper_bf16)
KERNEL(grouped_gemm_hopper_f16)
KERNEL(grouped_gemm_hopper_narrow_bf16)
KERNEL(grouped_gemm_hopper_narrow_f16)
