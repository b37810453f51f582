//! `cargo run --release -p stowage-placement --example fuzz_header -- --seconds N CORPUS...`, or `-- FILE` to run one input again.
//!
//! Fuzzes the header reader where there is no cargo-fuzz: changes inputs of the corpus, mostly where a length or a count stands, and keeps those that
//! bring out a message not seen before. What it checks is what the cargo-fuzz target checks, and what the reader holds in memory besides. An input that
//! fails is written to `fuzz/artifacts/header/`.

#[path = "../../fuzz/stable.rs"]
mod stable;

use std::collections::HashSet;
use std::process::ExitCode;
use std::time::{Duration, Instant};
use std::{env, fs, io, panic};

use peak_alloc::PeakAlloc;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use stowage_placement::gguf::{HeaderReader, Keep, fuzzed};

#[global_allocator]
static MEMORY: PeakAlloc = PeakAlloc;

const ARTIFACTS: &str = "fuzz/artifacts/header";
const LONGEST: usize = 40 << 10;
/// Numbers at which arithmetic goes wrong.
const EDGES: [u64; 16] =
    [0, 1, 2, 8, 31, 32, 4096, 4097, u16::MAX as u64, 1 << 20, u32::MAX as u64, 1 << 32, 1 << 61, i64::MAX as u64, 1 << 63, u64::MAX];

fn main() -> io::Result<ExitCode> {
    let arguments: Vec<String> = env::args().skip(1).collect();
    match arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["--seconds", seconds, ref folders @ ..] if !folders.is_empty() => {
            let seconds = seconds.parse().map_err(io::Error::other)?;
            fuzz(Duration::from_secs(seconds), stable::read_corpus(folders)?)
        }
        [file] => Ok(if holds(&fs::read(file)?) { ExitCode::SUCCESS } else { ExitCode::FAILURE }),
        _ => Err(io::Error::other("usage: fuzz_header --seconds N CORPUS... | FILE")),
    }
}

fn fuzz(duration: Duration, mut pool: Vec<Vec<u8>>) -> io::Result<ExitCode> {
    // A panic is caught and told with its input.
    panic::set_hook(Box::new(|_| {}));
    let seed: u64 = rand::random();
    let mut rng = StdRng::seed_from_u64(seed);
    let begun = Instant::now();
    let mut seen: HashSet<String> = pool.iter().map(|input| outcome(input)).collect();
    let mut runs = 0u64;
    while begun.elapsed() < duration {
        let input = changed(&mut rng, &pool);
        runs += 1;
        if !holds(&input) {
            let path = stable::keep(ARTIFACTS, &input)?;
            println!("fuzz: an input fails after {runs} runs (seed {seed}): {}", path.display());
            println!("again: make fuzz INPUT={}", path.display());
            return Ok(ExitCode::FAILURE);
        }
        if seen.insert(outcome(&input)) {
            pool.push(input);
        }
    }
    println!("fuzz: {runs} runs in {} s without a finding, {} kinds of outcome, seed {seed}", duration.as_secs(), seen.len());
    Ok(ExitCode::SUCCESS)
}

/// Whether nothing panics, and no more is held than the input accounts for.
fn holds(input: &[u8]) -> bool {
    let (held, limit) = (held_by_reader(input), 64 * input.len() + (256 << 10));
    if held > limit {
        println!("fuzz: the reader of {} bytes held {held} bytes; at most {limit} are expected", input.len());
        return false;
    }
    panic::catch_unwind(|| fuzzed::header(input)).is_ok()
}

fn held_by_reader(input: &[u8]) -> usize {
    MEMORY.reset_peak_usage();
    let before = MEMORY.current_usage();
    let mut reader = HeaderReader::new(Keep::All);
    // What it says is judged elsewhere.
    let _ = reader.feed(input);
    MEMORY.peak_usage().saturating_sub(before)
}

/// The kind of what the reader says, and about how long the input is: inputs that differ in this do different things.
fn outcome(input: &[u8]) -> String {
    let mut reader = HeaderReader::new(Keep::Sizing);
    let said = match reader.feed(input).and_then(|_| reader.into_header()) {
        Ok(header) => format!("{} keys, {} tensors", header.metadata.len(), header.tensors.len()),
        Err(error) => format!("{error:?}").chars().take_while(|c| c.is_alphanumeric()).collect(),
    };
    format!("{said} in {}", input.len() / 64)
}

fn changed(rng: &mut StdRng, pool: &[Vec<u8>]) -> Vec<u8> {
    let mut input = pool[rng.random_range(0..pool.len())].clone();
    for _ in 0..rng.random_range(1..5) {
        let other = &pool[rng.random_range(0..pool.len())];
        change(rng, &mut input, other);
    }
    input.truncate(LONGEST);
    input
}

fn change(rng: &mut StdRng, input: &mut Vec<u8>, other: &[u8]) {
    if input.is_empty() {
        input.extend(other);
        return;
    }
    let at = rng.random_range(0..input.len());
    let end = (at + rng.random_range(1..64)).min(input.len());
    match rng.random_range(0..9) {
        0 => input[at] = rng.random(),
        1 => input[at] ^= 1 << rng.random_range(0..8),
        2..=4 => change_number(rng, input),
        5 => drop(input.drain(at..end)),
        6 => {
            let piece = input[at..end].to_vec();
            input.splice(at..at, piece);
        }
        7 if !other.is_empty() => {
            let from = rng.random_range(0..other.len());
            let to = (from + rng.random_range(1..256)).min(other.len());
            input.splice(at..end, other[from..to].iter().copied());
        }
        _ => input.truncate(at),
    }
}

/// Overwrites what may be a length, a count or an offset: eight bytes of which the upper ones are zero.
fn change_number(rng: &mut StdRng, input: &mut [u8]) {
    if input.len() < 8 {
        return;
    }
    let mut at = rng.random_range(0..=input.len() - 8);
    for _ in 0..32 {
        if input[at + 3..at + 8] == [0; 5] {
            break;
        }
        at = rng.random_range(0..=input.len() - 8);
    }
    let edge = EDGES[rng.random_range(0..EDGES.len())].wrapping_add(rng.random_range(0..3)).wrapping_sub(1);
    let width = if rng.random() { 8 } else { 4 };
    input[at..at + width].copy_from_slice(&edge.to_le_bytes()[..width]);
}
