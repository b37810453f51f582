//! Llama, and what calls itself so: Mistral, Mixtral, SmolLM2. Granite multiplies what they add; SmolLM3 leaves every fourth block without positions.
//!
//! Source: `src/models/llama.cpp`, `granite.cpp`, `granite-moe.cpp` and `smollm3.cpp` of llama.cpp.

use stowage_placement::ModelSummary;

use super::decoder::Decoder;
use super::experts::Routing;
use super::keys::Keys;
use super::{Activation, Gating, Graph, Pairing};
use crate::api::EngineError;

pub(super) fn graph(keys: &Keys<'_>, summary: &ModelSummary) -> Result<Graph, EngineError> {
    let mut decoder = Decoder::new(keys, summary, Pairing::Neighbours)?;
    decoder.routing = Some(Routing { gating: Gating::Softmax, renormalise: true, activation: Activation::Silu });
    if keys.architecture == "smollm3" {
        decoder.rope_of = |block, _| (block % 4 != 3).then_some(0);
    }
    if keys.architecture.starts_with("granite") {
        let multiplier = |name: &str| Ok::<_, EngineError>(keys.float(name)?.filter(|factor| *factor != 0.0).map(|factor| factor as f32));
        decoder.embedding_scale = multiplier("embedding_scale")?.unwrap_or(1.0);
        decoder.residual_scale = multiplier("residual_scale")?.unwrap_or(1.0);
        decoder.attention_scale = multiplier("attention.scale")?.unwrap_or(decoder.attention_scale);
        // The file has what logits are divided by.
        decoder.logit_scale = 1.0 / multiplier("logit_scale")?.unwrap_or(1.0);
    }
    decoder.graph()
}
