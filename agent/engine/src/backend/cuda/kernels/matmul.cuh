// Products with many columns: tiles of 128 rows by 128 columns, multiplied by tensor cores. While they multiply 32 elements of each, the next 32 are read, made
// into half precision, and put into the other half of shared memory.
#pragma once
#include "products.cuh"
#include "tensor_core.cuh"

#define MATMUL_THREADS 128
#define MATMUL_TILE 128
#define DEPTH 32
// Halves from one row to the next in shared memory: a warp's loads of fragments then meet each bank once.
#define SHARED_ROW (DEPTH + 8)
#define SHARED_HALVES (MATMUL_TILE * SHARED_ROW)

// 32 elements of a row in half precision.
struct Stage {
    uint4 quarters[4];
};

static __device__ __forceinline__ void empty(Stage &stage) {
#pragma unroll
    for (int i = 0; i < 4; i++) stage.quarters[i] = make_uint4(0, 0, 0, 0);
}

static __device__ __forceinline__ float of_code(const Unit &unit, int i) {
    return unit.scale * float(s8(unit.codes[i / 4] >> 8 * (i % 4))) + unit.offset;
}

template <typename T>
static __device__ __forceinline__ void load_weights(Stage &stage, const Matrix &matrix, u64 row, u32 k) {
    u32 *words = reinterpret_cast<u32 *>(&stage);
    if constexpr (IsFloat<T>::value) {
        const u8 *from = matrix.data + row * matrix.columns * element_bytes(T());
        if (matrix.columns % 8 == 0 && k + DEPTH <= matrix.columns) {
#pragma unroll
            for (int i = 0; i < 4; i++) {
                float eight[8];
                eight_elements(T(), from, k + 8 * i, eight);
#pragma unroll
                for (int j = 0; j < 4; j++) words[4 * i + j] = pack_halves(eight[2 * j], eight[2 * j + 1]);
            }
            return;
        }
#pragma unroll
        for (int i = 0; i < 16; i++) {
            u32 at = k + 2 * i;
            float low = at < matrix.columns ? element(T(), from, at) : 0.0f;
            float high = at + 1 < matrix.columns ? element(T(), from, at + 1) : 0.0f;
            words[i] = pack_halves(low, high);
        }
    } else {
        const u32 in_block = T::BLOCK / UNIT;
#pragma unroll
        for (int half = 0; half < 2; half++) {
            u32 unit = k / UNIT + half;
            Unit weights = T::unpack(matrix, row * (matrix.columns / T::BLOCK) + unit / in_block, unit % in_block);
#pragma unroll
            for (int i = 0; i < 8; i++) words[8 * half + i] = pack_halves(of_code(weights, 2 * i), of_code(weights, 2 * i + 1));
        }
    }
}

static __device__ __forceinline__ void load_column(Stage &stage, const u16 *column, u32 k) {
    const uint4 *from = reinterpret_cast<const uint4 *>(column + k);
#pragma unroll
    for (int i = 0; i < 4; i++) stage.quarters[i] = from[i];
}

static __device__ __forceinline__ void store(u16 *shared_row, const Stage &stage) {
    uint4 *to = reinterpret_cast<uint4 *>(shared_row);
#pragma unroll
    for (int i = 0; i < 4; i++) to[i] = stage.quarters[i];
}

static __device__ __forceinline__ u32 shared_pair(const u16 *tile, u32 row, u32 k) {
    return *reinterpret_cast<const u32 *>(tile + row * SHARED_ROW + k);
}

// A warp's 64 rows by 64 columns of one depth; `rows` and `columns` of them are there.
static __device__ __forceinline__ void multiply_tiles(float (&sums)[4][8][4], const u16 *weights, const u16 *columns, u32 rows, u32 column_count) {
    u32 g = threadIdx.x % WARP / 4, t = threadIdx.x % 4;
#pragma unroll
    for (u32 k = 2 * t; k < DEPTH; k += 16) {
        u32 a[4][4];
#pragma unroll
        for (u32 i = 0; i < 4; i++) {
            a[i][0] = shared_pair(weights, 16 * i + g, k);
            a[i][1] = shared_pair(weights, 16 * i + g + 8, k);
            a[i][2] = shared_pair(weights, 16 * i + g, k + 8);
            a[i][3] = shared_pair(weights, 16 * i + g + 8, k + 8);
        }
#pragma unroll
        for (u32 j = 0; j < 8; j++) {
            if (8 * j >= column_count) break;
            u32 b[2] = {shared_pair(columns, 8 * j + g, k), shared_pair(columns, 8 * j + g, k + 8)};
#pragma unroll
            for (u32 i = 0; i < 4; i++) {
                if (16 * i < rows) multiply_add(sums[i][j], a[i], b);
            }
        }
    }
}

