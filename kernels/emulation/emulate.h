// CUDA on one CPU thread: what device code names, for a C++ compiler.
//
// A block's threads are fibers that run one at a time until they wait: for the block at a barrier, or
// for the lanes of their warp at a shuffle. Which goes on next is drawn at random; for odd seeds warps run
// one after another, each as far as it gets alone, so that a barrier that was forgotten shows. Blocks run
// one after another. A block whose threads wait for one another for ever ends the launch with an error.
#pragma once

#include <chrono>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <thread>
#include <utility>

#define MOESHARD_EMULATED
#define __global__
#define __device__
#define __forceinline__ inline
#define __restrict__
#define __launch_bounds__(...)
// One block runs at a time.
#define __shared__ static thread_local
#define DYNAMIC_SHARED(type, name) type* name = reinterpret_cast<type*>(emulated::shared_memory())

namespace emulated {

struct Dim {
    unsigned x = 1, y = 1, z = 1;
};

struct Launch {
    Dim grid, block;
    size_t shared_bytes;
    // From which the order of threads is drawn; odd: warps one after another; 3 modulo 4: asynchronous
    // copies happen at once, else as late as they may.
    uint64_t seed;
};

// Where the fiber that runs is.
struct Place {
    Dim grid_dim, block_dim, block_idx, thread_idx;
};
extern thread_local Place place;

unsigned char* shared_memory();
void wait_for_block();
// Waits for the lanes of `mask`, each of which brings `value`; then all have `values` of all lanes.
struct Values {
    uint64_t of_lane[32];
};
Values exchange(unsigned mask, uint64_t value);
unsigned lane();

// Sixteen bytes to be copied, or to become zero where `from` is null, once their group is waited for.
void start_copy(void* to, const void* from);
void end_group();
void wait_for_groups(size_t n_left);

// Hopper's barriers, boxes and products; `kernels/cuda/hopper.h` says what they are.
void init_barrier(void* barrier, unsigned n_arrivals);
void arrive(void* barrier, unsigned n_bytes);
void wait_for_phase(void* barrier, unsigned parity);
// Done once somebody waits for the barrier and nothing else is missing.
void start_box(void* to, const void* map, unsigned k, unsigned row, void* barrier);
// A product that is computed once its group is waited for: with its sums, and descriptors of its operands.
struct Product {
    void (*compute)(const Product& product);
    float* sums;
    uint64_t a, b;
    bool adds;
};
void start_product(const Product& product);
void end_products();
void wait_for_products(size_t n_left);
// Shared memory does not begin at zero, nor where operands may.
constexpr unsigned SHARED_BEGIN = 16;
// Chunk 0 or 1 of a row of an operand in shared memory: eight elements of 16 bits.
const unsigned char* operand_chunk(uint64_t descriptor, unsigned row, unsigned chunk);

using Body = void (*)(void** args);
// Runs a kernel; 0, or 1 if its threads wait for one another for ever.
int run(const Launch& launch, Body body, void** args);

struct Registered {
    Registered(const char* name, Body body, size_t n_args);
};

template <class... Args, size_t... I>
void call(void (*kernel)(Args...), void** args, std::index_sequence<I...>) {
    kernel(*static_cast<std::remove_reference_t<Args>*>(args[I])...);
}

template <auto kernel, class... Args>
Body body_of(void (*)(Args...)) {
    return [](void** args) { call(kernel, args, std::index_sequence_for<Args...>{}); };
}

template <class... Args>
constexpr size_t n_args_of(void (*)(Args...)) {
    return sizeof...(Args);
}

template <class T>
uint64_t bits_of(T value) {
    static_assert(sizeof(T) <= 8);
    uint64_t bits = 0;
    std::memcpy(&bits, &value, sizeof(T));
    return bits;
}

template <class T>
T value_of(uint64_t bits) {
    T value;
    std::memcpy(&value, &bits, sizeof(T));
    return value;
}

}  // namespace emulated

#define KERNEL(name) static emulated::Registered registered_##name(#name, emulated::body_of<&name>(&name), emulated::n_args_of(&name));

#define threadIdx (emulated::place.thread_idx)
#define blockIdx (emulated::place.block_idx)
#define blockDim (emulated::place.block_dim)
#define gridDim (emulated::place.grid_dim)

inline void __syncthreads() { emulated::wait_for_block(); }
inline void __syncwarp(unsigned mask = 0xffffffffu) { emulated::exchange(mask, 0); }

template <class T>
T __shfl_sync(unsigned mask, T value, unsigned source) {
    return emulated::value_of<T>(emulated::exchange(mask, emulated::bits_of(value)).of_lane[source % 32]);
}

template <class T>
T __shfl_xor_sync(unsigned mask, T value, unsigned step) {
    return __shfl_sync(mask, value, emulated::lane() ^ step);
}

