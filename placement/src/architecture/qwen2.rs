//! Qwen2 and Qwen2.5: Llama's blocks, with biases on query, key and value.
//!
//! Source of the tensors: `src/llama-arch.cpp` of llama.cpp (`LLM_ARCH_QWEN2`).

use super::{Family, Hyperparameters, llama};

pub(super) const FAMILY: Family = Family { names: &["qwen2"], block_tensors, cache: llama::attention };

fn block_tensors(hyperparameters: &Hyperparameters, layer: usize) -> Vec<&'static str> {
    let mut tensors = llama::block_tensors(hyperparameters, layer);
    tensors.extend(["attn_q.bias", "attn_k.bias", "attn_v.bias"]);
    tensors
}
