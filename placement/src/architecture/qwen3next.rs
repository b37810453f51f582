//! Qwen3-Next, Qwen3.5 and Qwen3.6: full attention in every fourth layer, a recurrent one (gated delta net) in the others. Qwen3.5's dense and
//! expert models are alike in what they keep.
//!
//! Blocks for predicting further tokens come last and are not loaded (`nextn_predict_layers`).
//!
//! Source: `src/models/qwen3next.cpp`, `qwen35.cpp` and `qwen35moe.cpp` of llama.cpp. Checked on the configuration of Qwen/Qwen3-Next-80B-A3B-Instruct,
//! and on what llama.cpp prints for Qwen3.6-35B-A3B and Qwen3.6-27B (ggml-org/llama.cpp pull request 23792).

use super::layer_cache::{attention_every_so_many_layers, is_recurrent};
use super::need::{self, Need};
use super::{Family, Hyperparameters, llama};

pub(super) const QWEN3_NEXT: Family = Family {
    names: &["qwen3next"],
    required: &["attention.head_count", "ssm.conv_kernel", "ssm.inner_size", "ssm.state_size", "ssm.group_count", "expert_count"],
    block_tensors: next_experts,
    cache: attention_every_so_many_layers,
    ..llama::FAMILY
};

pub(super) const QWEN35: Family = Family {
    names: &["qwen35"],
    required: &["attention.head_count", "ssm.conv_kernel", "ssm.inner_size", "ssm.state_size", "ssm.group_count"],
    block_tensors: dense,
    ..QWEN3_NEXT
};

pub(super) const QWEN35_EXPERTS: Family = Family { names: &["qwen35moe"], block_tensors: experts, ..QWEN3_NEXT };

fn next_experts(hyperparameters: &Hyperparameters, layer: usize) -> Vec<Need> {
    with_experts(mixer(hyperparameters, layer, need::all(&["ssm_ba.weight"])), hyperparameters)
}

fn experts(hyperparameters: &Hyperparameters, layer: usize) -> Vec<Need> {
    with_experts(mixer(hyperparameters, layer, beta_alpha()), hyperparameters)
}

fn dense(hyperparameters: &Hyperparameters, layer: usize) -> Vec<Need> {
    let mut needs = mixer(hyperparameters, layer, beta_alpha());
    needs.push(need::feed_forward());
    needs
}

fn with_experts(mut needs: Vec<Need>, hyperparameters: &Hyperparameters) -> Vec<Need> {
    needs.extend(need::experts(hyperparameters));
    needs.extend([need::all(&["ffn_gate_inp_shexp.weight"]), need::shared_experts()]);
    needs
}

/// Attention or the recurrence, with the norms around it.
fn mixer(hyperparameters: &Hyperparameters, layer: usize, gates: Need) -> Vec<Need> {
    let norms = need::all(&["attn_norm.weight", "post_attention_norm.weight"]);
    if !is_recurrent(hyperparameters, layer) {
        return vec![norms, need::query_key_value(), need::query_key_norms(), need::all(&["attn_output.weight"])];
    }
    let state = need::all(&["ssm_conv1d.weight", "ssm_dt.bias", "ssm_a", "ssm_norm.weight", "ssm_out.weight"]);
    vec![norms, projections(), gates, state]
}

/// Qwen3-Next's first files have query, key, value and gate in one.
fn projections() -> Need {
    need::either(&[&["attn_qkv.weight", "attn_gate.weight"], &["ssm_in.weight"]])
}

fn beta_alpha() -> Need {
    need::all(&["ssm_beta.weight", "ssm_alpha.weight"])
}

#[cfg(test)]
mod tests {
    use super::super::testing::{Case, KIB, kv, state};

    const QWEN36_35B_A3B: [(&str, u64); 12] = [
        ("embedding_length", 2048),
        ("attention.head_count", 16),
        ("attention.head_count_kv", 2),
        ("attention.key_length", 256),
        ("attention.value_length", 256),
        ("ssm.conv_kernel", 4),
        ("ssm.inner_size", 4096),
        ("ssm.state_size", 128),
        ("ssm.group_count", 16),
        ("full_attention_interval", 4),
        ("expert_count", 256),
        ("expert_used_count", 8),
    ];
    /// `3 x (4096 + 2 x 16 x 128) x 4` and `4096 x 128 x 4`.
    const STATE: u64 = 98_304 + 2_097_152;

    #[test]
    fn three_layers_of_four_are_recurrent() {
        for name in ["qwen3next", "qwen35", "qwen35moe"] {
            let case = Case::new(name, 8, &QWEN36_35B_A3B);
            case.has_layers(&[(state(STATE), 3), (kv(2, 256, 256), 1), (state(STATE), 3), (kv(2, 256, 256), 1)]);
            case.takes(4096, 512, 2 * 4096 * 2 * KIB, 6 * STATE);
        }
    }

    #[test]
    fn the_file_may_say_which_layers_are_recurrent() {
        let case = Case::new("qwen35moe", 4, &QWEN36_35B_A3B).flags("attention.recurrent_layers", &[true, false, true, true]);
        case.has_layers(&[(state(STATE), 1), (kv(2, 256, 256), 1), (state(STATE), 2)]);
    }

    #[test]
    fn blocks_that_predict_further_tokens_are_empty() {
        let numbers: Vec<(&str, u64)> = QWEN36_35B_A3B.into_iter().chain([("nextn_predict_layers", 1)]).collect();
        let case = Case::new("qwen35moe", 5, &numbers);
        case.has_layers(&[(state(STATE), 3), (kv(2, 256, 256), 1), (kv(0, 0, 0), 1)]);
        assert_eq!(case.weights_of_layer(4), 0);
    }
}
