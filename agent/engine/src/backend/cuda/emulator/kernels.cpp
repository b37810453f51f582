// The kernels themselves, in one unit, as the emulator runs them.
#define STOWAGE_EMULATED
#include "emulator.cpp"

#include "../kernels/attention.cu"
#include "../kernels/attention_tiles.cu"
#include "../kernels/experts.cu"
#include "../kernels/heads.cu"
#include "../kernels/measure.cu"
#include "../kernels/products.cu"
#include "../kernels/rows.cu"
#include "wrong.cu"
