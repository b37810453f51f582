// How fast a GPU's tensor cores are when nothing keeps them waiting: each warp multiplies what it has in registers, again and again.
#include "tensor_core.cuh"

// Sums of a warp that don't wait for each other.
#define CHAINS 8

struct MeasureArguments {
    float *to;
    u32 rounds;
    u32 unused;
};

KERNEL(multiply_registers, MeasureArguments, 128) {
    u32 left[4], right[2];
    for (int i = 0; i < 4; i++) left[i] = threadIdx.x + i;
    for (int i = 0; i < 2; i++) right[i] = threadIdx.x + 8 + i;
    float sums[CHAINS][4];
    for (int i = 0; i < CHAINS; i++) {
        for (int j = 0; j < 4; j++) sums[i][j] = 0.0f;
    }
    for (u32 round = 0; round < a.rounds; round++) {
#pragma unroll
        for (int i = 0; i < CHAINS; i++) multiply_add(sums[i], left, right);
    }
    // What nobody reads, the compiler would leave out.
    float sum = 0.0f;
    for (int i = 0; i < CHAINS; i++) {
        for (int j = 0; j < 4; j++) sum += sums[i][j];
    }
    a.to[blockIdx.x * blockDim.x + threadIdx.x] = sum;
}
