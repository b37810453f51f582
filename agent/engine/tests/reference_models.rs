//! Small models of every architecture against what `transformers` computes for them: see `testdata/reference`.
//!
//! Two sequences at once, read in chunks and then token by token, beyond windows and beyond the context that positions were scaled from.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use stowage_engine::batch::Batch;
use stowage_engine::host_plan::on_host;
use stowage_engine::model::LoadedModel;
use stowage_engine::{BackendChoice, Pooling};
use stowage_placement::layout::Backend;
use stowage_placement::{Asked, Bytes, Device, DevicePlan, KvCacheType, ModelSummary, NodeDevices, Request, Tokens, capability, decide};

/// Tokens of a sequence that are read at once where a test does not say otherwise.
const CHUNK: usize = 7;
/// Tokens at the end of a sequence that come one by one, as when an answer is generated.
const SINGLE: usize = 9;

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Case {
    name: String,
    kind: String,
    gguf: String,
    values: String,
    /// `[rows, vocabulary]` of the values.
    shape: [usize; 2],
    /// How far logits of a row lie apart.
    spread: f32,
    sequences: Vec<Sequence>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Sequence {
    num_ctx: u64,
    tokens: Vec<u32>,
    first_row: usize,
    positions: Vec<u32>,
    /// Of length 1; of models that embed.
    #[serde(default)]
    embedding: Vec<f32>,
}

fn cases() -> Vec<(PathBuf, Case)> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata/reference/models");
    let mut folders: Vec<PathBuf> = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    folders.sort();
    let case = |folder: PathBuf| {
        let case = serde_json::from_slice(&std::fs::read(folder.join("case.json")).unwrap()).unwrap();
        (folder, case)
    };
    folders.into_iter().map(case).collect()
}

fn expected(folder: &Path, case: &Case) -> Vec<Vec<f32>> {
    let bytes = std::fs::read(folder.join(&case.values)).unwrap();
    let floats: Vec<f32> = bytes.chunks_exact(4).map(|four| f32::from_le_bytes(four.try_into().unwrap())).collect();
    assert_eq!(floats.len(), case.shape[0] * case.shape[1]);
    floats.chunks_exact(case.shape[1]).map(<[f32]>::to_vec).collect()
}

/// How a case is computed.
#[derive(Clone, Copy)]
struct Way {
    backend: BackendChoice,
    kv_cache_type: KvCacheType,
    /// Tokens of a sequence that are read at once.
    chunk: usize,
    /// Layers on GPUs.
    num_gpu: i64,
    /// The GPUs, and what each offers.
    gpus: &'static [Gpu],
}

/// A GPU of a plan. A build without any makes none.
#[cfg_attr(not(any(feature = "simulated-gpu", feature = "emulated-cuda")), allow(dead_code))]
#[derive(Clone, Copy)]
struct Gpu {
    id: &'static str,
    backend: Backend,
    offered: Bytes,
}

#[cfg(feature = "emulated-cuda")]
#[path = "reference_models/emulated_cuda.rs"]
mod emulated_cuda;

const ON_CPU: Way = Way { backend: BackendChoice::Cpu, kv_cache_type: KvCacheType::F16, chunk: CHUNK, num_gpu: 0, gpus: &[] };

impl Way {
    /// The plan is placement's, and loading fails where the engine would take other bytes.
    fn load(self, path: &Path, num_ctx: u64, parallel: u32) -> LoadedModel {
        let num_batch = CHUNK as u32 * parallel;
        let request = Request { num_ctx: Tokens(num_ctx), parallel, num_batch, kv_cache_type: self.kv_cache_type, num_gpu: self.num_gpu };
        let mut load = on_host(path, &request, 2).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        if self.num_gpu > 0 {
            load.plan = split(path, &request, self.gpus);
        }
        load.backend = self.backend;
        let model = LoadedModel::load(&load, &mut |_| {}).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        for (measured, planned) in model.measured().iter().zip(&load.plan.devices).filter(|_| self.backend == BackendChoice::Cpu) {
            let planned = [planned.weights_bytes, planned.kv_cache_bytes, planned.checkpoint_bytes, planned.compute_bytes];
            assert_eq!([measured.weights, measured.kv_cache, measured.checkpoint, measured.compute], planned, "{}", path.display());
        }
        model
    }
}

fn summary(path: &Path) -> ModelSummary {
    let header = stowage_placement::testing::read(&std::fs::read(path).unwrap());
    ModelSummary::from_header(&header, Bytes::ZERO).unwrap()
}

