//! The models that are made: in the shapes and quantisations of published ones, with random weights.

use std::path::{Path, PathBuf};

use anyhow::Context;
use stowage_engine::synthetic::{Family, Shape, Synthetic, Weights};
use stowage_placement::gguf::GgmlType;

/// A model's name, and its sizes.
pub struct Model {
    pub name: &'static str,
    pub shape: Shape,
}

const fn llama(blocks: u32, embedding: u64, heads: u64, head_length: u64, feed_forward: u64, vocabulary: u64) -> Shape {
    Shape {
        family: Family::Llama,
        blocks,
        embedding,
        heads,
        kv_heads: 8,
        head_length,
        feed_forward,
        vocabulary,
        context: 131_072,
        experts: None,
    }
}

/// As Llama 3.2 1B.
pub fn one() -> Model {
    Model { name: "1B", shape: llama(16, 2048, 32, 64, 8192, 128_256) }
}

/// As Llama 3.1 8B.
pub fn eight() -> Model {
    Model { name: "8B", shape: llama(32, 4096, 32, 128, 14_336, 128_256) }
}

/// As Qwen 2.5 32B, without its biases.
pub fn thirty_two() -> Model {
    Model { name: "32B", shape: llama(64, 5120, 40, 128, 27_648, 152_064) }
}

/// For an emulator.
pub fn tiny(name: &'static str, blocks: u32) -> Model {
    let shape = Shape { kv_heads: 1, context: 8192, ..llama(blocks, 256, 2, 128, 512, 512) };
    Model { name, shape }
}

/// Small enough for the reference, which computes in single precision on one thread after the other.
pub fn compared(emulated: bool) -> Model {
    if emulated {
        return tiny("compared", 2);
    }
    Model { name: "compared", shape: Shape { kv_heads: 2, context: 2048, ..llama(8, 1024, 8, 128, 2816, 8192) } }
}

impl Model {
    /// Writes the file, quantised as llama.cpp's Q4_K_M is.
    pub fn write(&self, folder: &Path, weights: Weights) -> anyhow::Result<PathBuf> {
        let path = folder.join(format!("{}.gguf", self.name));
        if !path.exists() {
            let model = Synthetic::new(&self.shape, |name, _| q4_k_m(name, self.shape.blocks));
            eprintln!("making the {} model, {}", self.name, model.size());
            model.write(&path, weights, 1).with_context(|| format!("writing {}", path.display()))?;
        }
        Ok(path)
    }

    /// Bytes of weights that are read for a token that is computed alone: no embeddings but its own.
    pub fn read_for_a_token(&self) -> u64 {
        let Shape { embedding, vocabulary, .. } = self.shape;
        let model = Synthetic::new(&self.shape, |name, _| q4_k_m(name, self.shape.blocks));
        model.size().0 - GgmlType::Q4_K.bytes(embedding * vocabulary).map_or(0, |bytes| bytes.0)
    }

    /// Keys and values of a token, in half precision.
    pub fn cache_of_a_token(&self) -> u64 {
        let Shape { blocks, kv_heads, head_length, .. } = self.shape;
        u64::from(blocks) * kv_heads * head_length * 2 * 2
    }

    /// A multiplication and an addition for each weight that a token of a prompt meets; attention is not counted, nor the output layer, which the last alone meets.
    pub fn operations_of_a_token(&self) -> f64 {
        let Shape { blocks, embedding, heads, kv_heads, head_length, feed_forward, .. } = self.shape;
        let attention = embedding * head_length * (2 * heads + 2 * kv_heads);
        2.0 * (u64::from(blocks) * (attention + 3 * embedding * feed_forward)) as f64
    }
}

/// Source: `llama_tensor_get_type` and `use_more_bits` of llama.cpp, for LLAMA_FTYPE_MOSTLY_Q4_K_M.
fn q4_k_m(name: &str, blocks: u32) -> GgmlType {
    let block = name.strip_prefix("blk.").and_then(|rest| rest.split('.').next()?.parse::<u32>().ok());
    let eighth = blocks / 8;
    let more_bits = |block: u32| block < eighth || block >= 7 * blocks / 8 || (block - eighth) % 3 == 2;
    match block {
        None if name == "output" => GgmlType::Q6_K,
        Some(block) if (name.ends_with("attn_v") || name.ends_with("ffn_down")) && more_bits(block) => GgmlType::Q6_K,
        _ => GgmlType::Q4_K,
    }
}
