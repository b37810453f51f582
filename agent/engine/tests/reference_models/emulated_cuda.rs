//! The same models through the CUDA backend, its kernels run by the emulator.

use super::*;

const ONE: &[Gpu] = &[Gpu { id: "emulated-cuda-0", backend: Backend::Cuda, offered: Bytes::gib(1) }];

/// All layers on one emulated GPU.
const ON_GPU: Way = Way { num_gpu: 999, gpus: ONE, ..ON_CPU };

#[test]
fn the_cuda_backend_computes_what_transformers_computes_but_for_what_it_rounds() {
    // As on the CPU; and prompts are multiplied in half precision.
    compare(ON_GPU, largest_difference, expected, |case| if case.name.ends_with("mxfp4") { 5e-2 } else { 5e-3 } * case.spread);
}
