//! The corpus of the fuzzer, without a fuzzer.
#![allow(clippy::unwrap_used)]

use std::fs;
use std::path::Path;

use peak_alloc::PeakAlloc;
use stowage_placement::gguf::{HeaderReader, Keep, fuzzed};

#[global_allocator]
static MEMORY: PeakAlloc = PeakAlloc;

fn corpus() -> Vec<(String, Vec<u8>)> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz/corpus/header");
    let entries = fs::read_dir(&folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
    let named = |entry: fs::DirEntry| (entry.file_name().to_string_lossy().into_owned(), fs::read(entry.path()).unwrap());
    entries.map(|entry| named(entry.unwrap())).collect()
}

/// One test, since what is held in memory is counted for the whole program.
#[test]
fn of_the_whole_corpus_what_must_hold_of_any_bytes_holds_and_little_memory_is_held() {
    let corpus = corpus();
    assert!(corpus.len() > 100 && corpus.iter().map(|(_, bytes)| bytes.len()).sum::<usize>() < 1 << 20);
    for (name, bytes) in corpus {
        println!("{name}");
        MEMORY.reset_peak_usage();
        let before = MEMORY.current_usage();
        let mut reader = HeaderReader::new(Keep::All);
        let _ = reader.feed(&bytes);
        let held = MEMORY.peak_usage().saturating_sub(before);
        assert!(held < 64 * bytes.len() + (256 << 10), "{name}: {held} bytes held for {} bytes", bytes.len());
        fuzzed::header(&bytes);
    }
}
