//! Headers and downloads from a server that does what servers do.
#![allow(clippy::unwrap_used)]

mod download;
mod header;
mod hugging_face;
mod server;
mod split;

use sha2::{Digest, Sha256};
use stowage_placement::gguf::GgmlType;
use stowage_placement::gguf::write::HeaderWriter;
use stowage_sources::AddressPolicy;

/// Public addresses, and this machine.
fn with_loopback() -> AddressPolicy {
    AddressPolicy::parse(["127.0.0.0/8"]).unwrap()
}

/// A small file that is a GGUF file. Its vocabulary makes the header longer than what is read of it at first.
fn model() -> HeaderWriter {
    let tokens: Vec<String> = (0..40_000).map(|i| format!("token {i}")).collect();
    HeaderWriter::architecture("llama")
        .strings("tokenizer.ggml.tokens", tokens.iter().map(String::as_str))
        .u32("llama.block_count", 1)
        .tensor("token_embd.weight", GgmlType::F32, &[64, 100])
}

fn sha256(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}
