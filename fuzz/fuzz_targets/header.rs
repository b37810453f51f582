//! Any bytes at all, taken for the header of a GGUF file.

#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| stowage_placement::gguf::fuzzed::header(bytes));