/// A plan with so many layers on these GPUs.
fn split(path: &Path, request: &Request, gpus: &[Gpu]) -> DevicePlan {
    let Request { num_ctx, num_gpu, kv_cache_type, parallel, num_batch } = request.clone();
    let asked = Asked { num_ctx: Some(num_ctx), num_gpu, kv_cache_type, parallel, num_batch, ..Asked::default() };
    let device = |gpu: &Gpu| Device { id: gpu.id.into(), backend: gpu.backend, offered: gpu.offered, ..Device::default() };
    let decision = decide(&summary(path), &asked, &NodeDevices::new(gpus.iter().map(device).collect(), Bytes::gib(1))).unwrap();
    decision.verdict.unwrap();
    decision.report.plan
}

/// Logits `[rows of the case, vocabulary]`. Sequences for which a model is loaded with the same context run at once.
fn computed(folder: &Path, case: &Case, way: Way) -> Vec<Vec<f32>> {
    let mut rows = vec![Vec::new(); case.shape[0]];
    let contexts: BTreeSet<u64> = case.sequences.iter().map(|sequence| sequence.num_ctx).collect();
    for num_ctx in contexts {
        let sequences: Vec<&Sequence> = case.sequences.iter().filter(|sequence| sequence.num_ctx == num_ctx).collect();
        let mut model = way.load(&folder.join(&case.gguf), num_ctx, sequences.len() as u32);
        run(&mut model, &sequences, way.chunk, &mut rows);
    }
    rows
}

/// Takes each sequence through a slot of its own, and keeps the logits that the case has.
fn run(model: &mut LoadedModel, sequences: &[&Sequence], chunk: usize, rows: &mut [Vec<f32>]) {
    let mut done = vec![0; sequences.len()];
    while done.iter().zip(sequences).any(|(done, sequence)| *done < sequence.tokens.len()) {
        let mut batch = Batch::default();
        let mut wanted = Vec::new();
        for (slot, (sequence, done)) in sequences.iter().zip(&mut done).enumerate() {
            let left = sequence.tokens.len() - *done;
            let count = if left > SINGLE { chunk.min(left - SINGLE) } else { left.min(1) };
            for position in *done..*done + count {
                let (token, slot) = (sequence.tokens[position], slot as u32);
                match sequence.positions.iter().position(|at| *at as usize == position) {
                    Some(row) => {
                        batch.push_wanted(token, slot, position as u32);
                        wanted.push(sequence.first_row + row);
                    }
                    None => batch.push(token, slot, position as u32),
                }
            }
            *done += count;
        }
        let mut next = wanted.into_iter();
        model.step_each(&batch, &mut |_, logits| rows[next.next().unwrap()] = logits.to_vec()).unwrap();
    }
}

fn largest_difference(a: &[Vec<f32>], b: &[Vec<f32>]) -> f32 {
    a.iter().flatten().zip(b.iter().flatten()).fold(0f32, |most, (a, b)| most.max((a - b).abs()))
}

/// The root of the mean square difference: a router that is pushed over to another expert for one token does not decide it.
fn usual_difference(a: &[Vec<f32>], b: &[Vec<f32>]) -> f32 {
    let squares: Vec<f32> = a.iter().flatten().zip(b.iter().flatten()).map(|(a, b)| (a - b).powi(2)).collect();
    (squares.iter().sum::<f32>() / squares.len() as f32).sqrt()
}

/// How far two sets of logits are apart.
type Measure = fn(&[Vec<f32>], &[Vec<f32>]) -> f32;

/// Each case's difference to what is expected of it, and what that must stay below.
fn compare(way: Way, measure: Measure, expected: impl Fn(&Path, &Case) -> Vec<Vec<f32>>, bound: impl Fn(&Case) -> f32) {
    let mut failed = Vec::new();
    let mut compared = 0;
    let runs = |folder: &Path, case: &Case| {
        case.kind == "logits" && capability::runs(&summary(&folder.join(&case.gguf)), way.kv_cache_type, Backend::Cpu).is_ok()
    };
    for (folder, case) in cases().into_iter().filter(|(folder, case)| runs(folder, case)) {
        let Ok(found) = std::panic::catch_unwind(|| computed(&folder, &case, way)) else {
            failed.push(case.name.clone());
            continue;
        };
        let (difference, bound) = (measure(&expected(&folder, &case), &found), bound(&case));
        println!("{:<16} difference {difference:.2e} of logits that spread by {:.1}, at most {bound:.1e}", case.name, case.spread);
        compared += 1;
        // What is no number is not below anything.
        if difference > bound || difference.is_nan() {
            failed.push(case.name.clone());
        }
    }
    // All of them, but for one whose heads are too short for a quantised cache.
    assert!(failed.is_empty() && compared >= 20, "of {compared} these differ: {}", failed.join(", "));
}