// Lanes without a source keep their own.
template <class T>
T __shfl_up_sync(unsigned mask, T value, unsigned step) {
    const unsigned own = emulated::lane();
    return __shfl_sync(mask, value, own >= step ? own - step : own);
}

template <class T>
T __shfl_down_sync(unsigned mask, T value, unsigned step) {
    const unsigned own = emulated::lane();
    return __shfl_sync(mask, value, own + step < 32 ? own + step : own);
}

template <class T>
unsigned __match_any_sync(unsigned mask, T value) {
    const emulated::Values values = emulated::exchange(mask, emulated::bits_of(value));
    unsigned alike = 0;
    for (unsigned i = 0; i < 32; ++i) {
        const bool is_same = values.of_lane[i] == emulated::bits_of(value);
        if ((mask >> i & 1) && is_same) alike |= 1u << i;
    }
    return alike;
}

inline unsigned __ballot_sync(unsigned mask, bool holds) {
    const emulated::Values values = emulated::exchange(mask, holds);
    unsigned lanes = 0;
    for (unsigned i = 0; i < 32; ++i) lanes |= (mask >> i & 1) && values.of_lane[i] ? 1u << i : 0;
    return lanes;
}

struct alignas(8) float2 {
    float x, y;
};
struct alignas(16) float4 {
    float x, y, z, w;
};

struct alignas(16) uint4 {
    unsigned x, y, z, w;
};

// Words that other ranks, which are other threads of the process, write meanwhile (`kernels/cuda/peers.h`).
inline void store_for_peers(unsigned long long* at, unsigned long long word) {
    __atomic_store_n(at, word, __ATOMIC_RELEASE);
}
inline unsigned long long load_from_peers(const unsigned long long* at) {
    return __atomic_load_n(at, __ATOMIC_ACQUIRE);
}
inline unsigned long long nanoseconds() {
    const auto now = std::chrono::steady_clock::now().time_since_epoch();
    return std::chrono::duration_cast<std::chrono::nanoseconds>(now).count();
}
inline void rest() { std::this_thread::yield(); }

// bf16 by its bits; f16 as the compiler has it.
struct bf16 {
    uint16_t bits;
};
struct f16 {
    _Float16 value;
};

inline float __bfloat162float(bf16 x) {
    return emulated::value_of<float>(static_cast<uint64_t>(x.bits) << 16);
}

inline bf16 __float2bfloat16_rn(float x) {
    const uint32_t bits = static_cast<uint32_t>(emulated::bits_of(x));
    // Rounding must not make an infinity of what is not a number.
    if (x != x) return {0x7fff};
    return {static_cast<uint16_t>((bits + 0x7fff + (bits >> 16 & 1)) >> 16)};
}

inline float __half2float(f16 x) { return static_cast<float>(x.value); }
inline f16 __float2half_rn(float x) { return {static_cast<_Float16>(x)}; }

template <class T>
float to_float_of_bits(uint64_t bits);
template <>
inline float to_float_of_bits<bf16>(uint64_t bits) {
    return __bfloat162float({static_cast<uint16_t>(bits)});
}
template <>
inline float to_float_of_bits<f16>(uint64_t bits) {
    return __half2float(emulated::value_of<f16>(bits & 0xffff));
}

// mma.h says who holds what.
template <class T>
void mma(float (&d)[4], const unsigned (&a)[4], const unsigned (&b)[2]) {
    const auto pair = [](unsigned low, unsigned high) { return low | static_cast<uint64_t>(high) << 32; };
    const unsigned all = 0xffffffffu;
    const emulated::Values a01 = emulated::exchange(all, pair(a[0], a[1]));
    const emulated::Values a23 = emulated::exchange(all, pair(a[2], a[3]));
    const emulated::Values b01 = emulated::exchange(all, pair(b[0], b[1]));
    const unsigned g = emulated::lane() / 4, t = emulated::lane() % 4;
    for (unsigned i = 0; i < 4; ++i) {
        const unsigned row = g + i / 2 * 8, col = 2 * t + i % 2;
        float sum = 0.0f;
        for (unsigned k = 0; k < 16; ++k) {
            // The lane, the register of two, and the half of it.
            const unsigned of_k = k % 8 / 2, half = 16 * (k % 2);
            const emulated::Values& of_a = k < 8 ? a01 : a23;
            const uint64_t x = of_a.of_lane[row % 8 * 4 + of_k] >> (row < 8 ? 0 : 32) >> half;
            const uint64_t y = b01.of_lane[col * 4 + of_k] >> (k < 8 ? 0 : 32) >> half;
            sum += to_float_of_bits<T>(x) * to_float_of_bits<T>(y);
        }
        d[i] += sum;
    }
}

inline void load_matrices(unsigned (&r)[4], const void* row) {
    const emulated::Values rows = emulated::exchange(0xffffffffu, reinterpret_cast<uint64_t>(row));
    const unsigned g = emulated::lane() / 4, t = emulated::lane() % 4;
    for (unsigned j = 0; j < 4; ++j) {
        const auto* at = reinterpret_cast<const unsigned char*>(rows.of_lane[8 * j + g]);
        std::memcpy(&r[j], at + 4 * t, 4);
    }
}

