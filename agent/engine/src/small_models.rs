//! Small models with random weights, written where a test wants them.

use std::path::{Path, PathBuf};

use stowage_placement::gguf::GgmlType;
use stowage_placement::gguf::write::HeaderWriter;

/// Sizes of a small model of the llama family; with a window, of phi3's, whose gate and up are one matrix.
#[derive(Clone, Copy)]
pub struct SmallModel {
    pub blocks: u32,
    pub embedding: u64,
    pub heads: u32,
    pub kv_heads: u32,
    pub feed_forward: u64,
    pub vocabulary: u64,
    pub tied: bool,
    pub rope_factors: bool,
    /// Tokens that every layer looks back.
    pub window: Option<u32>,
}

impl Default for SmallModel {
    /// Sizes that fill no tile and no group, so that the edges are computed too.
    fn default() -> SmallModel {
        SmallModel {
            blocks: 3,
            embedding: 72,
            heads: 6,
            kv_heads: 2,
            feed_forward: 100,
            vocabulary: 53,
            tied: false,
            rope_factors: false,
            window: None,
        }
    }
}

impl SmallModel {
    pub fn header(&self) -> HeaderWriter {
        let SmallModel { blocks, embedding, heads, kv_heads, feed_forward, vocabulary, tied, rope_factors, window } = *self;
        let head = embedding / u64::from(heads);
        let kv = head * u64::from(kv_heads);
        let f32 = GgmlType::F32;
        let family = if window.is_some() { "phi3" } else { "llama" };
        let key = |name: &str| format!("{family}.{name}");
        let mut header = HeaderWriter::architecture(family)
            .u32(&key("block_count"), blocks)
            .u32(&key("context_length"), 4096)
            .u32(&key("embedding_length"), embedding as u32)
            .u32(&key("feed_forward_length"), feed_forward as u32)
            .u32(&key("attention.head_count"), heads)
            .u32(&key("attention.head_count_kv"), kv_heads)
            .u32(&key("attention.sliding_window"), window.unwrap_or(0))
            .f32(&key("attention.layer_norm_rms_epsilon"), 1e-5)
            .tensor("token_embd.weight", f32, &[embedding, vocabulary])
            .tensor("output_norm.weight", f32, &[embedding]);
        if !tied {
            header = header.tensor("output.weight", f32, &[embedding, vocabulary]);
        }
        if rope_factors {
            header = header.tensor("rope_freqs.weight", f32, &[head / 2]);
        }
        for block in 0..blocks {
            let name = |tensor: &str| format!("blk.{block}.{tensor}.weight");
            header = header
                .tensor(&name("attn_norm"), f32, &[embedding])
                .tensor(&name("attn_q"), f32, &[embedding, embedding])
                .tensor(&name("attn_k"), f32, &[embedding, kv])
                .tensor(&name("attn_v"), f32, &[embedding, kv])
                .tensor(&name("attn_output"), f32, &[embedding, embedding])
                .tensor(&name("ffn_norm"), f32, &[embedding])
                .tensor(&name("ffn_down"), f32, &[feed_forward, embedding]);
            header = match window {
                Some(_) => header.tensor(&name("ffn_up"), f32, &[embedding, 2 * feed_forward]),
                None => {
                    let gate = header.tensor(&name("ffn_gate"), f32, &[embedding, feed_forward]);
                    gate.tensor(&name("ffn_up"), f32, &[embedding, feed_forward])
                }
            };
        }
        header
    }

    pub fn write(&self, folder: &Path) -> PathBuf {
        write(&self.header(), folder)
    }
}

/// The file of a header whose tensors are all F32: norms and factors from 0.5 to 1.5, all else from -0.5 to 0.5.
pub fn write(header: &HeaderWriter, folder: &Path) -> PathBuf {
    let path = folder.join("small.gguf");
    std::fs::write(&path, header.file(data)).unwrap();
    path
}

/// The same model split into so many files; the first one's path.
pub fn write_parts(header: HeaderWriter, count: u16, folder: &Path) -> PathBuf {
    let path = |number: usize| folder.join(format!("small-{:05}-of-{count:05}.gguf", number + 1));
    for (number, part) in header.into_parts(count).iter().enumerate() {
        std::fs::write(path(number), part.file(data)).unwrap();
    }
    path(0)
}

fn data(tensor: &str, byte: u64) -> u8 {
    let seed = tensor.bytes().fold(0xcbf2_9ce4_8422_2325u64, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3));
    let mixed = (seed ^ (byte / 4)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let mixed = (mixed ^ mixed >> 29).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let shift = if tensor.contains("norm") || tensor.contains("freqs") { 1.0 } else { 0.0 };
    // Softer attention: else rounding keys to f16 tips it over, and hides other differences.
    let scale = if tensor.contains("attn_q") || tensor.contains("attn_k") { 0.3 } else { 1.0 };
    let value = ((mixed >> 40) as f32 / (1 << 24) as f32 - 0.5) * scale + shift;
    value.to_le_bytes()[(byte % 4) as usize]
}
