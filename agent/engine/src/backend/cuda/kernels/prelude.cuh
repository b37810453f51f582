// What all kernels stand on. It is compiled by NVRTC for a GPU, without any header of the toolkit, and by a C++ compiler for the emulator, which brings the
// built-in names of CUDA with it (emulator/cuda_shim.h).
#pragma once

typedef unsigned char u8;
typedef signed char s8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;

#define WARP 32
#define FULL_WARP 0xffffffffu
// The logarithm of nothing.
#define NOTHING bits_to_float(0xff800000u)

// A kernel takes one struct by value, so that the host passes bytes whose layout it shares (arguments.rs).
#ifdef STOWAGE_EMULATED
#include "cuda_shim.h"
#else
#define KERNEL(name, Arguments, threads) extern "C" __global__ void __launch_bounds__(threads) name(const __grid_constant__ Arguments a)
#define SHARED_MEMORY(type, name)            \
    extern __shared__ uint4 shared_memory[]; \
    type *name = reinterpret_cast<type *>(shared_memory)
#endif

// A row of the batch: the sequence that its token belongs to, and its place there.
struct Token {
    u32 slot;
    u32 position;
};

// The expert that a token goes to, and how much of it the token takes.
struct Choice {
    u32 expert;
    float weight;
};

// Numbers in half precision are held by their bits: the toolkit's own type lies in a header that NVRTC comes without.
#ifdef STOWAGE_EMULATED
static float half_to_float(u16 bits) {
    _Float16 half;
    __builtin_memcpy(&half, &bits, sizeof half);
    return half;
}

static u16 float_to_half(float x) {
    _Float16 half = x;
    u16 bits;
    __builtin_memcpy(&bits, &half, sizeof bits);
    return bits;
}

static float bits_to_float(u32 bits) {
    float x;
    __builtin_memcpy(&x, &bits, sizeof x);
    return x;
}
#else
static __device__ __forceinline__ float half_to_float(u16 bits) {
    float x;
    asm("cvt.f32.f16 %0, %1;" : "=f"(x) : "h"(bits));
    return x;
}

static __device__ __forceinline__ u16 float_to_half(float x) {
    u16 bits;
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(bits) : "f"(x));
    return bits;
}

static __device__ __forceinline__ float bits_to_float(u32 bits) {
    return __uint_as_float(bits);
}
#endif

static __device__ __forceinline__ u32 pack_halves(float low, float high) {
    return float_to_half(low) | u32(float_to_half(high)) << 16;
}

static __device__ __forceinline__ float low_half(u32 pair) {
    return half_to_float(u16(pair));
}

static __device__ __forceinline__ float high_half(u32 pair) {
    return half_to_float(u16(pair >> 16));
}

static __device__ __forceinline__ float sigmoid(float x) {
    return 1.0f / (1.0f + expf(-x));
}

static __device__ __forceinline__ float softcapped(float x, float cap) {
    return cap == 0.0f ? x : cap * tanhf(x / cap);
}

static __device__ __forceinline__ u32 rounded_up(u32 x, u32 to) {
    return (x + to - 1) / to * to;
}

static __device__ __forceinline__ float warp_sum(float x) {
#pragma unroll
    for (int distance = WARP / 2; distance > 0; distance /= 2) {
        x += __shfl_xor_sync(FULL_WARP, x, distance);
    }
    return x;
}

static __device__ __forceinline__ float warp_max(float x) {
#pragma unroll
    for (int distance = WARP / 2; distance > 0; distance /= 2) {
        x = fmaxf(x, __shfl_xor_sync(FULL_WARP, x, distance));
    }
    return x;
}

// The sum over a block of whole warps, in every thread. `room` has a float for each warp, and may be used again after the next `__syncthreads`.
static __device__ __forceinline__ float block_sum(float x, float *room) {
    x = warp_sum(x);
    if (threadIdx.x % WARP == 0) room[threadIdx.x / WARP] = x;
    __syncthreads();
    float sum = 0.0f;
    for (u32 warp = 0; warp < blockDim.x / WARP; warp++) sum += room[warp];
    return sum;
}

static __device__ __forceinline__ float block_max(float x, float *room) {
    x = warp_max(x);
    if (threadIdx.x % WARP == 0) room[threadIdx.x / WARP] = x;
    __syncthreads();
    float most = room[0];
    for (u32 warp = 1; warp < blockDim.x / WARP; warp++) most = fmaxf(most, room[warp]);
    return most;
}
