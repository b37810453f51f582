//! Small models of every architecture against what `transformers` computes for them: see `testdata/reference`.
//!
//! Two sequences at once, read in chunks and then token by token, beyond windows and beyond the context that positions were scaled from.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use stowage_engine::BackendChoice;
use stowage_engine::batch::Batch;
use stowage_engine::host_plan::on_host;
use stowage_engine::model::LoadedModel;
use stowage_placement::{KvCacheType, Request, Tokens};

/// Tokens of a sequence that are read at once.
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

/// Logits `[rows of the case, vocabulary]`. Sequences for which a model is loaded with the same context run at once.
fn computed(folder: &Path, case: &Case, backend: BackendChoice, kv_cache_type: KvCacheType) -> Vec<Vec<f32>> {
    let mut rows = vec![Vec::new(); case.shape[0]];
    let contexts: BTreeSet<u64> = case.sequences.iter().map(|sequence| sequence.num_ctx).collect();
    for num_ctx in contexts {
        let sequences: Vec<&Sequence> = case.sequences.iter().filter(|sequence| sequence.num_ctx == num_ctx).collect();
        let num_batch = (CHUNK * sequences.len()) as u32;
        let request =
            Request { num_ctx: Tokens(num_ctx), parallel: sequences.len() as u32, num_batch, kv_cache_type, ..Request::default() };
        let mut load = on_host(&folder.join(&case.gguf), &request, 2).unwrap_or_else(|error| panic!("{}: {error}", case.name));
        load.backend = backend;
        let mut model = LoadedModel::load(&load, &mut |_| {}).unwrap_or_else(|error| panic!("{}: {error}", case.name));
        run(&mut model, &sequences, &mut rows);
    }
    rows
}

/// Takes each sequence through a slot of its own, and keeps the logits that the case has.
fn run(model: &mut LoadedModel, sequences: &[&Sequence], rows: &mut [Vec<f32>]) {
    let mut done = vec![0; sequences.len()];
    while done.iter().zip(sequences).any(|(done, sequence)| *done < sequence.tokens.len()) {
        let mut batch = Batch::default();
        let mut wanted = Vec::new();
        for (slot, (sequence, done)) in sequences.iter().zip(&mut done).enumerate() {
            let left = sequence.tokens.len() - *done;
            let count = if left > SINGLE { CHUNK.min(left - SINGLE) } else { left.min(1) };
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

/// Each case's largest difference, and what it must stay below.
fn compare(backend: BackendChoice, bound: impl Fn(&Case) -> f32) {
    let mut failed = Vec::new();
    let mut compared = 0;
    for (folder, case) in cases().into_iter().filter(|(_, case)| case.kind == "logits") {
        let found = std::panic::catch_unwind(|| computed(&folder, &case, backend, KvCacheType::F16));
        let Ok(found) = found else {
            failed.push(case.name.clone());
            continue;
        };
        let (difference, bound) = (largest_difference(&expected(&folder, &case), &found), bound(&case));
        println!("{:<16} largest difference {difference:.2e} of logits that spread by {:.1}, at most {bound:.1e}", case.name, case.spread);
        compared += 1;
        // What is no number is no difference below anything.
        if !(difference < bound) {
            failed.push(case.name.clone());
        }
    }
    assert!(failed.is_empty() && compared > 20, "of {compared} these differ: {}", failed.join(", "));
}

#[test]
fn the_reference_backend_computes_what_transformers_computes() {
    compare(BackendChoice::Reference, |_| 1e-3);
}

#[test]
fn the_cpu_backend_computes_what_transformers_computes_but_for_what_it_rounds() {
    // Its cache is f16; and what quantised weights are multiplied with has 8 bits.
    compare(BackendChoice::Cpu, |case| if case.name.ends_with("mxfp4") { 5e-2 } else { 5e-3 } * case.spread);
}
