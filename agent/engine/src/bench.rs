//! Measures tokens a second in the manner of llama-bench: prefill of a prompt, and decoding of token after token, each at a depth.

pub mod kernels;

use std::path::Path;
use std::time::{Duration, Instant};

use serde::Serialize;
use stowage_placement::{Request, Tokens};

use crate::api::{EngineError, LoadProgress};
use crate::backend::cpu::Computing;
use crate::batch::Batch;
use crate::host_plan::on_host;
use crate::kernels::Isa;
use crate::model::LoadedModel;
use crate::pool::default_threads;

/// What to measure.
#[derive(Clone, Debug)]
pub struct BenchOptions {
    /// Tokens of a prompt, `-p`; 0: no prefill is measured.
    pub prompt_tokens: u32,
    /// Tokens to generate, `-n`; 0: no decode is measured.
    pub generated_tokens: u32,
    /// Tokens that stand in the cache before either begins, `-d`.
    pub depth: u32,
    /// `-t`; 0: one for each physical core.
    pub threads: u32,
    /// `-r`
    pub repeats: u32,
    /// Sequences that generate together; the tokens of all of them count.
    pub parallel: u32,
    pub isa: Isa,
}

/// A row of the result: prefill has no generated tokens, decode no prompt tokens.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct BenchRow {
    pub prompt_tokens: u32,
    pub generated_tokens: u32,
    pub depth: u32,
    pub threads: u32,
    /// Sequences at once.
    pub parallel: u32,
    /// Mean over the repeats, and their standard deviation.
    pub tokens_per_second: f64,
    pub standard_deviation: f64,
}

/// What `agent bench` prints.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct BenchReport {
    pub model: String,
    /// The CPU's name and the instruction set in use.
    pub cpu: String,
    /// Weights that are read for a token that is computed alone: no embeddings but its own, and of experts those that it goes to.
    pub weight_bytes: u64,
    /// 1e9 bytes a second that these threads read from memory.
    pub memory_bandwidth: f64,
    pub results: Vec<BenchRow>,
}

impl BenchReport {
    /// Tokens a second that one sequence would have if reading the weights were all: the bound of decoding at no depth.
    pub fn decode_bound(&self) -> f64 {
        self.memory_bandwidth * 1e9 / self.weight_bytes as f64
    }
}

/// Loads a model on the host and measures it. Each measurement is done once more before, unmeasured.
pub fn bench(path: &Path, options: &BenchOptions, progress: &mut dyn FnMut(LoadProgress)) -> Result<BenchReport, EngineError> {
    let BenchOptions { prompt_tokens, generated_tokens, depth, threads, repeats, parallel, isa } = *options;
    let longest = prompt_tokens.max(generated_tokens).max(1).saturating_add(depth);
    let request = Request { num_ctx: Tokens(longest.into()), num_gpu: 0, parallel, ..Request::default() };
    let load = on_host(path, &request, threads)?;
    let mut model = LoadedModel::load_with(&load, Computing { isa, ..Computing::default() }, progress)?;
    let threads = if threads == 0 { default_threads() } else { threads };
    let mut results = Vec::new();
    for (prompt_tokens, generated_tokens) in [(prompt_tokens, 0), (0, generated_tokens)] {
        if prompt_tokens + generated_tokens == 0 {
            continue;
        }
        let mut rates = Vec::new();
        for round in 0..=repeats.max(1) {
            fill(&mut model, depth)?;
            let took = measure(&mut model, prompt_tokens, generated_tokens, depth)?;
            if round > 0 {
                rates.push(f64::from((prompt_tokens + generated_tokens) * parallel) / took.as_secs_f64());
            }
        }
        let (tokens_per_second, standard_deviation) = mean_and_deviation(&rates);
        results.push(BenchRow { prompt_tokens, generated_tokens, depth, threads, parallel, tokens_per_second, standard_deviation });
    }
    let weight_bytes = weight_bytes(&model)?;
    let memory_bandwidth = kernels::read_bandwidth(threads)?;
    let model = path.file_name().map_or_else(String::new, |name| name.to_string_lossy().into_owned());
    Ok(BenchReport { model, cpu: format!("{} ({})", cpu_name(), isa.name()), weight_bytes, memory_bandwidth, results })
}

/// As [`BenchReport::weight_bytes`].
fn weight_bytes(model: &LoadedModel) -> Result<u64, EngineError> {
    let header = model.header();
    let number = |name: &str| {
        let key = format!("{}.{name}", header.architecture()?);
        Ok::<u64, EngineError>(header.u64(&key)?.unwrap_or(0))
    };
    let (experts, used) = (number("expert_count")?.max(1), number("expert_used_count")?);
    let tied = header.tensor("output.weight").is_none();
    let read = |name: &str, bytes: u64| match name {
        "token_embd.weight" if !tied => 0,
        name if name.contains("_exps.") => bytes / experts * used,
        _ => bytes,
    };
    Ok(header.tensors.iter().map(|tensor| read(&tensor.name, tensor.bytes().0)).sum())
}

/// Time for a prompt of some tokens, or for generating some, with `depth` tokens before, in every slot.
pub fn measure(model: &mut LoadedModel, prompt: u32, generated: u32, depth: u32) -> Result<Duration, EngineError> {
    let start = Instant::now();
    prefill(model, depth, prompt)?;
    let mut batch = Batch::default();
    for position in depth..depth + generated {
        batch.clear();
        for slot in 0..model.slots() {
            batch.push_wanted(token(model, position + slot), slot, position);
        }
        model.step(&batch)?;
    }
    Ok(start.elapsed())
}

/// Puts `depth` tokens into the cache.
pub fn fill(model: &mut LoadedModel, depth: u32) -> Result<(), EngineError> {
    prefill(model, 0, depth)
}

fn prefill(model: &mut LoadedModel, first: u32, count: u32) -> Result<(), EngineError> {
    let mut batch = Batch::default();
    let end = first + count;
    for slot in 0..model.slots() {
        for start in (first..end).step_by(model.num_batch() as usize) {
            let tokens: Vec<u32> = (start..end.min(start + model.num_batch())).map(|position| token(model, position)).collect();
            batch.clear();
            batch.push_run(&tokens, slot, start, start + tokens.len() as u32 == end);
            model.step(&batch)?;
        }
    }
    Ok(())
}

/// Tokens of no meaning, the same in every run.
fn token(model: &LoadedModel, position: u32) -> u32 {
    (u64::from(position) * 7919 % model.vocabulary() as u64) as u32
}

fn mean_and_deviation(values: &[f64]) -> (f64, f64) {
    let mean = values.iter().sum::<f64>() / values.len() as f64;
    let squares: f64 = values.iter().map(|value| (value - mean).powi(2)).sum();
    let deviation = if values.len() > 1 { (squares / (values.len() - 1) as f64).sqrt() } else { 0.0 };
    (mean, deviation)
}

/// The CPU as Linux names it.
pub fn cpu_name() -> String {
    let info = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let name = info.lines().find_map(|line| line.strip_prefix("model name")?.split_once(':'));
    name.map_or_else(|| std::env::consts::ARCH.to_owned(), |(_, name)| name.trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_deviation_is_that_of_a_sample() {
        assert_eq!(mean_and_deviation(&[1.0, 3.0]), (2.0, 2f64.sqrt()));
        assert_eq!(mean_and_deviation(&[5.0]), (5.0, 0.0));
    }
}
