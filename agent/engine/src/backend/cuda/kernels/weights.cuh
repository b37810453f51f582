// Weights of every type, 16 elements at a time: codes of 8 bits, and the two numbers that make weights of them, `scale x code + offset`.
//
// A matrix lies in planes: the same part of every block, one after the other, the widest parts first (planes.rs), so that whatever a thread loads is
// aligned. Source of the blocks: ggml/src/ggml-common.h and dequantize_row_* in ggml-quants.c of llama.cpp; of MXFP4 the OCP Microscaling specification.
#pragma once
#include "prelude.cuh"

// `[rows, columns]`, all rows of the tensor; its planes begin at `data`.
struct Matrix {
    const u8 *data;
    u32 rows;
    u32 columns;
};

// Elements that are read at once.
#define UNIT 16

struct Unit {
    u32 codes[4];
    float scale;
    float offset;
};

static __device__ __forceinline__ uint4 load16(const u8 *from) {
    return *reinterpret_cast<const uint4 *>(from);
}

static __device__ __forceinline__ u32 load4(const u8 *from) {
    return *reinterpret_cast<const u32 *>(from);
}

static __device__ __forceinline__ u16 load2(const u8 *from) {
    return *reinterpret_cast<const u16 *>(from);
}

// The same plane of `bytes` a block, where those before it take `before` a block.
static __device__ __forceinline__ const u8 *plane(const Matrix &matrix, u32 block_elements, u32 before, u32 bytes, u64 block) {
    u64 blocks = u64(matrix.rows) * (matrix.columns / block_elements);
    return matrix.data + blocks * before + block * bytes;
}

static __device__ __forceinline__ void nibbles(const u8 *from, u32 high, u32 *codes) {
    uint4 bytes = load16(from);
    u32 shift = 4 * high;
    codes[0] = bytes.x >> shift & 0x0f0f0f0f;
    codes[1] = bytes.y >> shift & 0x0f0f0f0f;
    codes[2] = bytes.z >> shift & 0x0f0f0f0f;
    codes[3] = bytes.w >> shift & 0x0f0f0f0f;
}

static __device__ __forceinline__ void pairs_of_bits(const u8 *from, u32 shift, u32 *codes) {
    uint4 bytes = load16(from);
    codes[0] = bytes.x >> shift & 0x03030303;
    codes[1] = bytes.y >> shift & 0x03030303;
    codes[2] = bytes.z >> shift & 0x03030303;
    codes[3] = bytes.w >> shift & 0x03030303;
}

// Bit `index` of each byte, as bit `to` of it.
static __device__ __forceinline__ void add_bits(const u8 *from, u32 index, u32 to, u32 *codes) {
    uint4 bytes = load16(from);
    codes[0] |= (bytes.x >> index & 0x01010101) << to;
    codes[1] |= (bytes.y >> index & 0x01010101) << to;
    codes[2] |= (bytes.z >> index & 0x01010101) << to;
    codes[3] |= (bytes.w >> index & 0x01010101) << to;
}

// 16 bits, one a code, as its fifth.
static __device__ __forceinline__ void add_fifth_bits(u32 bits, u32 *codes) {
#pragma unroll
    for (int i = 0; i < 4; i++) {
        u32 four = bits >> 4 * i;
        codes[i] |= (four & 1) << 4 | (four & 2) << 11 | (four & 4) << 18 | (four & 8) << 25;
    }
}

// Replaces each of four codes below 16 by the byte of a table.
static __device__ __forceinline__ u32 looked_up(u32 codes, u32 t0, u32 t1, u32 t2, u32 t3) {
    u32 selector = (codes & 7) | (codes >> 4 & 0x70) | (codes >> 8 & 0x700) | (codes >> 12 & 0x7000);
    u32 low = __byte_perm(t0, t1, selector);
    u32 high = __byte_perm(t2, t3, selector);
    // All bits of the bytes whose code is 8 or more.
    u32 is_high = (codes >> 3 & 0x01010101) * 0xff;
    return (low & ~is_high) | (high & is_high);
}

// One type. BLOCK: elements of a block; OFFSET: whether weights have an offset.
struct F32 {};
struct F16 {};
struct BF16 {};

template <typename T>
struct IsFloat {
    static const bool value = false;
};
template <>
struct IsFloat<F32> {
    static const bool value = true;
};
template <>
struct IsFloat<F16> {
    static const bool value = true;
};
template <>
struct IsFloat<BF16> {
    static const bool value = true;
};

static __device__ __forceinline__ float element(F32, const u8 *row, u32 index) {
    return reinterpret_cast<const float *>(row)[index];
}
static __device__ __forceinline__ float element(F16, const u8 *row, u32 index) {
    return half_to_float(reinterpret_cast<const u16 *>(row)[index]);
}
static __device__ __forceinline__ float element(BF16, const u8 *row, u32 index) {
    return bits_to_float(u32(reinterpret_cast<const u16 *>(row)[index]) << 16);
}
static __device__ __forceinline__ u32 element_bytes(F32) {
    return 4;
}
static __device__ __forceinline__ u32 element_bytes(F16) {
    return 2;
}
static __device__ __forceinline__ u32 element_bytes(BF16) {
    return 2;
}

