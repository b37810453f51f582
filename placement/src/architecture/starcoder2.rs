//! StarCoder 2: a plain feed-forward network, and biases everywhere.
//!
//! Its configuration has a sliding window of 4096, which neither its files nor llama.cpp have: every layer has the whole context.
//!
//! Source: `src/models/starcoder2.cpp` of llama.cpp. Checked on the configuration of bigcode/starcoder2-7b.

use super::need::{self, Need};
use super::{Family, Hyperparameters, llama};

pub(super) const FAMILY: Family = Family { names: &["starcoder2"], block_tensors, ..llama::FAMILY };

fn block_tensors(hyperparameters: &Hyperparameters, layer: usize) -> Vec<Need> {
    let mut needs = llama::attention(hyperparameters, layer);
    needs.extend([
        need::query_key_value_bias(),
        need::all(&["attn_norm.bias", "attn_output.bias", "ffn_norm.weight", "ffn_norm.bias"]),
        need::all(&["ffn_up.weight", "ffn_up.bias", "ffn_down.weight", "ffn_down.bias"]),
    ]);
    needs
}

#[cfg(test)]
mod tests {
    use super::super::testing::{Case, KIB, kv};

    #[test]
    fn every_layer_caches_all_of_the_context() {
        let numbers = [("embedding_length", 4608), ("attention.head_count", 36), ("attention.head_count_kv", 4)];
        let case = Case::new("starcoder2", 32, &numbers);
        case.has_layers(&[(kv(4, 128, 128), 32)]);
        case.takes(16384, 512, 32 * 16384 * 2 * KIB, 0);
        assert!(case.without("ffn_up.bias").error().contains("blk.0.ffn_up.bias"));
    }
}
