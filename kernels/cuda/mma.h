// Tensor cores from Ampere on: products of small matrices by a warp, and how their operands come from
// global memory to shared memory and from there to registers.
#pragma once
#include "types.h"

// Elements of 16 bytes, which is what is copied at a time.
constexpr unsigned PER_CHUNK = 8;

// Element `col` of row `row` of a tile of WIDTH columns in shared memory, `col` being a multiple of
// PER_CHUNK: chunks are exchanged by the row's number, so that the eight rows of a matrix lie in different
// banks (where a row has four chunks alone, two rows share them).
template <unsigned WIDTH, class T>
__device__ T* element(T* tile, unsigned row, unsigned col) {
    constexpr unsigned n_chunks = WIDTH / PER_CHUNK;
    return tile + row * WIDTH + (col / PER_CHUNK ^ row % (n_chunks < 8 ? n_chunks : 8)) * PER_CHUNK;
}

// Lanes hold parts of matrices: with g = lane / 4 and t = lane % 4,
//   a[0] = A[g][2t, 2t+1], a[1] = A[g+8][..], a[2] = A[g][2t+8, 2t+9], a[3] = A[g+8][..]     A: 16 x 16
//   b[0] = B[2t, 2t+1][g], b[1] = B[2t+8, 2t+9][g]                                             B: 16 x 8
//   d[0], d[1] = D[g][2t, 2t+1], d[2], d[3] = D[g+8][..]                                       D: 16 x 8
#ifndef MOESHARD_EMULATED

// d += a · b
template <class T>
__device__ void mma(float (&d)[4], const unsigned (&a)[4], const unsigned (&b)[2]);

#define DEFINE(T, type)                                                                              \
    template <>                                                                                      \
    __device__ inline void mma<T>(float (&d)[4], const unsigned (&a)[4], const unsigned (&b)[2]) {   \
        asm volatile("mma.sync.aligned.m16n8k16.row.col.f32." type "." type ".f32 "                 \
                     "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"               \
                     : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])                                \
                     : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));            \
    }
DEFINE(bf16, "bf16")
DEFINE(f16, "f16")
#undef DEFINE

__device__ inline unsigned shared_address(const void* at) {
    return static_cast<unsigned>(__cvta_generic_to_shared(at));
}

// Four matrices of 8 x 8 elements of 16 bits: lane l names row l % 8 of matrix l / 8, 16 bytes in shared
// memory; r[j] becomes elements 2t, 2t+1 of row g of matrix j.
__device__ inline void load_matrices(unsigned (&r)[4], const void* row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(shared_address(row)));
}

// The same of transposed matrices: r[j] becomes element g of rows 2t, 2t+1 of matrix j.
__device__ inline void load_transposed(unsigned (&r)[4], const void* row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(shared_address(row)));
}

// Starts to copy 16 bytes to shared memory; zeroes, and nothing is read, if not `is_there`.
__device__ inline void copy_async(void* to, const void* from, bool is_there) {
    const unsigned n_bytes = is_there ? 16 : 0;
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;"
                 :
                 : "r"(shared_address(to)), "l"(from), "r"(n_bytes)
                 : "memory");
}

// What was started since the last call is one group.
__device__ inline void end_group() { asm volatile("cp.async.commit_group;" ::: "memory"); }

// Waits for all groups of this thread but the last N.
template <int N>
__device__ void wait_for_groups() {
    asm volatile("cp.async.wait_group %0;" ::"n"(N) : "memory");
}

#endif
