//! Falcon-H1: attention and Mamba 2 side by side in every layer, so each has keys and values and a recurrent state.
//!
//! Source: `src/models/falcon-h1.cpp` of llama.cpp, whose memory holds both for all layers. Checked on the configuration of
//! tiiuae/Falcon-H1-7B-Instruct.

use super::layer_cache::{full_attention, recurrent_state};
use super::need::{self, Need};
use super::{Family, Hyperparameters, LayerCache, llama};

pub(super) const FAMILY: Family = Family {
    names: &["falcon-h1"],
    required: &["attention.head_count", "ssm.conv_kernel", "ssm.inner_size", "ssm.state_size", "ssm.group_count"],
    block_tensors,
    cache,
    ..llama::FAMILY
};

fn cache(hyperparameters: &Hyperparameters, layer: usize) -> LayerCache {
    LayerCache { state: recurrent_state(hyperparameters), ..full_attention(hyperparameters, layer) }
}

fn block_tensors(hyperparameters: &Hyperparameters, layer: usize) -> Vec<Need> {
    let mut needs = llama::attention(hyperparameters, layer);
    needs.extend([
        need::all(&["ssm_in.weight", "ssm_conv1d.weight", "ssm_dt.bias", "ssm_a", "ssm_d", "ssm_out.weight"]),
        // The norm's name ends in `.weight` in some files and not in others.
        need::either(&[&["ffn_norm.weight"], &["ffn_norm"]]),
        need::feed_forward(),
    ]);
    needs
}

#[cfg(test)]
mod tests {
    use super::super::testing::{Case, KIB, kv, with_state};

    #[test]
    fn every_layer_has_keys_and_values_and_a_state() {
        let numbers = [
            ("embedding_length", 3072),
            ("attention.head_count", 12),
            ("attention.head_count_kv", 2),
            ("attention.key_length", 128),
            ("attention.value_length", 128),
            ("ssm.conv_kernel", 4),
            ("ssm.inner_size", 3072),
            ("ssm.state_size", 256),
            ("ssm.group_count", 1),
        ];
        // `3 x (3072 + 2 x 256) x 4` and `3072 x 256 x 4`.
        let state = 43_008 + 3_145_728;
        let case = Case::new("falcon-h1", 44, &numbers);
        case.has_layers(&[(with_state(kv(2, 128, 128), state), 44)]);
        case.takes(8192, 512, 44 * 8192 * KIB, 44 * state);
    }
}