#[test]
fn the_reference_backend_computes_what_transformers_computes() {
    compare(Way { backend: BackendChoice::Reference, ..ON_CPU }, largest_difference, expected, |_| 1e-3);
}

#[test]
fn the_cpu_backend_computes_what_transformers_computes_but_for_what_it_rounds() {
    // Its cache is f16; and what quantised weights are multiplied with has 8 bits.
    compare(ON_CPU, largest_difference, expected, |case| if case.name.ends_with("mxfp4") { 5e-2 } else { 5e-3 } * case.spread);
}

/// Hidden states and vectors of texts, each read at once.
fn embeds_like_transformers(backend: BackendChoice) {
    let cases: Vec<_> = cases().into_iter().filter(|(_, case)| case.kind == "embeddings").collect();
    assert_eq!(cases.len(), 3);
    for (folder, case) in cases {
        let expected = expected(&folder, &case);
        for (slot, sequence) in case.sequences.iter().enumerate() {
            let request = Request { num_ctx: Tokens(sequence.num_ctx), num_batch: 64, parallel: 2, ..Request::default() };
            let mut load = on_host(&folder.join(&case.gguf), &request, 2).unwrap();
            load.backend = backend;
            let mut model = LoadedModel::load(&load, &mut |_| {}).unwrap();
            let mut batch = Batch::default();
            batch.push_run(&sequence.tokens, slot as u32, 0, false);
            let hidden = model.embed_step(&batch).unwrap().to_vec();
            let rows: Vec<Vec<f32>> = hidden.chunks_exact(case.shape[1]).map(<[f32]>::to_vec).collect();
            let wanted = &expected[sequence.first_row..][..sequence.positions.len()];
            // Keys and values are kept in f16 on the CPU.
            let bound = if backend == BackendChoice::Reference { 1e-3 } else { 5e-3 * case.spread };
            let difference = largest_difference(wanted, &rows);
            println!("{:<12} largest difference {difference:.2e} of hidden states, at most {bound:.1e}", case.name);
            assert!(difference <= bound, "{}: {difference}", case.name);
            let pooled = pooled(&rows, model.pooling());
            assert!(largest_difference(std::slice::from_ref(&sequence.embedding), &[pooled]) <= bound, "{}'s vector", case.name);
        }
    }
}

fn pooled(rows: &[Vec<f32>], pooling: Pooling) -> Vec<f32> {
    let counted = if pooling == Pooling::First { &rows[..1] } else { rows };
    let sum: Vec<f32> = (0..rows[0].len()).map(|i| counted.iter().map(|row| row[i]).sum()).collect();
    let length = sum.iter().map(|x| x * x).sum::<f32>().sqrt();
    sum.into_iter().map(|x| x / length).collect()
}

#[test]
fn both_backends_embed_as_transformers_does() {
    embeds_like_transformers(BackendChoice::Reference);
    embeds_like_transformers(BackendChoice::Cpu);
}

#[test]
fn a_token_computes_the_same_to_the_last_bit_whatever_is_read_with_it() {
    let together = |folder: &Path, case: &Case| computed(folder, case, ON_CPU);
    compare(Way { chunk: 1, ..ON_CPU }, largest_difference, together, |_| 0.0);
}

#[test]
fn quantised_caches_differ_by_what_they_round() {
    let whole = |folder: &Path, case: &Case| computed(folder, case, ON_CPU);
    compare(Way { kv_cache_type: KvCacheType::Q8_0, ..ON_CPU }, usual_difference, whole, |case| 0.015 * case.spread);
    compare(Way { kv_cache_type: KvCacheType::Q4_0, ..ON_CPU }, usual_difference, whole, |case| 0.1 * case.spread);
}

#[cfg(feature = "simulated-gpu")]
#[test]
fn a_model_split_between_two_devices_computes_the_same_to_the_last_bit() {
    let whole = |folder: &Path, case: &Case| computed(folder, case, ON_CPU);
    const SIMULATED: &[Gpu] = &[Gpu { id: "gpu0", backend: Backend::SimulatedGpu, offered: Bytes::gib(1) }];
    // The output layer, and one block.
    compare(Way { num_gpu: 2, gpus: SIMULATED, ..ON_CPU }, largest_difference, whole, |_| 0.0);
}
