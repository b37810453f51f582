//! Qwen2 and Qwen2.5: Llama's blocks, with biases on query, key and value. Qwen2-MoE has a shared expert beside the routed ones.
//!
//! Source of the tensors: `src/models/qwen2.cpp` and `qwen2moe.cpp` of llama.cpp. Its converter's biases are optional to llama.cpp, but every
//! published Qwen2 has them. Checked on the configurations of Qwen/Qwen2.5-32B and Qwen/Qwen2-57B-A14B.

use super::need::{self, Need};
use super::{Family, Hyperparameters, llama};

pub(super) const DENSE: Family = Family { names: &["qwen2"], block_tensors: dense, ..llama::FAMILY };

pub(super) const EXPERTS: Family = Family {
    names: &["qwen2moe"],
    required: &["attention.head_count", "expert_count", "expert_used_count"],
    block_tensors: experts,
    ..llama::FAMILY
};

fn dense(hyperparameters: &Hyperparameters, layer: usize) -> Vec<Need> {
    let mut needs = attention(hyperparameters, layer);
    needs.extend([need::all(&["ffn_norm.weight"]), need::feed_forward()]);
    needs
}

fn experts(hyperparameters: &Hyperparameters, layer: usize) -> Vec<Need> {
    let mut needs = attention(hyperparameters, layer);
    needs.extend(need::experts(hyperparameters));
    needs.extend([need::all(&["ffn_norm.weight", "ffn_gate_inp_shexp.weight"]), need::shared_experts()]);
    needs
}

fn attention(hyperparameters: &Hyperparameters, layer: usize) -> Vec<Need> {
    let mut needs = llama::attention(hyperparameters, layer);
    if !needs.is_empty() {
        needs.push(need::query_key_value_bias());
    }
    needs
}

#[cfg(test)]
mod tests {
    use super::super::testing::{Case, KIB, kv};

    #[test]
    fn every_layer_caches_all_of_the_context() {
        let numbers = [("embedding_length", 5120), ("attention.head_count", 40), ("attention.head_count_kv", 8)];
        let case = Case::new("qwen2", 64, &numbers);
        case.has_layers(&[(kv(8, 128, 128), 64)]);
        case.takes(32768, 512, 64 * 32768 * 4 * KIB, 0);
    }

    #[test]
    fn experts_have_a_shared_one_and_a_gate_for_it() {
        let numbers = [
            ("embedding_length", 3584),
            ("attention.head_count", 28),
            ("attention.head_count_kv", 4),
            ("expert_count", 64),
            ("expert_used_count", 8),
        ];
        let case = Case::new("qwen2moe", 28, &numbers);
        case.has_layers(&[(kv(4, 128, 128), 28)]);
        case.takes(4096, 512, 28 * 4096 * 2 * KIB, 0);
        assert!(case.without("ffn_gate_inp_shexp.weight").error().contains("blk.0.ffn_gate_inp_shexp.weight"));
    }
}
