//! Llama and what shares its blocks: Mistral, Mixtral and SmolLM2 call themselves `llama`; Mistral 3, Granite and SmolLM3 have their own names.
//!
//! Source of the tensors: `src/llama-arch.cpp` of llama.cpp (`LLM_ARCH_LLAMA`). Checked on SmolLM2-135M-Instruct.

use super::{Family, Hyperparameters, LayerCache};

pub(super) const FAMILY: Family = Family { names: &["llama", "granite", "mistral3", "smollm3"], block_tensors, cache: attention };

/// Full attention in every layer that has KV heads.
pub(super) fn attention(hyperparameters: &Hyperparameters, layer: usize) -> LayerCache {
    match hyperparameters.kv_heads[layer] {
        0 => LayerCache::default(),
        kv_heads => LayerCache { kv_heads, key_length: hyperparameters.key_length, value_length: hyperparameters.value_length },
    }
}

pub(super) fn block_tensors(hyperparameters: &Hyperparameters, layer: usize) -> Vec<&'static str> {
    let mut tensors = vec!["ffn_norm.weight"];
    if hyperparameters.kv_heads[layer] > 0 {
        tensors.extend(["attn_norm.weight", "attn_q.weight", "attn_k.weight", "attn_v.weight", "attn_output.weight"]);
    }
    if hyperparameters.experts > 0 {
        // Mixtral's first files hold each expert as a tensor of its own, so only the router is in all of them.
        tensors.push("ffn_gate_inp.weight");
    } else {
        tensors.extend(["ffn_gate.weight", "ffn_up.weight", "ffn_down.weight"]);
    }
    tensors
}
