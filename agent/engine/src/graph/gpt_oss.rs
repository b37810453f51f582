//! gpt-oss: experts with biases and a clamped gate, chosen before their weights are made; a sink for each head; every other layer has a window.
//!
//! Source: `src/models/openai-moe.cpp` of llama.cpp, and `ggml_swiglu_oai` for the gate. The ends of YaRN's ramp are not rounded, which the published
//! configurations say (`truncate: false`) and files don't; llama.cpp rounds them, and differs from the model by that.

use stowage_placement::ModelSummary;

use super::decoder::Decoder;
use super::experts::Routing;
use super::keys::Keys;
use super::{Activation, Gating, Graph, Pairing, Scaling};
use crate::api::EngineError;

pub(super) fn graph(keys: &Keys<'_>, summary: &ModelSummary) -> Result<Graph, EngineError> {
    let mut decoder = Decoder::new(keys, summary, Pairing::Halves)?;
    let activation = Activation::ClampedSwiGlu { alpha: 1.702, limit: 7.0 };
    decoder.routing = Some(Routing { gating: Gating::SoftmaxOfChosen, renormalise: false, activation });
    decoder.feed_forward_norm = "post_attention_norm";
    if let Scaling::Yarn { rounded, .. } = &mut decoder.ropes[0].scaling {
        *rounded = false;
    }
    decoder.graph()
}
