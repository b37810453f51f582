//! GLM-4: half of each head turns; norms stand before and after each part. GLM-4.5 has experts instead, weighed by the sigmoid and chosen with a bias, and a
//! norm before each part alone.
//!
//! Source: `src/models/glm4.cpp` and `glm4-moe.cpp` of llama.cpp.

use stowage_placement::ModelSummary;

use super::decoder::Decoder;
use super::experts::Routing;
use super::keys::Keys;
use super::{Activation, Gating, Graph, Pairing};
use crate::api::EngineError;

pub(super) fn graph(keys: &Keys<'_>, summary: &ModelSummary) -> Result<Graph, EngineError> {
    if keys.architecture == "glm4" {
        return Decoder::new(keys, summary, Pairing::Neighbours)?.graph();
    }
    let mut decoder = Decoder::new(keys, summary, Pairing::Halves)?;
    decoder.routing = Some(Routing { gating: Gating::Sigmoid, renormalise: false, activation: Activation::Silu });
    decoder.feed_forward_norm = "post_attention_norm";
    decoder.graph()
}
