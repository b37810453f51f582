// Kernels that are wrong, by which the emulator itself is tested.
#include "../kernels/prelude.cuh"

struct WrongArguments {
    float *to;
};

// The second warp never comes to where the first waits.
KERNEL(wrong_barrier, WrongArguments, 64) {
    if (threadIdx.x < WARP) __syncthreads();
    a.to[threadIdx.x] = 1.0f;
}

// Half a warp exchanges with lanes that have ended.
KERNEL(wrong_exchange, WrongArguments, 64) {
    if (threadIdx.x % WARP < 16) a.to[threadIdx.x] = warp_sum(1.0f);
}

// The first warp reads what the second has not written, or the other way round in every other block.
KERNEL(wrong_order, WrongArguments, 64) {
    SHARED_MEMORY(float, shared);
    shared[threadIdx.x] = 1.0f;
    a.to[blockIdx.x * 64 + threadIdx.x] = shared[63 - threadIdx.x];
}
