//! How several requests share one model: `cargo run --release -p stowage-engine --example serving -- MODEL`.
//!
//! Printed are ratios of measurements that are taken in turns: clients together against one alone, the longest wait for a running answer's next token while
//! another's prompt is read (in chunks of `num_batch` tokens), decoding while another process keeps a core busy, and answers with guesses
//! (prompt look-up) against the same without.

use std::path::PathBuf;
use std::process::{Child, Command};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, anyhow};
use clap::Parser;
use stowage_engine::schedule::{MAX_QUEUE, Scheduler, Speculation};
use stowage_engine::{Finish, GenerateEvent, GenerateRequest, LoadedModel, SamplingOptions, Tokenizer, bench, host_plan};
use stowage_placement::{Request, Tokens};

const TEXT: &str = include_str!("../testdata/alice.txt");

#[derive(Parser)]
struct Arguments {
    /// A GGUF file of a model that generates.
    model: PathBuf,
    /// 0: one for each physical core.
    #[arg(long, default_value_t = 0)]
    threads: u32,
    /// Clients at once.
    #[arg(long, default_value_t = 8)]
    clients: u32,
    /// Tokens of the prompt that is read while another answer runs.
    #[arg(long, default_value_t = 4096)]
    prompt: usize,
    /// Tokens of each answer.
    #[arg(long, default_value_t = 128)]
    generated: u32,
    /// Turns; each figure is the median of as many.
    #[arg(long, default_value_t = 3)]
    rounds: usize,
}

fn main() -> anyhow::Result<()> {
    let arguments = Arguments::parse();
    let text = tokens_of_text(&arguments)?;
    println!("{} on {}, medians of {} turns", arguments.model.display(), bench::cpu_name(), arguments.rounds);
    together(&arguments, &text)?;
    next_token_during_a_prefill(&arguments, &text)?;
    beside_a_busy_process(&arguments)?;
    guessed(&arguments, &text)
}

fn load(arguments: &Arguments, num_ctx: usize, parallel: u32) -> anyhow::Result<(LoadedModel, Arc<Tokenizer>)> {
    let request = Request { num_ctx: Tokens(num_ctx as u64), num_gpu: 0, parallel, ..Request::default() };
    let model = LoadedModel::load(&host_plan::on_host(&arguments.model, &request, arguments.threads)?, &mut |_| {})?;
    let tokenizer = Arc::new(Tokenizer::from_header(model.header())?);
    Ok((model, tokenizer))
}

fn scheduler(arguments: &Arguments, num_ctx: usize, parallel: u32, speculation: Speculation) -> anyhow::Result<Scheduler> {
    let (model, tokenizer) = load(arguments, num_ctx, parallel)?;
    Ok(Scheduler::start_with(Box::new(model), tokenizer, MAX_QUEUE, speculation)?)
}

fn tokens_of_text(arguments: &Arguments) -> anyhow::Result<Vec<u32>> {
    let (_, tokenizer) = load(arguments, 32, 1)?;
    Ok(tokenizer.encode_prompt(TEXT, false)?)
}

fn request(prompt: &[u32], max_tokens: u32) -> GenerateRequest {
    GenerateRequest {
        prompt: prompt.to_vec(),
        // Not greedy, which small models answer with one sentence for ever.
        sampling: SamplingOptions { seed: Some(1), ..SamplingOptions::default() },
        max_tokens: Some(max_tokens),
        ..GenerateRequest::default()
    }
}

/// An answer: its text, when each part of it came, and its end.
struct Answer {
    text: String,
    came: Vec<Instant>,
    finish: Finish,
}

fn ask(scheduler: &Scheduler, request: GenerateRequest) -> anyhow::Result<Answer> {
    let mut events = scheduler.generate(request)?;
    let (mut text, mut came) = (String::new(), Vec::new());
    loop {
        match events.blocking_recv().context("an answer ends")? {
            GenerateEvent::Text { text: more, .. } => {
                text += &more;
                came.push(Instant::now());
            }
            GenerateEvent::Done(finish) => return Ok(Answer { text, came, finish }),
            GenerateEvent::Failed(error) => return Err(error.into()),
        }
    }
}

