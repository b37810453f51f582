//! How long a header of 150 MB is read, and what its reader holds meanwhile: `cargo bench -p stowage-placement --bench header`.
//!
//! Such headers are those of models with large vocabularies: tokens, their scores and types, merges.

use std::hint::black_box;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use peak_alloc::PeakAlloc;
use stowage_placement::gguf::{Feed, Header, HeaderReader, Keep};
use stowage_placement::testing::LLAMA_3_70B;

#[global_allocator]
static MEMORY: PeakAlloc = PeakAlloc;

const TOKENS: usize = 256_000;
const SIZE: usize = 150_000_000;
/// As files are read.
const PIECE: usize = 1 << 20;

/// The header of a model of 80 layers, filled up to 150 MB with a vocabulary.
fn large_header() -> Vec<u8> {
    let token = |i: usize| format!("{i:08} {}", "token ".repeat(24));
    let tokens: Vec<String> = (0..TOKENS).map(token).collect();
    let held: usize = tokens.iter().map(|token| token.len() + 8).sum();
    // A merge names two tokens.
    let merges: Vec<String> = (0..TOKENS).map(|i| format!("{i:08} {}", "m".repeat((SIZE - held) / TOKENS - 8 - 9 - 8))).collect();
    let writer = LLAMA_3_70B.writer().strings("tokenizer.ggml.tokens", tokens.iter().map(String::as_str));
    let writer = writer.strings("tokenizer.ggml.merges", merges.iter().map(String::as_str));
    writer.f32s("tokenizer.ggml.scores", &vec![0.0; TOKENS]).i32s("tokenizer.ggml.token_type", &vec![1; TOKENS]).header()
}

fn read(bytes: &[u8], keep: Keep) -> Header {
    let mut reader = HeaderReader::new(keep);
    for piece in bytes.chunks(PIECE) {
        if matches!(reader.feed(piece), Ok(Feed::Complete)) {
            break;
        }
    }
    reader.into_header().unwrap_or_else(|error| panic!("the header that was just written: {error}"))
}

fn header(criterion: &mut Criterion) {
    let bytes = large_header();
    let mut group = criterion.benchmark_group(format!("header read of a {} MB header", (bytes.len() + 500_000) / 1_000_000));
    group.sample_size(10).throughput(Throughput::Bytes(bytes.len() as u64));
    for (name, keep) in [("for sizing", Keep::Sizing), ("all of it", Keep::All)] {
        let before = MEMORY.current_usage();
        MEMORY.reset_peak_usage();
        let header = read(&bytes, keep);
        let (peak, held) = (MEMORY.peak_usage() - before, MEMORY.current_usage() - before);
        println!("{name}: {} bytes held at most, {held} by the header, of {} read", peak, bytes.len());
        drop(header);
        group.bench_function(name, |bencher| bencher.iter(|| read(black_box(&bytes), keep)));
    }
    group.finish();
}

criterion_group!(benches, header);
criterion_main!(benches);
