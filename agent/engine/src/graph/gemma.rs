//! Gemma 2 and 3: embeddings scaled up, GELU, norms after each part. Gemma 2 caps its scores and logits; Gemma 3's layers with a window turn by a
//! base of their own, and only the others are scaled.
//!
//! Source: `src/models/gemma2.cpp` and `gemma3.cpp` of llama.cpp; its `llama_model::load_hparams` for the scale of scores, which the largest of each
//! (46 and 62 blocks) takes from the embedding instead of from the key.

use stowage_placement::ModelSummary;

use super::decoder::Decoder;
use super::keys::Keys;
use super::{Activation, Graph, Pairing, Rope, Scaling};
use crate::api::EngineError;

const LARGEST_GEMMA_2: u32 = 46;
const LARGEST_GEMMA_3: u32 = 62;

pub(super) fn graph(keys: &Keys<'_>, summary: &ModelSummary) -> Result<Graph, EngineError> {
    let mut decoder = Decoder::new(keys, summary, Pairing::Halves)?;
    decoder.embedding_scale = (decoder.embedding as f32).sqrt();
    decoder.activation = Activation::GeluTanh;
    let second = keys.architecture == "gemma2";
    if summary.block_count() == if second { LARGEST_GEMMA_2 } else { LARGEST_GEMMA_3 } {
        decoder.attention_scale = 1.0 / (decoder.embedding as f32 / decoder.heads as f32).sqrt();
    }
    let cap = |name: &str| Ok::<_, EngineError>(keys.float(name)?.map(|cap| cap as f32).filter(|cap| *cap != 0.0));
    decoder.attention_softcap = cap("attn_logit_softcapping")?.or(second.then_some(50.0));
    decoder.logit_softcap = cap("final_logit_softcapping")?.or(second.then_some(30.0));
    if !second {
        let base = keys.float("rope.freq_base_swa")?.unwrap_or(10_000.0);
        let sliding = Rope { base, scaling: Scaling::None, ..decoder.ropes[0].clone() };
        decoder.ropes.push(sliding);
        decoder.rope_of = |_, cache| Some(usize::from(cache.window.is_some()));
    }
    decoder.graph()
}