// Which columns a block multiplies, and with which expert.
struct Work {
    u32 expert;
    u32 first;
    u32 count;
};

static __device__ __forceinline__ Work work_of(const ProductArguments &a) {
    if (a.tiles != nullptr) {
        Tile tile = a.tiles[blockIdx.y];
        return Work{tile.expert, tile.first, tile.count};
    }
    u32 first = blockIdx.y * MATMUL_TILE;
    return Work{0, first, min(u32(MATMUL_TILE), a.column_count - first)};
}

// The pair, or the column, of a block's `n`-th.
static __device__ __forceinline__ u32 column_at(const ProductArguments &a, const Work &work, u32 n) {
    return a.tiles == nullptr ? work.first + n : a.sorted_pairs[work.first + n];
}

static __device__ __forceinline__ void write_product(const Part &part, u32 row, u32 column, float scale, float bias, float sum) {
    float *to = part.to + u64(column) * part.stride + row;
    sum = sum * scale + bias;
    *to = part.add ? *to + sum : sum;
}

static __device__ __forceinline__ void write_tiles(const ProductArguments &a, const Part &part, const Work &work, u32 row, u32 first_column, const float (&sums)[4][8][4]) {
    u32 g = threadIdx.x % WARP / 4, t = threadIdx.x % 4;
    // Indices that are known when the loops are unrolled keep the sums in registers.
#pragma unroll
    for (u32 j = 0; j < 8; j++) {
#pragma unroll
        for (u32 odd = 0; odd < 2; odd++) {
            u32 n = first_column + 8 * j + 2 * t + odd;
            if (n >= work.count) continue;
            u32 column = column_at(a, work, n);
            float scale = a.half_scales[a.by_token ? column / a.used : column];
#pragma unroll
            for (u32 i = 0; i < 8; i++) {
                u32 at = row + 8 * i + g;
                if (at >= part.rows) continue;
                float bias = part.bias == nullptr ? 0.0f : part.bias[u64(work.expert) * part.rows + at];
                write_product(part, at, column, scale, bias, sums[i / 2][j][2 * (i % 2) + odd]);
            }
        }
    }
}

template <typename T>
static __device__ __forceinline__ void matmul(const ProductArguments &a) {
    SHARED_MEMORY(u16, shared);
    u32 tile_row = blockIdx.x * MATMUL_TILE;
    const Part *part = part_of(a, tile_row, MATMUL_TILE);
    const Work work = work_of(a);
    if (part == nullptr || work.count == 0) return;
    // Each thread brings its row and its column.
    u32 row = tile_row + threadIdx.x, n = threadIdx.x;
    bool has_row = row < part->rows, has_column = n < work.count;
    u64 matrix_row = part->first + u64(work.expert) * part->rows + row;
    u32 column = has_column ? column_at(a, work, n) : 0;
    const u16 *halves = a.halves + u64(a.by_token ? column / a.used : column) * a.padded;
    u16 *weights = shared, *columns = shared + 2 * SHARED_HALVES;
    u32 warp_row = threadIdx.x / WARP / 2 * 64, warp_column = threadIdx.x / WARP % 2 * 64;
    u32 rows = part->rows - tile_row > warp_row ? part->rows - tile_row - warp_row : 0;
    u32 column_count = work.count > warp_column ? work.count - warp_column : 0;
    float sums[4][8][4] = {};
    Stage next_weights, next_column;
    empty(next_weights);
    empty(next_column);
    u32 steps = rounded_up(part->matrix.columns, DEPTH) / DEPTH;
    for (u32 step = 0; step <= steps; step++) {
        if (step < steps) {
            if (has_row) load_weights<T>(next_weights, part->matrix, matrix_row, step * DEPTH);
            if (has_column) load_column(next_column, halves, step * DEPTH);
        }
        if (step > 0) {
            u32 half = (step - 1) % 2 * SHARED_HALVES;
            multiply_tiles(sums, weights + half + warp_row * SHARED_ROW, columns + half + warp_column * SHARED_ROW, rows, column_count);
        }
        if (step < steps) {
            u32 half = step % 2 * SHARED_HALVES;
            store(weights + half + threadIdx.x * SHARED_ROW, next_weights);
            store(columns + half + threadIdx.x * SHARED_ROW, next_column);
        }
        __syncthreads();
    }
    write_tiles(a, *part, work, tile_row + warp_row, warp_column, sums);
}