// Eight neighbours at once, the first a multiple of 8 in a row whose length is one, too.
static __device__ __forceinline__ void eight_elements(F32, const u8 *row, u32 index, float (&to)[8]) {
    const float4 *from = reinterpret_cast<const float4 *>(row + 4 * index);
    float4 low = from[0], high = from[1];
    to[0] = low.x, to[1] = low.y, to[2] = low.z, to[3] = low.w, to[4] = high.x, to[5] = high.y, to[6] = high.z, to[7] = high.w;
}
static __device__ __forceinline__ void eight_elements(F16, const u8 *row, u32 index, float (&to)[8]) {
    uint4 bits = load16(row + 2 * index);
    u32 words[4] = {bits.x, bits.y, bits.z, bits.w};
#pragma unroll
    for (int i = 0; i < 4; i++) to[2 * i] = low_half(words[i]), to[2 * i + 1] = high_half(words[i]);
}
static __device__ __forceinline__ void eight_elements(BF16, const u8 *row, u32 index, float (&to)[8]) {
    uint4 bits = load16(row + 2 * index);
    u32 words[4] = {bits.x, bits.y, bits.z, bits.w};
#pragma unroll
    for (int i = 0; i < 4; i++) to[2 * i] = bits_to_float(words[i] << 16), to[2 * i + 1] = bits_to_float(words[i] & 0xffff0000u);
}

#define UNPACK static __device__ __forceinline__ Unit unpack(const Matrix &m, u64 block, u32 unit)

struct Q4_0 {
    static const u32 BLOCK = 32;
    static const bool OFFSET = true;
    UNPACK {
        Unit u;
        nibbles(plane(m, 32, 0, 16, block), unit, u.codes);
        u.scale = half_to_float(load2(plane(m, 32, 16, 2, block)));
        u.offset = -8.0f * u.scale;
        return u;
    }
};

struct Q4_1 {
    static const u32 BLOCK = 32;
    static const bool OFFSET = true;
    UNPACK {
        Unit u;
        nibbles(plane(m, 32, 0, 16, block), unit, u.codes);
        u32 numbers = load4(plane(m, 32, 16, 4, block));
        u.scale = low_half(numbers);
        u.offset = high_half(numbers);
        return u;
    }
};

struct Q5_0 {
    static const u32 BLOCK = 32;
    static const bool OFFSET = true;
    UNPACK {
        Unit u;
        nibbles(plane(m, 32, 0, 16, block), unit, u.codes);
        add_fifth_bits(load4(plane(m, 32, 16, 4, block)) >> 16 * unit, u.codes);
        u.scale = half_to_float(load2(plane(m, 32, 20, 2, block)));
        u.offset = -16.0f * u.scale;
        return u;
    }
};

struct Q5_1 {
    static const u32 BLOCK = 32;
    static const bool OFFSET = true;
    UNPACK {
        Unit u;
        nibbles(plane(m, 32, 0, 16, block), unit, u.codes);
        add_fifth_bits(load4(plane(m, 32, 16, 4, block)) >> 16 * unit, u.codes);
        u32 numbers = load4(plane(m, 32, 20, 4, block));
        u.scale = low_half(numbers);
        u.offset = high_half(numbers);
        return u;
    }
};

struct Q8_0 {
    static const u32 BLOCK = 32;
    static const bool OFFSET = false;
    UNPACK {
        Unit u;
        uint4 bytes = load16(plane(m, 32, 0, 32, block) + 16 * unit);
        u.codes[0] = bytes.x, u.codes[1] = bytes.y, u.codes[2] = bytes.z, u.codes[3] = bytes.w;
        u.scale = half_to_float(load2(plane(m, 32, 32, 2, block)));
        u.offset = 0.0f;
        return u;
    }
};

struct Q2_K {
    static const u32 BLOCK = 256;
    static const bool OFFSET = true;
    UNPACK {
        Unit u;
        pairs_of_bits(plane(m, 256, 0, 64, block) + 32 * (unit / 8) + 16 * (unit % 2), 2 * (unit % 8 / 2), u.codes);
        u32 scales = plane(m, 256, 64, 16, block)[unit];
        u32 numbers = load4(plane(m, 256, 80, 4, block));
        u.scale = low_half(numbers) * float(scales & 15);
        u.offset = -high_half(numbers) * float(scales >> 4);
        return u;
    }
};

struct Q3_K {
    static const u32 BLOCK = 256;
    static const bool OFFSET = true;
    UNPACK {
        Unit u;
        u32 pair = unit % 8 / 2;
        pairs_of_bits(plane(m, 256, 0, 64, block) + 32 * (unit / 8) + 16 * (unit % 2), 2 * pair, u.codes);
        add_bits(plane(m, 256, 64, 32, block) + 16 * (unit % 2), 4 * (unit / 8) + pair, 2, u.codes);
        const u8 *scales = plane(m, 256, 96, 12, block);
        u32 low = unit < 8 ? scales[unit] & 15 : scales[unit - 8] >> 4;
        u32 high = scales[8 + unit % 4] >> 2 * (unit / 4) & 3;
        u.scale = half_to_float(load2(plane(m, 256, 108, 2, block))) * (float(low | high << 4) - 32.0f);
        u.offset = -4.0f * u.scale;
        return u;
    }
};

