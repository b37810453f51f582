//! `cargo run --release -p stowage-agent --features fuzzed --example fuzz_requests -- --seconds N CORPUS...`, or `-- FILE` to run one input again.
//!
//! Fuzzes the parsers of requests where there is no cargo-fuzz: puts odd values in the place of others, changes bytes, and keeps the inputs that bring out
//! an answer not seen before. What it checks is what the cargo-fuzz target checks. An input that fails is written to `fuzz/artifacts/requests/`.

#[path = "../../fuzz/stable.rs"]
mod stable;

use std::collections::HashSet;
use std::process::ExitCode;
use std::time::{Duration, Instant};
use std::{env, fs, io, panic};

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use stowage_agent::serve::fuzzed::{Target, changed};

const ARTIFACTS: &str = "fuzz/artifacts/requests";

fn main() -> io::Result<ExitCode> {
    let arguments: Vec<String> = env::args().skip(1).collect();
    match arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["--seconds", seconds, ref folders @ ..] if !folders.is_empty() => {
            let seconds = seconds.parse().map_err(io::Error::other)?;
            fuzz(Duration::from_secs(seconds), stable::read_corpus(folders)?)
        }
        // What does not hold panics, and says where.
        [file] => {
            println!("{:?}", Target::new().request(&fs::read(file)?));
            Ok(ExitCode::SUCCESS)
        }
        _ => Err(io::Error::other("usage: fuzz_requests --seconds N CORPUS... | FILE")),
    }
}

fn fuzz(duration: Duration, mut pool: Vec<Vec<u8>>) -> io::Result<ExitCode> {
    // A panic is caught and told with its input.
    panic::set_hook(Box::new(|_| {}));
    let seed: u64 = rand::random();
    let (mut rng, target, begun) = (StdRng::seed_from_u64(seed), Target::new(), Instant::now());
    let mut seen: HashSet<String> = pool.iter().filter_map(|input| outcome(&target, input).ok()).collect();
    let mut runs = 0u64;
    while begun.elapsed() < duration {
        let at = rng.random_range(0..pool.len());
        let input = changed(&mut rng, &pool[at]);
        runs += 1;
        let Ok(outcome) = outcome(&target, &input) else {
            let path = stable::keep(ARTIFACTS, &input)?;
            println!("fuzz: a request fails after {runs} runs (seed {seed}): {}", path.display());
            println!("again: make fuzz INPUT={}", path.display());
            return Ok(ExitCode::FAILURE);
        };
        if seen.insert(outcome) {
            pool.push(input);
        }
    }
    println!("fuzz: {runs} requests in {} s without a finding, {} kinds of answer, seed {seed}", duration.as_secs(), seen.len());
    Ok(ExitCode::SUCCESS)
}

/// The kind of answer, which is where it came from and its words without what it names; an error where something does not hold.
fn outcome(target: &Target, input: &[u8]) -> Result<String, ()> {
    let answer = panic::catch_unwind(panic::AssertUnwindSafe(|| target.request(input))).map_err(drop)?;
    let Some((status, text)) = answer else { return Ok(String::new()) };
    let path: Vec<u8> = input.iter().copied().take_while(|byte| *byte != b'\n').collect();
    let words = |text: &str| text.chars().filter(|letter| letter.is_ascii_alphabetic() || *letter == ' ').take(60).collect::<String>();
    let said = if status.is_success() { String::new() } else { words(&text) };
    Ok(format!("{} {status} {said}", String::from_utf8_lossy(&path)))
}
