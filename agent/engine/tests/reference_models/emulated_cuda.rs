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

#[test]
fn caches_of_eight_and_four_bits_differ_by_what_they_round_on_a_gpu_too() {
    let whole = |folder: &Path, case: &Case| computed(folder, case, ON_CPU);
    compare(Way { kv_cache_type: KvCacheType::Q8_0, ..ON_GPU }, usual_difference, whole, |case| 0.015 * case.spread);
    compare(Way { kv_cache_type: KvCacheType::Q4_0, ..ON_GPU }, usual_difference, whole, |case| 0.1 * case.spread);
}

#[test]
fn layers_on_two_gpus_and_the_cpu_compute_what_they_do_on_one_device() {
    let bound = |case: &Case| if case.name.ends_with("mxfp4") { 5e-2 } else { 5e-3 } * case.spread;
    // The output layer, and one block.
    compare(Way { num_gpu: 2, ..ON_GPU }, largest_difference, expected, bound);
}