// Scale and minimum of each 32 elements, six bits each in twelve bytes, after the two numbers that they are multiplied by.
static __device__ __forceinline__ void scale_and_offset(const u8 *header, u32 sub, Unit &u) {
    uint4 words = load16(header);
    // The bytes of each word are those of four subblocks.
    u32 shift = 8 * (sub % 4);
    u32 first = words.y >> shift, second = words.z >> shift, third = words.w >> shift;
    u32 scale = sub < 4 ? first & 63 : (third & 15) | (first >> 6 & 3) << 4;
    u32 least = sub < 4 ? second & 63 : (third >> 4 & 15) | (second >> 6 & 3) << 4;
    u.scale = low_half(words.x) * float(scale);
    u.offset = -high_half(words.x) * float(least);
}

struct Q4_K {
    static const u32 BLOCK = 256;
    static const bool OFFSET = true;
    UNPACK {
        Unit u;
        u32 sub = unit / 2;
        nibbles(plane(m, 256, 0, 128, block) + 32 * (sub / 2) + 16 * (unit % 2), sub % 2, u.codes);
        scale_and_offset(plane(m, 256, 128, 16, block), sub, u);
        return u;
    }
};

struct Q5_K {
    static const u32 BLOCK = 256;
    static const bool OFFSET = true;
    UNPACK {
        Unit u;
        u32 sub = unit / 2;
        nibbles(plane(m, 256, 0, 128, block) + 32 * (sub / 2) + 16 * (unit % 2), sub % 2, u.codes);
        add_bits(plane(m, 256, 128, 32, block) + 16 * (unit % 2), sub, 4, u.codes);
        scale_and_offset(plane(m, 256, 160, 16, block), sub, u);
        return u;
    }
};

struct Q6_K {
    static const u32 BLOCK = 256;
    static const bool OFFSET = true;
    UNPACK {
        Unit u;
        u32 part = unit % 8 / 2;
        nibbles(plane(m, 256, 0, 128, block) + 64 * (unit / 8) + 32 * (part % 2) + 16 * (unit % 2), part / 2, u.codes);
        u32 high[4];
        pairs_of_bits(plane(m, 256, 128, 64, block) + 32 * (unit / 8) + 16 * (unit % 2), 2 * part, high);
#pragma unroll
        for (int i = 0; i < 4; i++) u.codes[i] |= high[i] << 4;
        float scale = float(s8(plane(m, 256, 192, 16, block)[unit]));
        u.scale = half_to_float(load2(plane(m, 256, 208, 2, block))) * scale;
        u.offset = -32.0f * u.scale;
        return u;
    }
};

// The 16 values of a code in IQ4_NL and IQ4_XS.
static __device__ __forceinline__ void non_linear(u32 *codes) {
#pragma unroll
    for (int i = 0; i < 4; i++) codes[i] = looked_up(codes[i], 0xbfad9881, 0xf6eaddcf, 0x26190d01, 0x71594535);
}

struct IQ4_NL {
    static const u32 BLOCK = 32;
    static const bool OFFSET = false;
    UNPACK {
        Unit u;
        nibbles(plane(m, 32, 0, 16, block), unit, u.codes);
        non_linear(u.codes);
        u.scale = half_to_float(load2(plane(m, 32, 16, 2, block)));
        u.offset = 0.0f;
        return u;
    }
};

struct IQ4_XS {
    static const u32 BLOCK = 256;
    static const bool OFFSET = false;
    UNPACK {
        Unit u;
        u32 sub = unit / 2;
        nibbles(plane(m, 256, 0, 128, block) + 16 * sub, unit % 2, u.codes);
        non_linear(u.codes);
        const u8 *header = plane(m, 256, 128, 8, block);
        u32 low = header[4 + sub / 2] >> 4 * (sub % 2) & 15;
        u32 high = load2(header + 2) >> 2 * sub & 3;
        u.scale = half_to_float(load2(header)) * (float(low | high << 4) - 32.0f);
        u.offset = 0.0f;
        return u;
    }
};

struct MXFP4 {
    static const u32 BLOCK = 32;
    static const bool OFFSET = false;
    UNPACK {
        Unit u;
        nibbles(plane(m, 32, 0, 16, block), unit, u.codes);
#pragma unroll
        // Twice the values 0, 1/2, 1, 3/2, 2, 3, 4 and 6, and the same below zero.
        for (int i = 0; i < 4; i++) u.codes[i] = looked_up(u.codes[i], 0x03020100, 0x0c080604, 0xfdfeff00, 0xf4f8fafc);
        u32 exponent = plane(m, 32, 16, 1, block)[0];
        // Half of 2^(exponent - 127), whose smallest are no normal numbers.
        u.scale = bits_to_float(exponent > 1 ? (exponent - 1) << 23 : 0x200000u << exponent);
        u.offset = 0.0f;
        return u;
    }
};
