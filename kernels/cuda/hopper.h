// What Hopper (sm_90a) does by itself: barriers in shared memory that count arrivals and bytes, copies of boxes of a
// matrix with a tensor map, and products of four warps whose operands lie in shared memory.
#pragma once
#include "hopper_layout.h"
#include "mma.h"

// Elsewhere kernels for Hopper are empty.
#if defined(MOESHARD_EMULATED) || defined(__CUDA_ARCH_FEAT_SM90_ALL)
#define MOESHARD_HOPPER
#endif

// Rows of a box; its 64 columns are LINE_BYTES.
constexpr unsigned BOX_ROWS = 128;
constexpr unsigned BOX_BYTES = BOX_ROWS * LINE_BYTES;

using Barrier = unsigned long long;

#if defined(MOESHARD_HOPPER) && !defined(MOESHARD_EMULATED)

// A phase of the barrier is over after so many arrivals, and once all bytes that were expected are there.
__device__ inline void init_barrier(Barrier* barrier, unsigned n_arrivals) {
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(shared_address(barrier)), "r"(n_arrivals) : "memory");
}

// Barriers are as initialised for whoever copies; other threads wait for the block after it.
__device__ inline void fence_barriers() {
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
    asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
}

__device__ inline void arrive(Barrier* barrier) {
    asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(shared_address(barrier)) : "memory");
}

// Arrives, and has the phase wait for so many bytes of copies.
__device__ inline void arrive_expecting(Barrier* barrier, unsigned n_bytes) {
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(shared_address(barrier)), "r"(n_bytes)
                 : "memory");
}

// Waits until the phase of this parity is over: 0 is the first one, and 1 the one before it.
__device__ inline void wait_for_phase(Barrier* barrier, unsigned parity) {
    asm volatile(
        "{\n"
        ".reg .pred is_over;\n"
        "again:\n"
        "mbarrier.try_wait.parity.shared::cta.b64 is_over, [%0], %1;\n"
        "@!is_over bra again;\n"
        "}" ::"r"(shared_address(barrier)),
        "r"(parity)
        : "memory");
}

// A tensor map that the host has written may be used by this thread.
__device__ inline void acquire_map(const void* map) {
    asm volatile("fence.proxy.tensormap::generic.acquire.sys [%0], 128;" ::"l"(map) : "memory");
}

// Starts to copy a box from column k and row `row` on; what lies beyond the matrix becomes zero. Counts BOX_BYTES.
__device__ inline void copy_box(void* to, const void* map, unsigned k, unsigned row, Barrier* barrier) {
    asm volatile(
        "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%2, %3}], [%4];" ::"r"(
            shared_address(to)),
        "l"(map), "r"(k), "r"(row), "r"(shared_address(barrier))
        : "memory");
}

// What this thread has written to shared memory is there for tensor cores, after the next barrier.
__device__ inline void fence_for_products() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }

// Registers of each thread of this group of four warps from here on.
template <unsigned N>
__device__ void give_registers_up_to() {
    asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(N));
}
template <unsigned N>
__device__ void take_registers_up_to() {
    asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(N));
}

// Before the first product of some, since when sums may have been touched.
__device__ inline void begin_products() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }

// What was started since the last call is one group.
__device__ inline void end_products() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }

// Waits for all groups but the last N; sums may be read once there is none left.
template <unsigned N, unsigned SUMS>
__device__ void wait_for_products(float (&sums)[SUMS]) {
    asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(N) : "memory");
    // The compiler must not read them before.
#pragma unroll
    for (unsigned i = 0; i < SUMS; ++i) asm volatile("" : "+f"(sums[i])::"memory");
}

#define SUMS_4(i) "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3])
#define SUMS_16(i) SUMS_4(i), SUMS_4(i + 4), SUMS_4(i + 8), SUMS_4(i + 12)
#define SUMS_64(i) SUMS_16(i), SUMS_16(i + 16), SUMS_16(i + 32), SUMS_16(i + 48)
#define NAMES_64                                                                                          \
    "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, %18, %19, %20, "     \
    "%21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, %32, %33, %34, %35, %36, %37, %38, %39, %40, " \
    "%41, %42, %43, %44, %45, %46, %47, %48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, " \
    "%61, %62, %63"
#define NAMES_128                                                                                               \
    NAMES_64                                                                                                    \
    ", %64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, %78, %79, %80, %81, %82, %83, "    \
    "%84, %85, %86, %87, %88, %89, %90, %91, %92, %93, %94, %95, %96, %97, %98, %99, %100, %101, %102, %103, "  \
    "%104, %105, %106, %107, %108, %109, %110, %111, %112, %113, %114, %115, %116, %117, %118, %119, %120, "    \
    "%121, %122, %123, %124, %125, %126, %127"

// Starts d = a · bᵀ, or d += a · bᵀ if it `adds`: a is 64 x 16, b 128 x 16 or 256 x 16, by their descriptors.
template <class T>
__device__ void start_product(float (&d)[64], unsigned long long a, unsigned long long b, bool adds);
template <class T>
__device__ void start_product(float (&d)[128], unsigned long long a, unsigned long long b, bool adds);

#define DEFINE(T, type)                                                                                            \
    template <>                                                                                                    \
    __device__ inline void start_product<T>(float (&d)[64], unsigned long long a, unsigned long long b,            \
                                            bool adds) {                                                           \
        asm volatile("{\n.reg .pred adds;\nsetp.ne.b32 adds, %66, 0;\n"                                           \
                     "wgmma.mma_async.sync.aligned.m64n128k16.f32." type "." type " {" NAMES_64                    \
                     "}, %64, %65, adds, 1, 1, 0, 0;\n}"                                                           \
                     : SUMS_64(0)                                                                                  \
                     : "l"(a), "l"(b), "r"(static_cast<unsigned>(adds)));                                          \
    }                                                                                                              \
    template <>                                                                                                    \
    __device__ inline void start_product<T>(float (&d)[128], unsigned long long a, unsigned long long b,           \
                                            bool adds) {                                                           \
        asm volatile("{\n.reg .pred adds;\nsetp.ne.b32 adds, %130, 0;\n"                                          \
                     "wgmma.mma_async.sync.aligned.m64n256k16.f32." type "." type " {" NAMES_128                   \
                     "}, %128, %129, adds, 1, 1, 0, 0;\n}"                                                         \
                     : SUMS_64(0), SUMS_64(64)                                                                     \
                     : "l"(a), "l"(b), "r"(static_cast<unsigned>(adds)));                                          \
    }
DEFINE(bf16, "bf16")
DEFINE(f16, "f16")
#undef DEFINE
#undef NAMES_128
#undef NAMES_64
#undef SUMS_64
#undef SUMS_16
#undef SUMS_4

#endif
