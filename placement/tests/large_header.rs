//! A header of 150 MB, nearly all of it tokens, as the largest vocabularies make them.
#![allow(clippy::unwrap_used)]

use peak_alloc::PeakAlloc;
use stowage_placement::gguf::{Array, Feed, HeaderReader, Keep, Value, ValueType};

#[global_allocator]
static MEMORY: PeakAlloc = PeakAlloc;

const TOKENS: u64 = 256_000;
const TOKEN: [u8; 580] = [b't'; 580];

fn text(text: &[u8]) -> Vec<u8> {
    [&(text.len() as u64).to_le_bytes(), text].concat()
}

/// All that stands before the tokens: no tensor, two keys.
fn beginning() -> Vec<u8> {
    let counts = [0u64, 2].map(u64::to_le_bytes).concat();
    let array = [9u32.to_le_bytes(), 8u32.to_le_bytes()].concat();
    [b"GGUF\x03\0\0\0".to_vec(), counts, text(b"tokenizer.ggml.tokens"), array, TOKENS.to_le_bytes().to_vec()].concat()
}

#[test]
fn a_header_of_150_mb_of_tokens_is_skipped_and_less_than_half_a_mebibyte_is_held() {
    let (beginning, token, end) =
        (beginning(), text(&TOKEN), [text(b"after"), 4u32.to_le_bytes().into(), 7u32.to_le_bytes().into()].concat());
    let tokens_in_a_piece = 100;
    let piece = token.repeat(tokens_in_a_piece);
    let read = beginning.len() + token.len() * TOKENS as usize + end.len();
    assert!(read > 150_000_000);

    MEMORY.reset_peak_usage();
    let before = MEMORY.current_usage();
    let mut reader = HeaderReader::new(Keep::Sizing);
    reader.feed(&beginning).unwrap();
    for _ in 0..TOKENS as usize / tokens_in_a_piece {
        assert_eq!(reader.feed(&piece).unwrap(), Feed::More);
    }
    assert_eq!(reader.feed(&end).unwrap(), Feed::Complete);
    let held = MEMORY.peak_usage() - before;
    assert!(held < 512 << 10, "{held} bytes were held");

    let header = reader.into_header().unwrap();
    let skipped = Value::Array(Array::Skipped { element: ValueType::String, length: TOKENS });
    assert_eq!((header.get("tokenizer.ggml.tokens"), header.u64("after").unwrap()), (Some(&skipped), Some(7)));
}
