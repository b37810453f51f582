// Products with few columns: a warp goes through one row of a matrix once, for up to N columns. What it takes is the time to read the matrix.
#pragma once
#include "products.cuh"

#define MATVEC_THREADS 128

template <typename T, int N>
static __device__ __forceinline__ void float_row(const Matrix &matrix, u64 row, u32 stride, const float *const (&columns)[N], float (&sums)[N]) {
    const u8 *from = matrix.data + row * matrix.columns * element_bytes(T());
    if (matrix.columns % 8 == 0 && stride % 4 == 0) {
#pragma unroll 2
        for (u32 i = threadIdx.x % WARP * 8; i < matrix.columns; i += WARP * 8) {
            float weights[8];
            eight_elements(T(), from, i, weights);
#pragma unroll
            for (int n = 0; n < N; n++) {
                float x[8];
                eight_elements(F32(), reinterpret_cast<const u8 *>(columns[n]), i, x);
#pragma unroll
                for (int j = 0; j < 8; j++) sums[n] += weights[j] * x[j];
            }
        }
        return;
    }
#pragma unroll 4
    for (u32 i = threadIdx.x % WARP; i < matrix.columns; i += WARP) {
        float weight = element(T(), from, i);
#pragma unroll
        for (int n = 0; n < N; n++) sums[n] += weight * columns[n][i];
    }
}

template <typename T, int N>
static __device__ __forceinline__ void quantised_row(const ProductArguments &a, const Matrix &matrix, u64 row, const u32 (&columns)[N], float (&sums)[N]) {
    const u32 units = matrix.columns / UNIT, in_block = T::BLOCK / UNIT;
    u64 first_block = row * (matrix.columns / T::BLOCK);
#pragma unroll 2
    for (u32 unit = threadIdx.x % WARP; unit < units; unit += WARP) {
        Unit weights = T::unpack(matrix, first_block + unit / in_block, unit % in_block);
#pragma unroll
        for (int n = 0; n < N; n++) {
            u64 column = columns[n];
            uint4 codes = load16(reinterpret_cast<const u8 *>(a.codes) + column * a.padded + UNIT * unit);
            float2 scale = a.scales[column * (a.padded / UNIT) + unit];
            int dot = __dp4a(int(weights.codes[0]), int(codes.x), 0);
            dot = __dp4a(int(weights.codes[1]), int(codes.y), dot);
            dot = __dp4a(int(weights.codes[2]), int(codes.z), dot);
            dot = __dp4a(int(weights.codes[3]), int(codes.w), dot);
            sums[n] += weights.scale * (scale.x * float(dot));
            if (T::OFFSET) sums[n] += weights.offset * scale.y;
        }
    }
}

template <typename T, int N>
static __device__ __forceinline__ void matvec(const ProductArguments &a) {
    u32 row = blockIdx.x * (MATVEC_THREADS / WARP) + threadIdx.x / WARP;
    const Part *part = part_of(a, row, MATVEC_THREADS / WARP);
    if (part == nullptr) return;
    u32 first = blockIdx.y * N, columns[N];
    u32 expert = a.choices == nullptr ? 0 : a.choices[first].expert;
    u64 matrix_row = part->first + u64(expert) * part->rows + row;
    float sums[N];
#pragma unroll
    for (int n = 0; n < N; n++) {
        u32 pair = min(first + n, a.column_count - 1);
        columns[n] = a.by_token ? pair / a.used : pair;
        sums[n] = 0.0f;
    }
    if constexpr (IsFloat<T>::value) {
        const float *floats[N];
#pragma unroll
        for (int n = 0; n < N; n++) floats[n] = a.floats + u64(columns[n]) * a.float_stride;
        float_row<T, N>(part->matrix, matrix_row, a.float_stride, floats, sums);
    } else {
        quantised_row<T, N>(a, part->matrix, matrix_row, columns, sums);
    }
    float bias = part->bias == nullptr ? 0.0f : part->bias[u64(expert) * part->rows + row];
#pragma unroll
    for (int n = 0; n < N; n++) {
        float sum = warp_sum(sums[n]) + bias;
        if (threadIdx.x % WARP == 0 && first + n < a.column_count) {
            float *to = part->to + u64(first + n) * part->stride + row;
            *to = part->add ? *to + sum : sum;
        }
    }
}
