use std::path::Path;

use stowage_placement::gguf::GgmlType;
use stowage_placement::{Bytes, DeviceAllocation, KvCacheType, Reason, Request, Tokens};

use super::LoadedModel;
use crate::api::{BackendChoice, EngineError, LoadRequest, MeasuredDevice};
use crate::batch::Batch;
use crate::cache::Checkpoint;
use crate::host_plan::on_host;
use crate::kernels::Isa;
use crate::small_models::{SmallModel, write, write_parts};
use crate::{Activations, Computing, divergence, test_models};

fn request(num_ctx: u64, num_batch: u32, parallel: u32) -> Request {
    Request { num_ctx: Tokens(num_ctx), num_gpu: 0, num_batch, parallel, ..Request::default() }
}

fn load(request: &LoadRequest) -> LoadedModel {
    LoadedModel::load(request, &mut |_| {}).unwrap()
}

fn load_small(model: SmallModel, request: &Request, backend: BackendChoice) -> LoadedModel {
    let folder = tempfile::tempdir().unwrap();
    let load_request = LoadRequest { backend, ..on_host(&model.write(folder.path()), request, 2).unwrap() };
    load(&load_request)
}

fn failure(request: Result<LoadRequest, EngineError>) -> EngineError {
    request.and_then(|request| LoadedModel::load(&request, &mut |_| {})).err().unwrap()
}

/// Logits after every token of two sequences that are computed by turns: prefill in pieces, several slots in a batch, then single tokens.
fn two_conversations(model: &mut LoadedModel) -> Vec<f32> {
    let steps: [&[(u32, std::ops::Range<u32>)]; 6] =
        [&[(0, 0..7)], &[(1, 0..3), (0, 7..11)], &[(1, 3..12)], &[(0, 11..12), (1, 12..13)], &[(0, 12..13)], &[(0, 5..6)]];
    let mut logits = Vec::new();
    for step in steps {
        let mut batch = Batch::default();
        for (slot, positions) in step.iter().cloned() {
            for position in positions {
                batch.push_wanted((position * 7 + slot * 3 + 1) % model.vocabulary() as u32, slot, position);
            }
        }
        model.step_each(&batch, &mut |_, row| logits.extend_from_slice(row)).unwrap();
    }
    logits
}

fn largest_difference(a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len());
    a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max)
}

#[test]
fn a_model_in_three_files_computes_what_it_does_in_one() {
    let folder = tempfile::tempdir().unwrap();
    let (small, request) = (SmallModel::default(), request(64, 16, 2));
    let first = write_parts(small.header(), 3, folder.path());
    let mut split = load(&on_host(&first, &request, 2).unwrap());
    let mut whole = load_small(small, &request, BackendChoice::Cpu);
    assert_eq!(two_conversations(&mut split), two_conversations(&mut whole));

    std::fs::remove_file(folder.path().join("small-00002-of-00003.gguf")).unwrap();
    let missing = failure(on_host(&first, &request, 2));
    assert_eq!(missing.reason, Reason::ModelNotFound);
    assert!(missing.message.contains("small-00002-of-00003.gguf"), "{missing}");
    let last = failure(on_host(&folder.path().join("small-00003-of-00003.gguf"), &request, 2));
    assert_eq!(last.reason, Reason::InvalidModelFile);
    assert!(last.message.contains("named by its first part, small-00001-of-00003.gguf"), "{last}");
}

fn same_bytes(measured: &MeasuredDevice, planned: &DeviceAllocation) {
    let wanted = [planned.weights_bytes, planned.kv_cache_bytes, planned.compute_bytes, planned.overhead_bytes, planned.total_bytes];
    assert_eq!([measured.weights, measured.kv_cache, measured.compute, measured.overhead, measured.total()], wanted);
    assert_eq!(measured.id, planned.id);
}

