// The built-in names of CUDA for a C++ compiler, so that the kernels run without a GPU, every thread of a block for itself: see emulator.cpp.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>

struct dim3 {
    unsigned x, y, z;
};
struct alignas(16) uint4 {
    unsigned x, y, z, w;
};
struct alignas(16) float4 {
    float x, y, z, w;
};
struct alignas(8) uint2 {
    unsigned x, y;
};
struct alignas(8) float2 {
    float x, y;
};

static inline uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w) {
    return uint4{x, y, z, w};
}

static inline float2 make_float2(float x, float y) {
    return float2{x, y};
}

namespace emulated {

// What a thread knows of itself, and what it shares with others.
struct Thread {
    dim3 thread, block, block_size, grid_size;
    void *shared;
};

Thread &current();

// Waits for all threads of the block that have not ended.
void meet_block();

// Gives each thread of the warp what another one brings; `from` is that one's lane.
uint32_t exchange(uint32_t bits, unsigned from);

// The fragments of a thread: pairs of neighbours in k.
struct Fragments {
    float a[4][2], b[2][2];
};
// Those of the warp, until the thread exchanges something again.
const Fragments *exchange_fragments(const Fragments &own);
void meet_warp();

struct Kernel {
    Kernel(const char *name, size_t argument_bytes, unsigned threads, void (*run)(const void *));
};

}  // namespace emulated

#define threadIdx (emulated::current().thread)
#define blockIdx (emulated::current().block)
#define blockDim (emulated::current().block_size)
#define gridDim (emulated::current().grid_size)

#define __device__
#define __forceinline__ inline
#define __syncthreads() emulated::meet_block()
#define __syncwarp() emulated::meet_warp()

#define KERNEL(name, Arguments, threads)                                                                  \
    static void name(const Arguments &a);                                                                 \
    static emulated::Kernel kernel_##name(#name, sizeof(Arguments), threads, [](const void *arguments) {  \
        name(*static_cast<const Arguments *>(arguments));                                                 \
    });                                                                                                   \
    static void name(const Arguments &a)
#define SHARED_MEMORY(type, name) type *name = static_cast<type *>(emulated::current().shared)

using std::max;
using std::min;

static inline unsigned lane_of_thread() {
    return threadIdx.x % 32;
}

static inline float __shfl_xor_sync(unsigned, float x, int distance) {
    uint32_t bits;
    __builtin_memcpy(&bits, &x, sizeof bits);
    bits = emulated::exchange(bits, lane_of_thread() ^ distance);
    __builtin_memcpy(&x, &bits, sizeof x);
    return x;
}

static inline int __shfl_xor_sync(unsigned, int x, int distance) {
    return int(emulated::exchange(uint32_t(x), lane_of_thread() ^ distance));
}

static inline unsigned __shfl_xor_sync(unsigned, unsigned x, int distance) {
    return emulated::exchange(x, lane_of_thread() ^ distance);
}

static inline int __dp4a(int a, int b, int sum) {
    for (int i = 0; i < 4; i++) sum += int(int8_t(a >> 8 * i)) * int(int8_t(b >> 8 * i));
    return sum;
}

static inline unsigned __byte_perm(unsigned low, unsigned high, unsigned selector) {
    uint64_t bytes = uint64_t(high) << 32 | low;
    unsigned result = 0;
    for (int i = 0; i < 4; i++) result |= unsigned(bytes >> 8 * (selector >> 4 * i & 7) & 0xff) << 8 * i;
    return result;
}

static inline float half_bits_to_float(uint16_t bits) {
    _Float16 half;
    __builtin_memcpy(&half, &bits, sizeof half);
    return float(half);
}

// As kernels/tensor_core.cuh says what each lane holds.
static inline void multiply_add(float (&d)[4], const unsigned (&a)[4], const unsigned (&b)[2]) {
    emulated::Fragments own;
    for (unsigned odd = 0; odd < 2; odd++) {
        for (unsigned i = 0; i < 4; i++) own.a[i][odd] = half_bits_to_float(uint16_t(a[i] >> 16 * odd));
        for (unsigned i = 0; i < 2; i++) own.b[i][odd] = half_bits_to_float(uint16_t(b[i] >> 16 * odd));
    }
    const emulated::Fragments *all = emulated::exchange_fragments(own);
    unsigned g = lane_of_thread() / 4, t = lane_of_thread() % 4;
    for (unsigned i = 0; i < 4; i++) {
        unsigned lower = i / 2, column = 2 * t + i % 2;
        for (unsigned k = 0; k < 16; k++) {
            unsigned holder = k % 8 / 2, deep = k / 8;
            d[i] += all[4 * g + holder].a[lower + 2 * deep][k % 2] * all[4 * column + holder].b[deep][k % 2];
        }
    }
}
