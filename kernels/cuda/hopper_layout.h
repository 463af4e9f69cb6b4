// Where the operands and results of Hopper's tensor cores lie, and how a ring of stages goes round: arithmetic
// alone, the same on the GPU and on the CPU.
#pragma once
#include "common.h"

// Of an operand in shared memory: 64 elements of 16 bits along k are one row.
constexpr unsigned LINE_BYTES = 128;
// Chunks of 16 bytes of a row. Those of eight rows are exchanged in a pattern that then repeats.
constexpr unsigned LINE_CHUNKS = LINE_BYTES / 16;
constexpr unsigned PATTERN_BYTES = 8 * LINE_BYTES;

// Where a chunk of a row lies, from the operand's beginning, which is a multiple of PATTERN_BYTES: 128-byte
// swizzle, as copies with a tensor map write it and as wgmma reads it.
__device__ constexpr unsigned swizzled(unsigned row, unsigned chunk) {
    return row * LINE_BYTES + (chunk ^ row % LINE_CHUNKS) * 16;
}

// What wgmma is told of an operand that begins at this address of shared memory. Fields count 16 bytes.
//   bits 0..13   start address
//   bits 16..29  offset between rows of chunks along k: not looked at with this swizzle
//   bits 32..45  offset between groups of eight rows
//   bits 49..51  0: the pattern begins at a multiple of PATTERN_BYTES
//   bits 62..63  1: 128-byte swizzle
__device__ constexpr unsigned long long descriptor(unsigned address) {
    return (address & 0x3ffff) >> 4 | 1ull << 16 | static_cast<unsigned long long>(PATTERN_BYTES >> 4) << 32 | 1ull << 62;
}

// The same so many elements of 16 bits further along k. The pattern is applied to whole addresses, so that the start
// may lie within it.
__device__ constexpr unsigned long long advance(unsigned long long descriptor, unsigned k) {
    return descriptor + (k * 2 >> 4);
}

// Row and column of a product of 64 rows that register `i` of a thread of a group of four warps holds.
__device__ constexpr unsigned sum_row(unsigned thread, unsigned i) {
    return thread / 32 * 16 + thread % 32 / 4 + i / 2 % 2 * 8;
}
__device__ constexpr unsigned sum_col(unsigned thread, unsigned i) { return i / 4 * 8 + thread % 4 * 2 + i % 2; }

// Which stage of a ring is next, and which phase of its barriers.
template <unsigned STAGES>
struct Ring {
    unsigned stage = 0;
    // Of the round: the phase that whoever empties the stage waits for. Whoever fills it waits for the one before,
    // which in the first round counts as over.
    unsigned parity = 0;

    __device__ void go_on() {
        if (++stage == STAGES) stage = 0, parity ^= 1;
    }
};