#[test]
fn cpu_and_reference_agree_on_small_models_in_pieces_slots_and_single_tokens() {
    let plain = SmallModel::default();
    for model in [plain, SmallModel { tied: true, rope_factors: true, ..plain }, SmallModel { heads: 3, kv_heads: 3, ..plain }] {
        let request = request(300, 16, 2);
        let expected = two_conversations(&mut load_small(model, &request, BackendChoice::Reference));
        let spread = expected.iter().fold(0f32, |most, logit| most.max(logit.abs()));
        assert!(spread > 1.0, "logits of at most {spread} would hide differences");
        let found = two_conversations(&mut load_small(model, &request, BackendChoice::Cpu));
        // The cache is f16 on one side and f32 on the other.
        let difference = largest_difference(&expected, &found);
        assert!(difference < 2e-3 * spread, "largest difference {difference} of logits up to {spread}");
    }
}

/// Logits after single tokens far into two sequences of unlike lengths, where attention is computed in parts.
fn far_tokens(model: &mut LoadedModel) -> Vec<f32> {
    let token = |slot: u32, position: u32| (position * position * 7 + slot * 3 + 1) % 53;
    let mut batch = Batch::default();
    for (slot, length) in [(0, 1100), (1, 300)] {
        for first in (0..length).step_by(50) {
            batch.clear();
            (first..first + 50).for_each(|position| batch.push(token(slot, position), slot, position));
            model.step(&batch).unwrap();
        }
    }
    let mut logits = Vec::new();
    let steps: [&[(u32, u32)]; 4] = [&[(0, 1100)], &[(0, 1101), (1, 300)], &[(1, 301)], &[(0, 1102), (0, 1103), (0, 1104), (1, 302)]];
    for step in steps {
        batch.clear();
        step.iter().for_each(|&(slot, position)| batch.push_wanted(token(slot, position), slot, position));
        model.step_each(&batch, &mut |_, row| logits.extend_from_slice(row)).unwrap();
    }
    logits
}

#[test]
fn cpu_and_reference_agree_on_tokens_that_see_much() {
    let plain = SmallModel::default();
    for (model, kv_cache_type, allowed) in [
        (plain, KvCacheType::F16, 5e-3),
        (SmallModel { heads: 3, kv_heads: 1, embedding: 96, ..plain }, KvCacheType::Q8_0, 2e-2),
        (SmallModel { window: Some(700), feed_forward: 96, ..plain }, KvCacheType::F16, 5e-3),
    ] {
        let request = Request { kv_cache_type, ..request(1200, 64, 2) };
        let folder = tempfile::tempdir().unwrap();
        let path = model.write(folder.path());
        let run = |backend, threads| far_tokens(&mut load(&LoadRequest { backend, ..on_host(&path, &request, threads).unwrap() }));
        let expected = run(BackendChoice::Reference, 1);
        let spread = expected.iter().fold(0f32, |most, logit| most.max(logit.abs()));
        let found = run(BackendChoice::Cpu, 2);
        let difference = largest_difference(&expected, &found);
        assert!(difference < allowed * spread, "{kv_cache_type:?}: largest difference {difference} of logits up to {spread}");
        assert_eq!(found, run(BackendChoice::Cpu, 3), "the work is divided, not changed");
    }
}

#[test]
fn hidden_states_for_embeddings_agree_too() {
    let request = request(64, 16, 1);
    let mut batch = Batch::default();
    batch.push_run(&[3, 1, 4, 1, 5, 9, 2, 6], 0, 0, false);
    let mut models = [BackendChoice::Reference, BackendChoice::Cpu].map(|backend| load_small(SmallModel::default(), &request, backend));
    let [expected, found] = models.each_mut().map(|model| model.embed_step(&batch).unwrap().to_vec());
    assert_eq!(expected.len(), 8 * 72);
    assert!(largest_difference(&expected, &found) < 5e-3);
}

