// What products of activations with matrices have in common: which rows of which matrices, and which columns.
#pragma once
#include "weights.cuh"

// Some rows of a matrix, and where their products go: a row of `stride` floats for each column. Of experts, `first` and `bias` are the first one's.
struct Part {
    Matrix matrix;
    float *to;
    const float *bias;
    u32 first;
    u32 rows;
    u32 stride;
    u32 add;
};

#define MOST_PARTS 4

// Columns of one expert that a block multiplies with it.
struct Tile {
    u32 expert;
    u32 first;
    u32 count;
    u32 unused;
};

struct ProductArguments {
    Part parts[MOST_PARTS];
    u32 part_count;
    u32 column_count;
    // Elements of a column, filled up with zeros to whole 32.
    u32 padded;
    u32 float_stride;
    // The columns as they are, in 8 bits (scale and scale x sum of each unit), and in half precision (of each column what it was divided by).
    const float *floats;
    const s8 *codes;
    const float2 *scales;
    const u16 *halves;
    const float *half_scales;
    // Where the matrices are those of experts: of each token the `used` it goes to, each a pair. Its column is the token's, or its own.
    const Choice *choices;
    const Tile *tiles;
    const u32 *sorted_pairs;
    u32 used;
    u32 by_token;
};

// The part that a row of all parts together belongs to, each being counted in whole `step`s; `row` is then counted from its first. Null: none.
static __device__ __forceinline__ const Part *part_of(const ProductArguments &a, u32 &row, u32 step) {
    for (u32 i = 0; i < a.part_count; i++) {
        u32 rows = rounded_up(a.parts[i].rows, step);
        if (row < rows) return row < a.parts[i].rows ? &a.parts[i] : nullptr;
        row -= rows;
    }
    return nullptr;
}
