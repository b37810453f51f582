//! From the start of a process to its first token, as a worker gets there: `cargo run --release -p stowage-engine --example first_token -- MODEL`.
//!
//! The model is loaded and tested as before serving, then asked. Printed as JSON: seconds until the model was ready and until the token came. With
//! `--pack FILE` its packed weights are written there, and that is all; with `--packed FILE` it begins with those.

use std::fs::File;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use anyhow::Context;
use clap::Parser;
use serde_json::json;
use stowage_engine::schedule::{MAX_QUEUE, Scheduler, Speculation};
use stowage_engine::{
    Computing, GenerateEvent, GenerateRequest, LoadRequest, LoadedModel, SamplingOptions, Start, Tokenizer, host_plan, packed_file,
};
use stowage_placement::{Request, Tokens};

#[derive(Parser)]
struct Arguments {
    /// A GGUF file of a model that generates.
    model: PathBuf,
    #[arg(long, default_value_t = 2048)]
    num_ctx: u64,
    /// 0: one for each physical core.
    #[arg(long, default_value_t = 0)]
    threads: u32,
    #[arg(long, default_value = "The capital of France is")]
    prompt: String,
    /// Packed weights, written before.
    #[arg(long)]
    packed: Option<PathBuf>,
    #[arg(long, value_name = "FILE", conflicts_with = "packed")]
    pack: Option<PathBuf>,
}

fn main() -> anyhow::Result<()> {
    let Arguments { model, num_ctx, threads, prompt, packed, pack } = Arguments::parse();
    let began = Instant::now();
    let request = Request { num_ctx: Tokens(num_ctx), num_gpu: 0, ..Request::default() };
    let load = LoadRequest { start: Start::InFiles { packed }, ..host_plan::on_host(&model, &request, threads)? };
    if let Some(path) = pack {
        return Ok(packed_file::pack(&load, File::create(path)?, &mut |_| {})?);
    }
    let (loaded, tokenizer) = LoadedModel::load_beside(&load, Computing::default(), &mut |_| {}, Tokenizer::from_header)?;
    let tokenizer = Arc::new(tokenizer?);
    let prompt = tokenizer.encode_prompt(&prompt, true)?;
    let scheduler = Scheduler::start_with(Box::new(loaded), tokenizer, MAX_QUEUE, Speculation::default())?;
    tokio::runtime::Builder::new_current_thread().build()?.block_on(scheduler.self_test())?;
    let ready = began.elapsed();
    let mut events = scheduler.generate(one_token(prompt))?;
    match events.blocking_recv().context("an answer begins")? {
        GenerateEvent::Failed(error) => return Err(error.into()),
        GenerateEvent::Text { .. } | GenerateEvent::Done(_) => {}
    }
    let seconds = |duration: std::time::Duration| duration.as_secs_f64();
    let (ready, first) = (seconds(ready), seconds(began.elapsed()));
    println!("{}", json!({"readySeconds": ready, "firstTokenSeconds": first}));
    Ok(())
}

fn one_token(prompt: Vec<u32>) -> GenerateRequest {
    GenerateRequest {
        prompt,
        sampling: SamplingOptions { seed: Some(1), ..SamplingOptions::default() },
        max_tokens: Some(1),
        ..GenerateRequest::default()
    }
}
