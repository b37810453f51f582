// The kernels that multiply with weights of one type: for a GPU a module a type, named by WEIGHTS; the emulator has all of them in one.
#include "matmul.cuh"
#include "matvec.cuh"

#define PRODUCTS(T) PRODUCTS_OF(T)
#define PRODUCTS_OF(T)                                                  \
    KERNEL(matvec_1_##T, ProductArguments, MATVEC_THREADS) {            \
        matvec<T, 1>(a);                                                \
    }                                                                   \
    KERNEL(matvec_2_##T, ProductArguments, MATVEC_THREADS) {            \
        matvec<T, 2>(a);                                                \
    }                                                                   \
    KERNEL(matvec_4_##T, ProductArguments, MATVEC_THREADS) {            \
        matvec<T, 4>(a);                                                \
    }                                                                   \
    KERNEL(matvec_8_##T, ProductArguments, MATVEC_THREADS) {            \
        matvec<T, 8>(a);                                                \
    }                                                                   \
    KERNEL(matmul_##T, ProductArguments, MATMUL_THREADS) {              \
        matmul<T>(a);                                                   \
    }

#ifdef WEIGHTS
PRODUCTS(WEIGHTS)
#else
PRODUCTS(F32)
PRODUCTS(F16)
PRODUCTS(BF16)
PRODUCTS(Q4_0)
PRODUCTS(Q4_1)
PRODUCTS(Q5_0)
PRODUCTS(Q5_1)
PRODUCTS(Q8_0)
PRODUCTS(Q2_K)
PRODUCTS(Q3_K)
PRODUCTS(Q4_K)
PRODUCTS(Q5_K)
PRODUCTS(Q6_K)
PRODUCTS(IQ4_NL)
PRODUCTS(IQ4_XS)
PRODUCTS(MXFP4)
#endif
