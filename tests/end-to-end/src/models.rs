//! Where the models are that `make models` fetches.

use std::path::PathBuf;

use anyhow::{Context, Result};
use stowage_control_plane::binaries::cache_directory;
use stowage_placement::gguf::GgmlType;
use stowage_placement::gguf::write::HeaderWriter;

/// SmolLM2-135M-Instruct in Q4_1.
pub const SMOLLM2: &str = "smollm2-135m-instruct-q4_1.gguf";

/// `STOWAGE_TEST_MODELS`, or the folder `models` of the cache.
pub fn directory() -> Result<PathBuf> {
    let directory = std::env::var_os("STOWAGE_TEST_MODELS").map(PathBuf::from).unwrap_or_else(|| cache_directory().join("models"));
    let found = directory.join(SMOLLM2).is_file().then_some(directory.clone());
    found.with_context(|| format!("{SMOLLM2} is not in {}: `make models` fetches it", directory.display()))
}

/// A model of one small layer that says it was trained for so many tokens, of an architecture that is made like llama's.
pub fn tiny(architecture: &str, trained_context: u32) -> HeaderWriter {
    let keys = [("block_count", 1), ("context_length", trained_context), ("embedding_length", 64), ("feed_forward_length", 128)];
    let heads = [("attention.head_count", 2), ("attention.head_count_kv", 1)];
    let started = HeaderWriter::architecture(architecture);
    let writer = keys.iter().chain(&heads).fold(started, |w, (key, value)| w.u32(&format!("{architecture}.{key}"), *value));
    let blocks: [(&str, &[u64]); 9] = [
        ("attn_norm.weight", &[64]),
        ("attn_q.weight", &[64, 64]),
        ("attn_k.weight", &[64, 32]),
        ("attn_v.weight", &[64, 32]),
        ("attn_output.weight", &[64, 64]),
        ("ffn_norm.weight", &[64]),
        ("ffn_gate.weight", &[64, 128]),
        ("ffn_up.weight", &[64, 128]),
        ("ffn_down.weight", &[128, 64]),
    ];
    let writer = blocks.iter().fold(writer, |w, (name, dimensions)| w.tensor(&format!("blk.0.{name}"), GgmlType::F32, dimensions));
    writer
        .f32(&format!("{architecture}.attention.layer_norm_rms_epsilon"), 1e-6)
        .strings("tokenizer.ggml.tokens", (0..32).map(|_| "a"))
        .tensor("token_embd.weight", GgmlType::F32, &[64, 32])
        .tensor("output_norm.weight", GgmlType::F32, &[64])
}
