// Words that other ranks write while a kernel runs, on this GPU or on another.
#pragma once
#include "common.h"

#ifndef MOESHARD_EMULATED

// Everything this thread knows to be written is there for whoever sees the word.
__device__ inline void store_for_peers(unsigned long long* at, unsigned long long word) {
    asm volatile("st.release.sys.global.u64 [%0], %1;" : : "l"(at), "l"(word) : "memory");
}

__device__ inline unsigned long long load_from_peers(const unsigned long long* at) {
    unsigned long long word;
    asm volatile("ld.acquire.sys.global.u64 %0, [%1];" : "=l"(word) : "l"(at) : "memory");
    return word;
}

__device__ inline unsigned long long nanoseconds() {
    unsigned long long now;
    asm volatile("mov.u64 %0, %%globaltimer;" : "=l"(now));
    return now;
}

// Leaves the multiprocessor to others for a moment.
__device__ inline void rest() { __nanosleep(100); }

#endif
