//! How far the cpu backend, or with `--gpu` the cuda backend, is from the reference on a text: `cargo run --release -p stowage-engine --example kl -- MODEL`.
//!
//! A line for each way of computing: the mean divergence and its 99th percentile, how often both find the same token most probable, and the perplexities. It
//! fails where a mean is above the gate that its line names.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context;
use clap::Parser;
use stowage_engine::{Activations, BackendChoice, Computing, Isa, LoadRequest, LoadedModel, Tokenizer, divergence, host_plan};
use stowage_placement::{KvCacheType, Request, Tokens};

const TEXT: &str = include_str!("../testdata/alice.txt");

#[derive(Parser)]
struct Arguments {
    /// A GGUF file.
    model: PathBuf,
    /// The text; without it, two chapters of "Alice's Adventures in Wonderland".
    #[arg(long)]
    text: Option<PathBuf>,
    /// Tokens of the text to compare, in pieces of 1,024.
    #[arg(long, default_value_t = 4000)]
    tokens: usize,
    /// Measures every instruction set that this CPU has, not the fastest alone.
    #[arg(long)]
    all: bool,
    /// Leaves out quantised caches.
    #[arg(long)]
    f16_alone: bool,
    /// The UUID of a GPU on which all layers run, in place of the CPU.
    #[arg(long)]
    gpu: Option<String>,
    /// Fails where a model with quantised activations and an f16 cache is further away, in nats.
    #[arg(long, default_value_t = 0.006)]
    gate: f64,
    /// The same with a cache of q8_0.
    #[arg(long, default_value_t = 0.008)]
    gate_q8_0: f64,
    /// The same with a cache of q4_0.
    #[arg(long, default_value_t = 0.1)]
    gate_q4_0: f64,
}

/// One way of computing, and how far it may be from the reference.
struct Way {
    computing: Computing,
    cache: KvCacheType,
    gate: f64,
}

fn ways(arguments: &Arguments) -> Vec<Way> {
    let isas = if arguments.all { Isa::available() } else { vec![Isa::best()] };
    let best = Computing::default();
    let mut ways: Vec<Way> =
        isas.into_iter().map(|isa| Way { computing: Computing { isa, ..best }, cache: KvCacheType::F16, gate: arguments.gate }).collect();
    if arguments.gpu.is_none() {
        ways.push(Way { computing: Computing { activations: Activations::Floats, ..best }, cache: KvCacheType::F16, gate: 1e-5 });
    }
    if !arguments.f16_alone {
        let quantised = [(KvCacheType::Q8_0, arguments.gate_q8_0), (KvCacheType::Q4_0, arguments.gate_q4_0)];
        ways.extend(quantised.map(|(cache, gate)| Way { computing: best, cache, gate }));
    }
    ways
}

fn main() -> anyhow::Result<ExitCode> {
    let arguments = Arguments::parse();
    let text = match &arguments.text {
        Some(path) => std::fs::read_to_string(path).with_context(|| path.display().to_string())?,
        None => TEXT.to_owned(),
    };
    let request = |cache| Request { num_ctx: Tokens(1024), num_batch: 256, kv_cache_type: cache, ..Request::default() };
    let plain = host_plan::on_host(&arguments.model, &request(KvCacheType::F16), 0)?;
    let mut reference = LoadedModel::load(&LoadRequest { backend: BackendChoice::Reference, ..plain }, &mut |_| {})?;
    let tokenizer = Tokenizer::from_header(reference.header())?;
    // Without its BOS, which takes in what attention has no use for, Gemma is at a loss: its perplexity is half as high again.
    let begin = tokenizer.encode_prompt("", false)?;
    let mut tokens = tokenizer.encode(&text, false)?;
    tokens.truncate(arguments.tokens);
    let ways = ways(&arguments);
    let load = |way: &Way| {
        let request = match &arguments.gpu {
            Some(uuid) => host_plan::on_gpu(&arguments.model, &request(way.cache), uuid, 0)?,
            None => host_plan::on_host(&arguments.model, &request(way.cache), 0)?,
        };
        LoadedModel::load_with(&request, way.computing, &mut |_| {})
    };
    let mut others = ways.iter().map(load).collect::<Result<Vec<LoadedModel>, _>>()?;
    let found = divergence::compare(&mut reference, &mut others, &begin, &tokens)?;
    println!("{}: {} tokens, perplexity of the reference {:.4}", arguments.model.display(), tokens.len(), found[0].perplexity[0]);
    let mut failed = Vec::new();
    for (way, found) in ways.iter().zip(&found) {
        let on = arguments.gpu.as_deref().unwrap_or(way.computing.isa.name());
        let name = format!("{on}, {} cache, {}", way.cache, activations(way.computing.activations));
        println!(
            "{name:<46} KL mean {:.7} (at most {}), 99th percentile {:.6}, same top token {:.2} %, perplexity {:.4}",
            found.mean,
            way.gate,
            found.percentile_99,
            found.same_top * 100.0,
            found.perplexity[1],
        );
        if found.mean.is_nan() || found.mean > way.gate {
            failed.push(name);
        }
    }
    if !failed.is_empty() {
        eprintln!("beyond the gate: {}", failed.join("; "));
        return Ok(ExitCode::FAILURE);
    }
    Ok(ExitCode::SUCCESS)
}

fn activations(activations: Activations) -> &'static str {
    match activations {
        Activations::Quantised => "8-bit activations",
        Activations::Floats => "f32 activations",
    }
}
