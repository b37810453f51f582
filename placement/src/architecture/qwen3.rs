//! Qwen3: Llama's blocks, with a norm on each head's query and key. Qwen3-MoE has routed experts alone.
//!
//! Source of the tensors: `src/models/qwen3.cpp` and `qwen3moe.cpp` of llama.cpp. Checked on the configurations of Qwen/Qwen3-8B and
//! Qwen/Qwen3-30B-A3B.

use super::need::{self, Need};
use super::{Family, Hyperparameters, llama};

pub(super) const DENSE: Family = Family { names: &["qwen3"], block_tensors: dense, ..llama::FAMILY };

pub(super) const EXPERTS: Family = Family {
    names: &["qwen3moe"],
    required: &["attention.head_count", "expert_count", "expert_used_count"],
    block_tensors: experts,
    ..llama::FAMILY
};

fn dense(hyperparameters: &Hyperparameters, layer: usize) -> Vec<Need> {
    let mut needs = attention(hyperparameters, layer);
    needs.push(need::feed_forward());
    needs
}

fn experts(hyperparameters: &Hyperparameters, layer: usize) -> Vec<Need> {
    let mut needs = attention(hyperparameters, layer);
    needs.extend(need::experts(hyperparameters));
    needs
}

fn attention(hyperparameters: &Hyperparameters, layer: usize) -> Vec<Need> {
    let mut needs = llama::attention(hyperparameters, layer);
    needs.extend([need::query_key_norms(), need::all(&["ffn_norm.weight"])]);
    needs
}

#[cfg(test)]
mod tests {
    use super::super::testing::{Case, KIB, kv};

    #[test]
    fn a_heads_length_need_not_be_the_embedding_divided_by_the_heads() {
        // 32 heads of 128 in an embedding of 2048.
        let numbers = [
            ("embedding_length", 2048),
            ("attention.head_count", 32),
            ("attention.head_count_kv", 4),
            ("attention.key_length", 128),
            ("attention.value_length", 128),
            ("expert_count", 128),
            ("expert_used_count", 8),
        ];
        let case = Case::new("qwen3moe", 48, &numbers);
        case.has_layers(&[(kv(4, 128, 128), 48)]);
        case.takes(40960, 512, 48 * 40960 * 2 * KIB, 0);
        let dense = Case::new("qwen3", 36, &[("embedding_length", 4096), ("attention.head_count", 32), ("attention.head_count_kv", 8)]);
        dense.has_layers(&[(kv(8, 128, 128), 36)]);
        assert!(dense.without("attn_k_norm.weight").error().contains("blk.0.attn_k_norm.weight"));
    }
}
