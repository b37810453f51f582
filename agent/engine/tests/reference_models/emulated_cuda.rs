//! The same models through the CUDA backend, its kernels run by the emulator.

use super::*;

const FIRST: Gpu = Gpu { id: "emulated-cuda-0", backend: Backend::Cuda, offered: Bytes::gib(1) };

/// All layers on one emulated GPU.
const ON_GPU: Way = Way { num_gpu: 999, gpus: &[FIRST], ..ON_CPU };

/// As on the CPU; and prompts are multiplied in half precision.
fn bound(case: &Case) -> f32 {
    case.spread * if case.name.ends_with("mxfp4") { 5e-2 } else { 5e-3 }
}

#[test]
fn the_cuda_backend_computes_what_transformers_computes_but_for_what_it_rounds() {
    compare(ON_GPU, largest_difference, expected, bound);
}

#[test]
fn caches_of_eight_and_four_bits_differ_by_what_they_round_on_a_cuda_device_too() {
    let whole = |folder: &Path, case: &Case| computed(folder, case, ON_CPU);
    compare(Way { kv_cache_type: KvCacheType::Q8_0, ..ON_GPU }, usual_difference, whole, |case| 0.015 * case.spread);
    compare(Way { kv_cache_type: KvCacheType::Q4_0, ..ON_GPU }, usual_difference, whole, |case| 0.1 * case.spread);
}

#[test]
fn a_model_split_between_a_cuda_device_and_the_cpu_computes_the_same() {
    // The output layer, and one block.
    compare(Way { num_gpu: 2, ..ON_GPU }, largest_difference, expected, bound);
}

#[test]
fn a_model_split_over_two_cuda_devices_computes_the_same() {
    let (folder, case) = cases().into_iter().find(|(_, case)| case.name == "llama").unwrap();
    let path = folder.join(&case.gguf);
    let request = Request { num_ctx: Tokens(case.sequences[0].num_ctx), parallel: 1, num_batch: CHUNK as u32, ..Request::default() };
    let whole = split(&path, &request, &[FIRST]);
    let on_gpu = whole.devices.iter().find(|device| device.id == FIRST.id).unwrap();
    // One byte less than all of it: the last layers that don't fit go to the second.
    let offered = Bytes(on_gpu.total_bytes.0 - 1);
    let gpus = ["emulated-cuda-0", "emulated-cuda-1"].map(|id| Gpu { id, offered, ..FIRST });
    let plan = split(&path, &Request { num_gpu: 999, ..request.clone() }, &gpus);
    assert!(gpus.iter().all(|gpu| plan.devices.iter().any(|device| device.id == gpu.id && device.total_bytes > Bytes::ZERO)));
    let mut load = on_host(&path, &request, 2).unwrap();
    load.plan = plan;
    let mut model = LoadedModel::load(&load, &mut |_| {}).unwrap();
    for (measured, planned) in model.measured().iter().zip(&load.plan.devices) {
        assert_eq!(measured.total(), planned.total_bytes, "{}", planned.id);
    }
    let mut rows = vec![Vec::new(); case.shape[0]];
    let sequence = &case.sequences[0];
    run(&mut model, &[sequence], CHUNK, &mut rows);
    let expected = expected(&folder, &case);
    let (first, count) = (sequence.first_row, sequence.positions.len());
    assert!(largest_difference(&rows[first..first + count], &expected[first..first + count]) <= bound(&case));
}

#[test]
fn texts_are_embedded_on_a_cuda_device_as_transformers_does() {
    let cases: Vec<_> = cases().into_iter().filter(|(_, case)| case.kind == "embeddings").collect();
    assert_eq!(cases.len(), 3);
    for (folder, case) in cases {
        let expected = expected(&folder, &case);
        let path = folder.join(&case.gguf);
        for (slot, sequence) in case.sequences.iter().enumerate() {
            let request = Request { num_ctx: Tokens(sequence.num_ctx), num_batch: 64, parallel: 2, num_gpu: 999, ..Request::default() };
            let mut load = on_host(&path, &request, 2).unwrap();
            load.plan = split(&path, &request, &[FIRST]);
            let mut model = LoadedModel::load(&load, &mut |_| {}).unwrap();
            let mut batch = Batch::default();
            batch.push_run(&sequence.tokens, slot as u32, 0, false);
            let rows: Vec<Vec<f32>> = model.embed_step(&batch).unwrap().chunks_exact(case.shape[1]).map(<[f32]>::to_vec).collect();
            let difference = largest_difference(&expected[sequence.first_row..][..sequence.positions.len()], &rows);
            assert!(difference <= bound(&case), "{}: {difference}", case.name);
        }
    }
}

#[test]
fn a_cuda_device_with_less_free_than_planned_is_refused_with_the_numbers() {
    let (folder, case) = cases().into_iter().find(|(_, case)| case.name == "llama").unwrap();
    let path = folder.join(&case.gguf);
    let request = Request { num_ctx: Tokens(64), parallel: 1, num_batch: 8, num_gpu: 999, ..Request::default() };
    let small = Gpu { id: "emulated-cuda-0@65536", ..FIRST };
    let mut load = on_host(&path, &request, 2).unwrap();
    load.plan = split(&path, &request, &[small]);
    let error = LoadedModel::load(&load, &mut |_| {}).err().unwrap();
    assert_eq!(error.reason, stowage_placement::Reason::DeviceChanged);
    assert!(error.message.contains("64.0 KiB of 64.0 KiB are free"), "{error}");
}
