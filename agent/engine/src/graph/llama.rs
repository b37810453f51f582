//! The `llama` family: pre-norm blocks, grouped-query attention with rotary positions, SwiGLU. Llama, Mistral and SmolLM are of it.

use stowage_placement::compute::ComputeShape;
use stowage_placement::gguf::Header;
use stowage_placement::{Reason, capability};

use super::{Block, CacheShape, Graph, Operand, Operation, Output, Product, Rope, Weight, cannot_run, invalid};
use crate::api::EngineError;

/// The numbers of a header that the graph follows from.
struct Sizes {
    embedding: usize,
    feed_forward: usize,
    heads: usize,
    kv_heads: usize,
    key_length: usize,
    value_length: usize,
    epsilon: f32,
}

/// The graph of a header whose architecture is `llama`.
pub(super) fn graph(header: &Header) -> Result<Graph, EngineError> {
    refuse_what_is_missing(header)?;
    let sizes = sizes(header)?;
    let blocks = required(header, "block_count")?;
    if blocks > header.tensors.len() {
        let message = format!("the header claims {blocks} blocks and has {} tensors", header.tensors.len());
        return Err(EngineError::new(Reason::InvalidModelFile, message));
    }
    let vocabulary = header.tensor("token_embd.weight").map_or(0, |tensor| tensor.rows() as usize);
    let embeddings = Weight { name: "token_embd.weight".into(), rows: vocabulary, columns: sizes.embedding };
    let tied = header.tensor("output.weight").is_none();
    let output = Output {
        norm: vector("output_norm.weight", sizes.embedding),
        epsilon: sizes.epsilon,
        weight: if tied { embeddings.clone() } else { Weight { name: "output.weight".into(), ..embeddings.clone() } },
        tied,
    };
    let shape = ComputeShape {
        embedding: sizes.embedding as u64,
        heads: sizes.heads as u64,
        kv_heads_max: sizes.kv_heads as u64,
        key_length: sizes.key_length as u64,
        value_length: sizes.value_length as u64,
        feed_forward: sizes.feed_forward as u64,
        vocabulary: vocabulary as u64,
    };
    let rope = rope(header, &sizes)?;
    let blocks = (0..blocks).map(|index| block(index, &sizes)).collect();
    Ok(Graph { architecture: "llama".into(), embeddings, blocks, output, rope, shape })
}

fn sizes(header: &Header) -> Result<Sizes, EngineError> {
    let embedding = required(header, "embedding_length")?;
    let heads = required(header, "attention.head_count")?;
    if heads == 0 || !embedding.is_multiple_of(heads) {
        return Err(cannot_run(format!("an embedding of {embedding} can't be divided among {heads} heads")));
    }
    let kv_heads = optional(header, "attention.head_count_kv")?.unwrap_or(heads);
    if kv_heads == 0 || !heads.is_multiple_of(kv_heads) {
        return Err(cannot_run(format!("{heads} heads can't share {kv_heads} heads of keys and values evenly")));
    }
    let epsilon = header.required("llama.attention.layer_norm_rms_epsilon", Header::f64).map_err(invalid)?;
    Ok(Sizes {
        embedding,
        feed_forward: required(header, "feed_forward_length")?,
        heads,
        kv_heads,
        key_length: optional(header, "attention.key_length")?.unwrap_or(embedding / heads),
        value_length: optional(header, "attention.value_length")?.unwrap_or(embedding / heads),
        epsilon: epsilon as f32,
    })
}

fn rope(header: &Header, sizes: &Sizes) -> Result<Rope, EngineError> {
    let dimensions = optional(header, "rope.dimension_count")?.unwrap_or(sizes.key_length);
    if dimensions == 0 || dimensions > sizes.key_length || !dimensions.is_multiple_of(2) {
        return Err(cannot_run(format!("rotating {dimensions} elements of keys of {} is not possible", sizes.key_length)));
    }
    let base = header.f64("llama.rope.freq_base").map_err(invalid)?.unwrap_or(10_000.0);
    let factors = header.tensor("rope_freqs.weight").map(|_| vector("rope_freqs.weight", dimensions / 2));
    Ok(Rope { dimensions, base, factors })
}

