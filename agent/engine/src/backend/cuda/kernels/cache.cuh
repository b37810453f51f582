// The KV cache of one layer on a device: `[slot, head]`, of each the keys of all cells, then the values. In f16 a cell is a row of elements; the quantised types
// have all codes first, and then the scales of blocks of 32. A position's cell is the remainder of dividing it by the number of cells.
#pragma once
#include "prelude.cuh"

#define CACHE_F16 0
#define CACHE_Q8_0 1
#define CACHE_Q4_0 2
#define CACHE_BLOCK 32

struct Cache {
    u8 *data;
    u32 type;
    u32 cells;
    u32 kv_heads;
    u32 key_length;
    u32 value_length;
    // Kept for a batch, whichever slot it is read for.
    u32 for_a_batch;
};

static __device__ __forceinline__ u64 cached_bytes(const Cache &cache, u32 length) {
    u64 elements = u64(cache.cells) * length;
    return cache.type == CACHE_F16 ? elements * 2 : elements / CACHE_BLOCK * (cache.type == CACHE_Q8_0 ? 34 : 18);
}

static __device__ __forceinline__ u8 *cached_keys(const Cache &cache, u32 slot, u32 head) {
    u64 index = u64(cache.for_a_batch ? 0 : slot) * cache.kv_heads + head;
    return cache.data + index * (cached_bytes(cache, cache.key_length) + cached_bytes(cache, cache.value_length));
}

static __device__ __forceinline__ u8 *cached_values(const Cache &cache, u32 slot, u32 head) {
    return cached_keys(cache, slot, head) + cached_bytes(cache, cache.key_length);
}

// Where the scales of a cell's blocks begin.
static __device__ __forceinline__ u16 *cached_scales(const Cache &cache, u8 *codes, u32 length, u32 cell) {
    u64 all_codes = u64(cache.cells) * length / (cache.type == CACHE_Q8_0 ? 1 : 2);
    return reinterpret_cast<u16 *>(codes + all_codes) + u64(cell) * (length / CACHE_BLOCK);
}

// One element of a cell.
static __device__ __forceinline__ float cached_element(const Cache &cache, u8 *from, u32 length, u32 cell, u32 d) {
    if (cache.type == CACHE_F16) return half_to_float(reinterpret_cast<const u16 *>(from)[u64(cell) * length + d]);
    float scale = half_to_float(cached_scales(cache, from, length, cell)[d / CACHE_BLOCK]);
    if (cache.type == CACHE_Q8_0) return scale * float(reinterpret_cast<const s8 *>(from)[u64(cell) * length + d]);
    u8 byte = from[(u64(cell) * length + d / CACHE_BLOCK * CACHE_BLOCK) / 2 + d % 16];
    return scale * (float(d % CACHE_BLOCK < 16 ? byte & 15 : byte >> 4) - 8.0f);
}

// Eight neighbouring elements of a cell, the first a multiple of 8; those beyond `length` are zero.
static __device__ __forceinline__ void cached_eight(const Cache &cache, u8 *from, u32 length, u32 cell, u32 d, float (&to)[8]) {
    if (cache.type == CACHE_F16 && length % 8 == 0) {
        uint4 bits = *reinterpret_cast<const uint4 *>(from + (u64(cell) * length + d) * 2);
        u32 words[4] = {bits.x, bits.y, bits.z, bits.w};
#pragma unroll
        for (int i = 0; i < 4; i++) to[2 * i] = low_half(words[i]), to[2 * i + 1] = high_half(words[i]);
        return;
    }
    if (cache.type == CACHE_F16) {
#pragma unroll
        for (u32 i = 0; i < 8; i++) to[i] = d + i < length ? cached_element(cache, from, length, cell, d + i) : 0.0f;
        return;
    }
    float scale = half_to_float(cached_scales(cache, from, length, cell)[d / CACHE_BLOCK]);
    bool bytes = cache.type == CACHE_Q8_0;
    u64 at = u64(cell) * length + d;
    const u8 *codes = bytes ? from + at : from + (u64(cell) * length + d / CACHE_BLOCK * CACHE_BLOCK) / 2 + d % 16;
    uint2 bits = *reinterpret_cast<const uint2 *>(codes);
    u32 shift = d % CACHE_BLOCK < 16 ? 0 : 4;
#pragma unroll
    for (int i = 0; i < 8; i++) {
        u32 byte = (i < 4 ? bits.x : bits.y) >> 8 * (i % 4);
        to[i] = scale * (bytes ? float(s8(byte)) : float(byte >> shift & 15) - 8.0f);
    }
}
