//! Qwen2 and Qwen3: Llama's blocks with other pairs turned; what they have beside (biases, norms of heads) the file shows. Their experts: Qwen2's
//! weights are shares of all experts, Qwen3's of those chosen.
//!
//! Source: `src/models/qwen2.cpp`, `qwen2moe.cpp`, `qwen3.cpp` and `qwen3moe.cpp` of llama.cpp.

use stowage_placement::ModelSummary;

use super::decoder::Decoder;
use super::experts::Routing;
use super::keys::Keys;
use super::{Activation, Gating, Graph, Pairing};
use crate::api::EngineError;

pub(super) fn graph(keys: &Keys<'_>, summary: &ModelSummary) -> Result<Graph, EngineError> {
    let mut decoder = Decoder::new(keys, summary, Pairing::Halves)?;
    let renormalise = keys.architecture == "qwen3moe";
    decoder.routing = Some(Routing { gating: Gating::Softmax, renormalise, activation: Activation::Silu });
    decoder.graph()
}