#[test]
fn threads_and_batches_do_not_change_the_answer_beyond_rounding() {
    let folder = tempfile::tempdir().unwrap();
    let path = SmallModel::default().write(folder.path());
    let run = |threads, num_batch| two_conversations(&mut load(&on_host(&path, &request(300, num_batch, 2), threads).unwrap()));
    assert_eq!(run(1, 16), run(3, 16), "the work is divided, not changed");
}

#[test]
fn what_is_allocated_is_what_was_planned_to_the_byte() {
    let path = test_models::smollm2().expect("SmolLM2 is needed: run `make models`");
    for (num_ctx, parallel) in [(512, 1), (1000, 3), (4096, 1), (8192, 1)] {
        let request = on_host(&path, &request(num_ctx, 512, parallel), 1).unwrap();
        let mut seen = Vec::new();
        let model = LoadedModel::load(&request, &mut |progress| seen.push((progress.loaded, progress.total))).unwrap();
        let [host] = &request.plan.devices[..] else { panic!("one device") };
        same_bytes(&model.measured()[0], host);
        assert!(seen.is_sorted() && seen.last().is_some_and(|(loaded, total)| loaded == total), "progress goes to the end");
    }
}

#[test]
fn smollm2_on_the_cpu_stays_within_the_divergence_gates() {
    let path = test_models::smollm2().expect("SmolLM2 is needed: run `make models`");
    let load_request = on_host(&path, &request(256, 128, 1), 0).unwrap();
    let mut reference = load(&LoadRequest { backend: BackendChoice::Reference, ..load_request.clone() });
    let text = include_str!("../../testdata/apache-2.0.txt");
    let tokens = crate::Tokenizer::from_header(reference.header()).unwrap().encode(text, false).unwrap();
    let floats = Computing { activations: Activations::Floats, ..Computing::default() };
    let mut others = [load(&load_request), LoadedModel::load_with(&load_request, floats, &mut |_| {}).unwrap()];
    let found = divergence::compare(&mut reference, &mut others, &[], &tokens[..256]).unwrap();
    let [quantised, floats] = found.as_slice() else { panic!("{found:?}") };
    assert!(quantised.mean <= 0.006 && floats.mean <= 1e-5, "{found:?}");
    assert!(quantised.same_top > 0.9 && floats.same_top > 0.98, "{found:?}");
    assert!(quantised.mean > floats.mean, "quantising costs something: {found:?}");
    assert!(quantised.perplexity[0] < 30.0, "the reference understands the text: {found:?}");
}

#[test]
fn every_instruction_set_passes_the_self_test() {
    let folder = tempfile::tempdir().unwrap();
    let load_request = on_host(&SmallModel::default().write(folder.path()), &request(64, 32, 1), 2).unwrap();
    for isa in Isa::available() {
        let computing = Computing { isa, ..Computing::default() };
        LoadedModel::load_with(&load_request, computing, &mut |_| {}).unwrap().self_test().unwrap();
    }
}

#[test]
fn a_batch_that_names_what_is_not_there_is_refused() {
    let mut model = load_small(SmallModel::default(), &request(64, 16, 2), BackendChoice::Cpu);
    for (token, slot, position) in [(53, 0, 0), (0, 2, 0), (0, 0, 64)] {
        let mut batch = Batch::default();
        batch.push(token, slot, position);
        assert_eq!(model.step(&batch).unwrap_err().reason, Reason::InvalidRequest);
    }
    let mut batch = Batch::default();
    assert_eq!(model.step(&batch).unwrap_err().reason, Reason::InvalidRequest);
    batch.push_run(&[0; 17], 0, 0, false);
    assert_eq!(model.step(&batch).unwrap_err().reason, Reason::InvalidRequest);
    assert_eq!(model.max_wanted(), 8);
}