/// Asked for at once, each by a client of its own.
fn ask_together(scheduler: &Scheduler, requests: Vec<GenerateRequest>) -> anyhow::Result<Vec<Answer>> {
    std::thread::scope(|scope| {
        let clients: Vec<_> = requests.into_iter().map(|request| scope.spawn(|| ask(scheduler, request))).collect();
        clients.into_iter().map(|client| client.join().map_err(|_| anyhow!("a client panicked"))?).collect()
    })
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

/// Tokens a second of all answers, from the first question to the last answer.
fn rate(scheduler: &Scheduler, requests: Vec<GenerateRequest>) -> anyhow::Result<f64> {
    let start = Instant::now();
    let answers = ask_together(scheduler, requests)?;
    let tokens: u32 = answers.iter().map(|answer| answer.finish.generated_tokens).sum();
    Ok(f64::from(tokens) / start.elapsed().as_secs_f64())
}

/// Clients with short questions, each with one of its own so that nothing is cached.
fn together(arguments: &Arguments, text: &[u32]) -> anyhow::Result<()> {
    let clients = arguments.clients as usize;
    let scheduler = scheduler(arguments, 512, arguments.clients, Speculation::default())?;
    let questions = |from: usize, count: usize| (from..from + count).map(|i| request(&text[i * 40..][..32], arguments.generated)).collect();
    let (mut one, mut all) = (Vec::new(), Vec::new());
    for round in 0..arguments.rounds {
        one.push(rate(&scheduler, questions(round * (clients + 1), 1))?);
        all.push(rate(&scheduler, questions(round * (clients + 1) + 1, clients))?);
    }
    let (one, all) = (median(one), median(all));
    println!("{clients} clients together: {all:.0} tokens/s; one alone: {one:.0}; ratio {:.2} (wanted: 3 of 8 clients)", all / one);
    Ok(())
}

fn next_token_during_a_prefill(arguments: &Arguments, text: &[u32]) -> anyhow::Result<()> {
    let scheduler = scheduler(arguments, arguments.prompt + 256, 2, Speculation::default())?;
    let chunks = arguments.prompt.div_ceil(Request::default().num_batch as usize) as f64;
    let mut waits = Vec::new();
    for round in 0..arguments.rounds {
        let running = request(&text[round * 100..][..32], arguments.prompt as u32);
        let long = request(&text[round..][..arguments.prompt], 1);
        let (running, long) = std::thread::scope(|scope| {
            let running = scope.spawn(|| ask(&scheduler, running));
            std::thread::sleep(Duration::from_millis(300));
            let start = Instant::now();
            let long = ask(&scheduler, long).map(|answer| (start, answer.finish.prefill));
            (running.join(), long)
        });
        let (running, (start, prefill)) = (running.map_err(|_| anyhow!("a client panicked"))??, long?);
        let during = |pair: &&[Instant]| pair[1] > start && pair[0] < start + prefill;
        let longest = running.came.windows(2).filter(during).map(|pair| pair[1] - pair[0]).max();
        let longest = longest.context("the running answer ended before the other's prompt was read")?;
        waits.push(longest.as_secs_f64() / (prefill.as_secs_f64() / chunks));
    }
    println!("next token during a prefill of {}: {:.2} chunks at most (wanted: 3)", arguments.prompt, median(waits));
    Ok(())
}

/// A process that does nothing, as fast as it can.
struct Busy(Child);

impl Busy {
    fn start() -> anyhow::Result<Busy> {
        Ok(Busy(Command::new("sh").args(["-c", "while :; do :; done"]).spawn().context("starting a shell")?))
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        self.0.kill().ok();
        self.0.wait().ok();
    }
}

fn beside_a_busy_process(arguments: &Arguments) -> anyhow::Result<()> {
    let (mut model, _) = load(arguments, arguments.generated as usize, 1)?;
    let mut decode =
        || bench::measure(&mut model, 0, arguments.generated, 0).map(|took| f64::from(arguments.generated) / took.as_secs_f64());
    decode()?;
    let (mut alone, mut beside) = (Vec::new(), Vec::new());
    for _ in 0..arguments.rounds {
        alone.push(decode()?);
        let _busy = Busy::start()?;
        beside.push(decode()?);
    }
    let (alone, beside) = (median(alone), median(beside));
    println!(
        "decode beside a busy process: {beside:.0} tokens/s; alone: {alone:.0}; {:.0} % (wanted: 40 on two cores)",
        100.0 * beside / alone
    );
    Ok(())
}

/// Free text, and a text that is to be said again: its first half was, in an earlier copy.
fn guessed(arguments: &Arguments, text: &[u32]) -> anyhow::Result<()> {
    let with = scheduler(arguments, 2048, 1, Speculation::PromptLookUp)?;
    let without = scheduler(arguments, 2048, 1, Speculation::Off)?;
    let again: Vec<u32> = text[..400].iter().chain(&text[..200]).copied().collect();
    for (name, prompt, temperature) in [("free text", &text[..64], 0.8), ("a text said again", &again[..], 0.0)] {
        let (mut guessing, mut plain, mut same) = (Vec::new(), Vec::new(), true);
        for _ in 0..arguments.rounds {
            let sampling = SamplingOptions { temperature, repeat_penalty: 1.0, seed: Some(1), ..SamplingOptions::default() };
            let request = GenerateRequest { sampling, ..request(prompt, arguments.generated) };
            let answers = [ask(&with, request.clone())?, ask(&without, request)?];
            let [first, second] =
                answers.each_ref().map(|answer| f64::from(answer.finish.generated_tokens) / answer.finish.decode.as_secs_f64());
            same &= answers[0].text == answers[1].text;
            guessing.push(first);
            plain.push(second);
        }
        let (guessing, plain) = (median(guessing), median(plain));
        let answers = if same { "the same answers" } else { "DIFFERENT answers" };
        println!("{name}: with guesses {guessing:.0} tokens/s, without {plain:.0}; ratio {:.2}, {answers}", guessing / plain);
    }
    Ok(())
}
