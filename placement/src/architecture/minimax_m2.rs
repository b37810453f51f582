//! MiniMax M2: full attention with a norm over all of query and of key, and routed experts alone.
//!
//! Source: `src/models/minimax-m2.cpp` of llama.cpp. Checked on the configuration of MiniMaxAI/MiniMax-M2.

use super::need::{self, Need};
use super::{Family, Hyperparameters, llama};

pub(super) const FAMILY: Family = Family {
    names: &["minimax-m2"],
    required: &["attention.head_count", "expert_count", "expert_used_count"],
    block_tensors,
    ..llama::FAMILY
};

fn block_tensors(hyperparameters: &Hyperparameters, layer: usize) -> Vec<Need> {
    let mut needs = llama::attention(hyperparameters, layer);
    needs.extend([need::query_key_norms(), need::all(&["ffn_norm.weight", "exp_probs_b.bias"])]);
    needs.extend(need::experts(hyperparameters));
    needs
}

#[cfg(test)]
mod tests {
    use super::super::testing::{Case, KIB, kv};

    #[test]
    fn every_layer_caches_all_of_the_context() {
        let numbers = [
            ("embedding_length", 3072),
            ("attention.head_count", 48),
            ("attention.head_count_kv", 8),
            ("attention.key_length", 128),
            ("attention.value_length", 128),
            ("expert_count", 256),
            ("expert_used_count", 8),
        ];
        let case = Case::new("minimax-m2", 62, &numbers);
        case.has_layers(&[(kv(8, 128, 128), 62)]);
        case.takes(65536, 512, 62 * 65536 * 4 * KIB, 0);
    }
}
