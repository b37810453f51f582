//! Phi-3 and Phi-4: fused matrices, which the file shows; and longrope, whose factors are chosen by how long a context the replica has.
//!
//! Source: `src/models/phi3.cpp` and `llama_model::get_rope_factors` of llama.cpp.

use stowage_placement::{ModelSummary, Tokens};

use super::decoder::Decoder;
use super::keys::Keys;
use super::{Graph, Pairing};
use crate::api::EngineError;

pub(super) fn graph(keys: &Keys<'_>, summary: &ModelSummary, num_ctx: Tokens) -> Result<Graph, EngineError> {
    let mut decoder = Decoder::new(keys, summary, Pairing::Halves)?;
    if let Some(original) = keys.optional("rope.scaling.original_context_length")? {
        let name = if num_ctx.0 > original as u64 { "rope_factors_long.weight" } else { "rope_factors_short.weight" };
        let rope = &mut decoder.ropes[0];
        rope.factors = keys.vector(name, rope.dimensions / 2).or(rope.factors.take());
    }
    decoder.graph()
}
