//! Tokens a second beside candle-transformers' quantised Llama, in turns: `cargo run --release -p stowage-engine --example compare -- MODEL [ROUNDS] [THREADS]`.
//!
//! candle takes its threads from RAYON_NUM_THREADS, which this sets for itself, and its instructions from what it was compiled for: only with
//! `RUSTFLAGS="-C target-cpu=native"` does it show what it can.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::Context;
use candle_core::quantized::gguf_file;
use candle_core::{Device, Tensor};
use candle_transformers::models::quantized_llama::ModelWeights;
use stowage_engine::{LoadedModel, bench, host_plan};
use stowage_placement::{Request, Tokens};

const PROMPT: u32 = 512;
const GENERATED: u32 = 128;

fn main() -> anyhow::Result<()> {
    let mut arguments = std::env::args().skip(1);
    let model = PathBuf::from(arguments.next().context("usage: compare MODEL [ROUNDS] [THREADS]")?);
    let rounds: usize = arguments.next().map_or(Ok(5), |rounds| rounds.parse())?;
    let threads: u32 = arguments.next().map_or(Ok(1), |threads| threads.parse())?;
    // SAFETY: no other thread has been started yet.
    unsafe { std::env::set_var("RAYON_NUM_THREADS", threads.to_string()) };
    let request = Request { num_ctx: Tokens(1024), ..Request::default() };
    let mut ours = LoadedModel::load(&host_plan::on_host(&model, &request, threads)?, &mut |_| {})?;
    let mut theirs = load_candle(&model)?;
    let mut rates = [const { Vec::new() }; 4];
    for round in 0..=rounds {
        let found = [
            (PROMPT, bench::measure(&mut ours, PROMPT, 0, 0)?),
            (PROMPT, candle_prefill(&mut theirs)?),
            (GENERATED, bench::measure(&mut ours, 0, GENERATED, 0)?),
            (GENERATED, candle_decode(&mut theirs)?),
        ];
        if round > 0 {
            for (rates, (tokens, took)) in rates.iter_mut().zip(found) {
                rates.push(f64::from(tokens) / took.as_secs_f64());
            }
        }
    }
    let [prefill, candle_prefill, decode, candle_decode] = rates.map(median);
    println!("{}, {threads} threads, medians of {rounds} rounds, tokens a second", bench::cpu_name());
    println!("prefill {PROMPT}: {prefill:.1}, candle-transformers {candle_prefill:.1}, ratio {:.2}", prefill / candle_prefill);
    println!("decode {GENERATED}: {decode:.1}, candle-transformers {candle_decode:.1}, ratio {:.2}", decode / candle_decode);
    Ok(())
}

fn load_candle(path: &Path) -> anyhow::Result<ModelWeights> {
    let mut file = std::fs::File::open(path)?;
    let content = gguf_file::Content::read(&mut file)?;
    Ok(ModelWeights::from_gguf(content, &mut file, &Device::Cpu)?)
}

fn candle_prefill(model: &mut ModelWeights) -> anyhow::Result<Duration> {
    let prompt: Vec<u32> = (0..PROMPT).map(|i| i * 7919 % 49152).collect();
    let start = Instant::now();
    model.forward(&Tensor::new(prompt, &Device::Cpu)?.unsqueeze(0)?, 0)?;
    Ok(start.elapsed())
}

fn candle_decode(model: &mut ModelWeights) -> anyhow::Result<Duration> {
    let start = Instant::now();
    for position in 0..GENERATED {
        let token = Tensor::new(&[[position * 7919 % 49152]], &Device::Cpu)?;
        model.forward(&token, position as usize)?;
    }
    Ok(start.elapsed())
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}
