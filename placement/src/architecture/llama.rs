//! Llama and what shares its blocks: Mistral, Mixtral and SmolLM2 call themselves `llama`; Mistral 3, Granite and SmolLM3 have their own names.
//!
//! Mistral's sliding window is not in the files: converters leave it out, and every layer has the whole context.
//!
//! Source of the tensors: `src/models/llama.cpp`, `granite.cpp`, `granite-moe.cpp`, `mistral3.cpp` and `smollm3.cpp` of llama.cpp. Checked on the
//! published configurations of meta-llama/Meta-Llama-3-8B, mistralai/Mixtral-8x7B-v0.1, ibm-granite/granite-3.1-3b-a800m-instruct and
//! HuggingFaceTB/SmolLM2-135M-Instruct.

use super::need::{self, Need};
use super::{Family, Hyperparameters, OutputLayer, layer_cache};

pub(super) const FAMILY: Family = Family {
    names: &["llama", "granite", "granitemoe", "mistral3", "smollm3"],
    required: &["attention.head_count", "feed_forward_length"],
    block_tensors,
    cache: layer_cache::full_attention,
    output: OutputLayer::Vocabulary,
};

fn block_tensors(hyperparameters: &Hyperparameters, layer: usize) -> Vec<Need> {
    let mut needs = attention(hyperparameters, layer);
    needs.push(need::all(&["ffn_norm.weight"]));
    if hyperparameters.experts.count > 0 {
        needs.extend(need::experts(hyperparameters));
        if hyperparameters.experts.shared_feed_forward > 0 {
            needs.push(need::shared_experts());
        }
    } else {
        needs.push(need::feed_forward());
    }
    needs
}

/// A norm, and attention where the layer has KV heads.
pub(super) fn attention(hyperparameters: &Hyperparameters, layer: usize) -> Vec<Need> {
    if hyperparameters.kv_heads[layer] == 0 {
        return Vec::new();
    }
    vec![need::all(&["attn_norm.weight"]), need::query_key_value(), need::all(&["attn_output.weight"])]
}

#[cfg(test)]
mod tests {
    use super::super::testing::{Case, KIB, kv};

    #[test]
    fn every_layer_caches_all_of_the_context() {
        // 8 heads of 128 + 128 elements: 4 KiB a token in f16.
        let llama = Case::new("llama", 32, &[("embedding_length", 4096), ("attention.head_count", 32), ("attention.head_count_kv", 8)]);
        llama.has_layers(&[(kv(8, 128, 128), 32)]);
        llama.takes(2048, 512, 32 * 2048 * 4 * KIB, 0);
        // Without `head_count_kv`, every head has its own: 20 KiB.
        let multi_head = Case::new("llama", 40, &[("embedding_length", 5120), ("attention.head_count", 40)]);
        multi_head.has_layers(&[(kv(40, 128, 128), 40)]);
        multi_head.takes(2048, 512, 40 * 2048 * 20 * KIB, 0);
    }

    #[test]
    fn experts_change_nothing_of_the_cache() {
        let numbers = [("embedding_length", 4096), ("attention.head_count", 32), ("attention.head_count_kv", 8), ("expert_count", 8)];
        for name in ["llama", "granitemoe"] {
            Case::new(name, 32, &numbers).has_layers(&[(kv(8, 128, 128), 32)]);
        }
    }

    #[test]
    fn experts_may_be_in_one_tensor_or_in_one_each() {
        let numbers = [("embedding_length", 4096), ("attention.head_count", 32), ("expert_count", 8)];
        let one_each: Vec<String> =
            (0..8).flat_map(|expert| ["gate", "up", "down"].map(|name| format!("blk.0.ffn_{name}.{expert}.weight"))).collect();
        let merged = Case::new("llama", 1, &numbers);
        let single = merged.clone().without("_exps.weight").with(&one_each);
        single.has_layers(&[(kv(32, 128, 128), 1)]);
        let error = single.without("ffn_down.7.weight").error();
        assert!(error.contains("blk.0.ffn_gate_exps.weight"), "{error}");
    }
}