/// What changes the arithmetic and isn't there is refused by name, not left out.
fn refuse_what_is_missing(header: &Header) -> Result<(), EngineError> {
    let scaling = header.string("llama.rope.scaling.type").map_err(invalid)?.unwrap_or_default();
    capability::rope_scaling(scaling).map_err(cannot_run)?;
    if let Some(scale) = header.f64("llama.rope.scale_linear").map_err(invalid)?.filter(|&scale| scale != 1.0) {
        return Err(cannot_run(format!("the engine has no linear rope scaling (llama.rope.scale_linear is {scale})")));
    }
    capability::experts(optional(header, "expert_count")?.unwrap_or(0) as u64).map_err(cannot_run)
}

fn block(index: usize, sizes: &Sizes) -> Block {
    let Sizes { embedding, feed_forward, heads, kv_heads, key_length, value_length, epsilon } = *sizes;
    let matrix = |name: &str, rows, columns| Weight { name: format!("blk.{index}.{name}.weight"), rows, columns };
    let product = |name: &str, rows, columns, to| Product { weight: matrix(name, rows, columns), to, add: false };
    let residual = |name: &str, columns| Product { weight: matrix(name, embedding, columns), to: Operand::Hidden, add: true };
    let norm = |name: &str| Operation::Norm { from: Operand::Hidden, weight: matrix(name, 1, embedding), epsilon, to: Operand::Normed };
    let query_key_value = vec![
        product("attn_q", heads * key_length, embedding, Operand::Query),
        product("attn_k", kv_heads * key_length, embedding, Operand::Key),
        product("attn_v", kv_heads * value_length, embedding, Operand::Value),
    ];
    let gate_up =
        vec![product("ffn_gate", feed_forward, embedding, Operand::Gate), product("ffn_up", feed_forward, embedding, Operand::Up)];
    Block {
        cache: CacheShape { kv_heads, key_length, value_length },
        operations: vec![
            norm("attn_norm"),
            Operation::Linear { from: Operand::Normed, products: query_key_value },
            Operation::Rope { value: Operand::Query, heads },
            Operation::Rope { value: Operand::Key, heads: kv_heads },
            Operation::Attention { heads, scale: 1.0 / (key_length as f32).sqrt(), to: Operand::Attended },
            Operation::Linear { from: Operand::Attended, products: vec![residual("attn_output", heads * value_length)] },
            norm("ffn_norm"),
            Operation::Linear { from: Operand::Normed, products: gate_up },
            Operation::GatedActivation { gate: Operand::Gate, up: Operand::Up },
            Operation::Linear { from: Operand::Gate, products: vec![residual("ffn_down", feed_forward)] },
        ],
    }
}

fn vector(name: &str, length: usize) -> Weight {
    Weight { name: name.into(), rows: 1, columns: length }
}

fn required(header: &Header, key: &str) -> Result<usize, EngineError> {
    let key = format!("llama.{key}");
    header.required(&key, Header::u64).map_err(invalid).and_then(|value| bounded(&key, value))
}

fn optional(header: &Header, key: &str) -> Result<Option<usize>, EngineError> {
    let key = format!("llama.{key}");
    header.u64(&key).map_err(invalid)?.map(|value| bounded(&key, value)).transpose()
}

/// Sizes come from a file that anyone may have written: with this bound, products of two of them can't overflow.
fn bounded(key: &str, value: u64) -> Result<usize, EngineError> {
    const MOST: u64 = 1 << 24;
    if value > MOST {
        return Err(cannot_run(format!("{key} is {value}; the engine takes at most {MOST}")));
    }
    Ok(value as usize)
}