#[test]
fn bad_files_are_refused_with_what_was_found_and_needed() {
    let folder = tempfile::tempdir().unwrap();
    let path = SmallModel::default().write(folder.path());
    let good = on_host(&path, &request(64, 16, 1), 1).unwrap();
    let whole = std::fs::read(&path).unwrap();

    std::fs::write(&path, &whole[..whole.len() - 100]).unwrap();
    let error = failure(Ok(good.clone()));
    assert_eq!(error.reason, Reason::InvalidModelFile);
    assert!(error.message.contains(&(whole.len() - 100).to_string()), "{error}");

    std::fs::write(&path, b"PK, not a model").unwrap();
    assert_eq!(failure(Ok(good.clone())).reason, Reason::InvalidModelFile);

    let missing = LoadRequest { path: folder.path().join("missing.gguf"), ..good };
    assert_eq!(failure(Ok(missing)).reason, Reason::ModelNotFound);
}

/// Logits after the last of some tokens that follow each other in slot 0.
fn read(model: &mut LoadedModel, tokens: &[u32], first: u32) -> Vec<f32> {
    let mut logits = Vec::new();
    for (chunk, at) in tokens.chunks(16).zip((first..).step_by(16)) {
        let mut batch = Batch::default();
        batch.push_run(chunk, 0, at, true);
        logits = model.step(&batch).unwrap().to_vec();
    }
    logits
}

#[test]
fn a_ring_that_was_written_over_is_put_back_from_its_copy() {
    let folder = tempfile::tempdir().unwrap();
    let path = SmallModel { window: Some(40), feed_forward: 96, ..SmallModel::default() }.write(folder.path());
    let request = request(2048, 16, 2);
    let token = |i: u32| i * 7 % 53;
    let question: Vec<u32> = (0..200).map(token).collect();
    let ending: Vec<u32> = (900..905).map(token).collect();
    // Longer than the ring of 256 cells, so that nothing of the question is left in it.
    let answer: Vec<u32> = (200..800).map(token).collect();
    let mut fresh = load(&on_host(&path, &request, 2).unwrap());
    read(&mut fresh, &question, 0);
    let expected = read(&mut fresh, &ending, 200);

    let planned = on_host(&path, &request, 2).unwrap();
    let mut model = load(&planned);
    same_bytes(&model.measured()[0], &planned.plan.devices[0]);
    read(&mut model, &question, 0);
    model.checkpoint(0, 1, Checkpoint::Keep);
    read(&mut model, &answer, 200);
    assert!(!model.can_rewind(800, 200) && model.can_rewind(200, 200) && model.can_rewind(200, 190));
    assert_ne!(read(&mut model, &ending, 200), expected, "what it looks back on is written over");
    model.checkpoint(0, 1, Checkpoint::PutBack);
    assert_eq!(read(&mut model, &ending, 200), expected);
}

#[test]
fn what_the_engine_does_not_have_is_refused_by_name() {
    let folder = tempfile::tempdir().unwrap();
    let small = SmallModel::default();
    let good = on_host(&small.write(folder.path()), &request(64, 16, 1), 1).unwrap();
    let refuse = |path: &Path, word: &str| {
        let error = failure(Ok(LoadRequest { path: path.into(), ..good.clone() }));
        assert_eq!(error.reason, Reason::EngineCannotRun, "{error}");
        assert!(error.message.contains(word), "{error}");
    };
    refuse(&write(&small.header().string("llama.rope.scaling.type", "spiral"), folder.path()), "spiral");
    refuse(&write(&small.header().tensor("blk.0.attn_sub_norm.weight", GgmlType::F32, &[72]), folder.path()), "attn_sub_norm");
    refuse(&write(&small.header().tensor("output.weight.bits", GgmlType::IQ2_S, &[256, 4]), folder.path()), "output.weight.bits");

    let path = small.write(folder.path());
    let quantised_cache = Request { kv_cache_type: KvCacheType::Q8_0, ..good.request.clone() };
    let error = failure(Ok(LoadRequest { path, request: quantised_cache, ..good.clone() }));
    assert!(error.reason == Reason::EngineCannotRun && error.message.contains("q8_0"), "{error}");
}

