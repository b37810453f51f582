// One product of tensor cores, 16 x 16 by 16 x 8: `d += a x b`, in half precision with sums in single.
//
// Lane `l` of the warp, with g = l / 4 and t = l % 4, holds pairs of neighbours in k: of A rows g and g + 8 at k = 2t (a[0], a[1]) and 2t + 8 (a[2], a[3]); of
// B column g at k = 2t (b[0]) and 2t + 8 (b[1]); of D rows g (d[0], d[1]) and g + 8 (d[2], d[3]) at columns 2t and 2t + 1. Source: "Matrix fragments for
// mma.m16n8k16 with floating point type" in the PTX ISA.
#pragma once
#include "prelude.cuh"

#ifndef STOWAGE_EMULATED
static __device__ __forceinline__ void multiply_add(float (&d)[4], const u32 (&a)[4], const u32 (&b)[2]) {
#if __CUDA_ARCH__ >= 800
    asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
#else
    // Turing's are half as deep.
    asm("mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5}, {%6}, {%0,%1,%2,%3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(b[0]));
    asm("mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5}, {%6}, {%0,%1,%2,%3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[2]), "r"(a[3]), "r"(b[1]));
#endif
}
#endif