inline void load_transposed(unsigned (&r)[4], const void* row) {
    const emulated::Values rows = emulated::exchange(0xffffffffu, reinterpret_cast<uint64_t>(row));
    const unsigned g = emulated::lane() / 4, t = emulated::lane() % 4;
    for (unsigned j = 0; j < 4; ++j) {
        r[j] = 0;
        for (unsigned i = 0; i < 2; ++i) {
            uint16_t bits;
            std::memcpy(&bits, reinterpret_cast<const unsigned char*>(rows.of_lane[8 * j + 2 * t + i]) + 2 * g, 2);
            r[j] |= static_cast<unsigned>(bits) << 16 * i;
        }
    }
}

// Copies happen as late as they may, so that whoever does not wait finds what was there before, or at once,
// so that whoever still reads what was there finds it overwritten.
inline void copy_async(void* to, const void* from, bool is_there) {
    emulated::start_copy(to, is_there ? from : nullptr);
}
inline void end_group() { emulated::end_group(); }
template <int N>
void wait_for_groups() {
    emulated::wait_for_groups(N);
}

inline unsigned shared_address(const void* at) {
    const auto* byte = static_cast<const unsigned char*>(at);
    return emulated::SHARED_BEGIN + static_cast<unsigned>(byte - emulated::shared_memory());
}

inline void init_barrier(unsigned long long* barrier, unsigned n_arrivals) {
    emulated::init_barrier(barrier, n_arrivals);
}
inline void arrive(unsigned long long* barrier) { emulated::arrive(barrier, 0); }
inline void arrive_expecting(unsigned long long* barrier, unsigned n_bytes) { emulated::arrive(barrier, n_bytes); }
inline void wait_for_phase(unsigned long long* barrier, unsigned parity) {
    emulated::wait_for_phase(barrier, parity);
}
inline void copy_box(void* to, const void* map, unsigned k, unsigned row, unsigned long long* barrier) {
    emulated::start_box(to, map, k, row, barrier);
}
// What is written is there for everybody at once.
inline void fence_barriers() {}
inline void fence_for_products() {}
inline void acquire_map(const void*) {}
template <unsigned N>
void give_registers_up_to() {}
template <unsigned N>
void take_registers_up_to() {}

// Registers of a product of 64 rows, as the instruction set documents them: warp w of four has rows from 16 w on,
// with g = lane / 4 and t = lane % 4: d[4 j], d[4 j + 1] = D[g][8 j + 2 t, + 1], d[4 j + 2], d[4 j + 3] = D[g + 8][..]
template <class T>
void operand_row(uint64_t descriptor, unsigned row, float (&x)[16]) {
    for (unsigned chunk = 0; chunk < 2; ++chunk) {
        uint16_t bits[8];
        std::memcpy(bits, emulated::operand_chunk(descriptor, row, chunk), 16);
        for (unsigned i = 0; i < 8; ++i) x[8 * chunk + i] = to_float_of_bits<T>(bits[i]);
    }
}
template <class T, unsigned SUMS>
void compute_product(const emulated::Product& product) {
    const unsigned thread = emulated::place.thread_idx.x % 128;
    const unsigned g = thread % 32 / 4, t = thread % 4;
    float a[2][16], b[16];
    for (unsigned half = 0; half < 2; ++half) operand_row<T>(product.a, thread / 32 * 16 + g + 8 * half, a[half]);
    for (unsigned i = 0; i < SUMS / 2; ++i) {
        operand_row<T>(product.b, i / 2 * 8 + 2 * t + i % 2, b);
        for (unsigned half = 0; half < 2; ++half) {
            float sum = 0.0f;
            for (unsigned k = 0; k < 16; ++k) sum += a[half][k] * b[k];
            float& d = product.sums[i / 2 * 4 + half * 2 + i % 2];
            d = product.adds ? d + sum : sum;
        }
    }
}
template <class T, unsigned SUMS>
void start_product(float (&d)[SUMS], unsigned long long a, unsigned long long b, bool adds) {
    emulated::start_product({compute_product<T, SUMS>, d, a, b, adds});
}
inline void begin_products() {}
inline void end_products() { emulated::end_products(); }
template <unsigned N, unsigned SUMS>
void wait_for_products(float (&)[SUMS]) {
    emulated::wait_for_products(N);
}

inline int __popc(unsigned x) { return __builtin_popcount(x); }

// Streams of a device are threads.
template <class T>
T atomicAdd(T* at, T x) {
    return __atomic_fetch_add(at, x, __ATOMIC_RELAXED);
}

template <class T>
T min(T a, T b) { return b < a ? b : a; }
template <class T>
T max(T a, T b) { return a < b ? b : a; }