#[test]
fn a_plan_that_is_not_this_model_s_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let good = on_host(&SmallModel::default().write(folder.path()), &request(64, 16, 1), 1).unwrap();
    let refused = |change: &dyn Fn(&mut LoadRequest)| {
        let mut request = good.clone();
        change(&mut request);
        failure(Ok(request))
    };
    let error = refused(&|request| request.plan.devices[0].weights_bytes = Bytes(1));
    assert!(error.reason == Reason::LoadFailed && error.message.contains("has 1 bytes of weights"), "{error}");
    let error = refused(&|request| request.plan.devices[0].layer_ranges = vec![[0, 2]]);
    assert!(error.message.contains("layer 3 of 4 on 0 devices"), "{error}");
    let error = refused(&|request| request.plan.devices.clear());
    assert!(error.message.contains("host"), "{error}");
}

#[cfg(not(feature = "simulated-gpu"))]
#[test]
fn gpu_layers_are_refused_where_cuda_has_no_such_gpu() {
    use stowage_placement::DeviceKind;
    let folder = tempfile::tempdir().unwrap();
    let mut request = on_host(&SmallModel::default().write(folder.path()), &request(64, 16, 1), 1).unwrap();
    let gpu = DeviceAllocation { id: "GPU-1".into(), kind: DeviceKind::Gpu, layer_ranges: vec![[3, 3]], ..DeviceAllocation::default() };
    request.plan.devices.insert(0, gpu);
    let error = failure(Ok(request));
    assert_eq!(error.reason, Reason::EngineCannotRun);
    assert!(error.message.starts_with("the plan puts layers on GPU GPU-1, and "), "{error}");
}

#[cfg(feature = "simulated-gpu")]
mod with_simulated_gpus {
    use stowage_placement::layout::Backend;
    use stowage_placement::{Asked, Device, ModelSummary, NodeDevices, decide};

    use super::*;
    use crate::file_mmap::ModelFile;

    /// A plan with `gpu_layers` of the model on two GPUs and the host.
    fn split(path: &Path, parallel: u32, gpu_layers: i64, each: Bytes) -> LoadRequest {
        let file = ModelFile::open(path).unwrap();
        let summary = ModelSummary::from_header(file.header(), Bytes(std::fs::metadata(path).unwrap().len())).unwrap();
        let gpu =
            |id: &str| Device { id: id.into(), backend: Backend::SimulatedGpu, offered: each, overhead: Bytes(1000), ..Device::default() };
        let devices = NodeDevices::new(vec![gpu("GPU-1"), gpu("GPU-2")], Bytes::gib(64));
        let asked = Asked { num_ctx: Some(Tokens(300)), num_gpu: gpu_layers, parallel, num_batch: 16, ..Asked::default() };
        let decision = decide(&summary, &asked, &devices).unwrap();
        decision.verdict.unwrap();
        let report = decision.report;
        LoadRequest {
            start: crate::api::Start::InMemory,
            path: path.into(),
            plan: report.plan,
            request: report.request,
            num_thread: 2,
            template: String::new(),
            backend: BackendChoice::Cpu,
        }
    }

    #[test]
    fn a_model_in_parts_answers_as_a_whole_one_and_each_device_holds_what_was_planned() {
        let folder = tempfile::tempdir().unwrap();
        for tied in [false, true] {
            let path = SmallModel { tied, ..SmallModel::default() }.write(folder.path());
            let expected = two_conversations(&mut load(&on_host(&path, &request(300, 16, 2), 2).unwrap()));
            for (gpu_layers, each) in [(1, 1 << 20), (2, 1 << 20), (4, 1 << 20), (4, 530_000)] {
                let request = split(&path, 2, gpu_layers, Bytes(each));
                let mut model = load(&request);
                assert_eq!(two_conversations(&mut model), expected, "{gpu_layers} layers on GPU");
                for (measured, planned) in model.measured().iter().zip(&request.plan.devices) {
                    same_bytes(measured, planned);
                }
            }
        }
    }
}
