//! Any bytes at all, sent to a worker: a path, an end of line, a body.

#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: &[u8]| stowage_agent::serve::fuzzed::request(input));
