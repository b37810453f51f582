//! GLM-4: gate and up in one matrix, a norm behind attention and behind the feed-forward network. GLM-4.5 (`glm4moe`) has experts from the second
//! block on and ends in a block that predicts further tokens, which is not loaded.
//!
//! Source: `src/models/glm4.cpp` and `glm4-moe.cpp` of llama.cpp. Checked on the configurations of THUDM/GLM-4-9B-0414 and zai-org/GLM-4.5-Air.

use super::need::{self, Need};
use super::{Family, Hyperparameters, llama};

pub(super) const DENSE: Family = Family { names: &["glm4"], block_tensors: dense, ..llama::FAMILY };

pub(super) const EXPERTS: Family = Family {
    names: &["glm4moe"],
    required: &["attention.head_count", "expert_count", "expert_used_count", "expert_feed_forward_length"],
    block_tensors: experts,
    ..llama::FAMILY
};

fn dense(hyperparameters: &Hyperparameters, layer: usize) -> Vec<Need> {
    let mut needs = llama::attention(hyperparameters, layer);
    needs.push(need::all(&["post_attention_norm.weight", "ffn_norm.weight", "post_ffw_norm.weight", "ffn_up.weight", "ffn_down.weight"]));
    needs
}

fn experts(hyperparameters: &Hyperparameters, layer: usize) -> Vec<Need> {
    let mut needs = llama::attention(hyperparameters, layer);
    needs.push(need::all(&["post_attention_norm.weight"]));
    if (layer as u64) < hyperparameters.experts.leading_dense_blocks {
        needs.push(need::feed_forward());
        return needs;
    }
    needs.extend(need::experts(hyperparameters));
    needs.push(need::all(&["exp_probs_b.bias"]));
    if hyperparameters.experts.shared > 0 {
        needs.push(need::shared_experts());
    }
    needs
}

#[cfg(test)]
mod tests {
    use super::super::testing::{Case, KIB, kv};

    #[test]
    fn glm_4_caches_all_of_the_context_in_two_heads() {
        let case = Case::new("glm4", 40, &[("embedding_length", 4096), ("attention.head_count", 32), ("attention.head_count_kv", 2)]);
        case.has_layers(&[(kv(2, 128, 128), 40)]);
        case.takes(32768, 512, 40 * 32768 * KIB, 0);
    }

    #[test]
    fn the_last_block_of_glm_4_5_is_not_loaded() {
        let numbers = [
            ("embedding_length", 4096),
            ("attention.head_count", 96),
            ("attention.head_count_kv", 8),
            ("attention.key_length", 128),
            ("attention.value_length", 128),
            ("expert_count", 128),
            ("expert_used_count", 8),
            ("expert_feed_forward_length", 1408),
            ("expert_shared_count", 1),
            ("leading_dense_block_count", 1),
            ("nextn_predict_layers", 1),
        ];
        let case = Case::new("glm4moe", 47, &numbers).with(&["blk.46.nextn.eh_proj.weight".into()]);
        case.has_layers(&[(kv(8, 128, 128), 46), (kv(0, 0, 0), 1)]);
        case.takes(4096, 512, 46 * 4096 * 4 * KIB, 0);
        assert!(case.weights_of_layer(45) > 0);
        assert_eq!(case.weights_of_layer(46), 0);
    }
}
