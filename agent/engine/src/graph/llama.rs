//! Llama, and what calls itself so: Mistral, Mixtral, SmolLM2. Granite multiplies what they add.
//!
//! Source: `src/models/llama.cpp` and `granite.cpp` of llama.cpp.

use stowage_placement::ModelSummary;

use super::decoder::Decoder;
use super::experts::Routing;
use super::keys::Keys;
use super::{Activation, Gating, Graph, Pairing};
use crate::api::EngineError;

pub(super) fn graph(keys: &Keys<'_>, summary: &ModelSummary) -> Result<Graph, EngineError> {
    let mut decoder = Decoder::new(keys, summary, Pairing::Neighbours)?;
    decoder.routing = Some(Routing { gating: Gating::Softmax, renormalise: true, activation: Activation::Silu });
    if keys.architecture == "granite" {
        let multiplier = |name: &str| Ok::<_, EngineError>(keys.float(name)?.filter(|factor| *factor != 0.0).map(|factor| factor as f32));
        decoder.embedding_scale = multiplier("embedding_scale")?.unwrap_or(1.0);
        decoder.residual_scale = multiplier("residual_scale")?.unwrap_or(1.0);
        decoder.attention_scale = multiplier("attention.scale")?.unwrap_or(decoder.attention_scale);
        // The file has what logits are divided by.
        decoder.logit_scale = 1.0 / multiplier("logit_scale")?.unwrap_or(1.0);
    }
    decoder.graph()
}
