//! Phi-3 and Phi-4: query, key and value in one matrix, gate and up in another.
//!
//! Where a file has a sliding window, it is every layer's, as in `modeling_phi3.py` of transformers; llama.cpp gives every layer the whole context
//! all the same, and so differs from the model beyond 2047 tokens. Most of the family have windows longer than their context.
//!
//! Source of the tensors: `src/models/phi3.cpp` of llama.cpp. Checked on the configurations of microsoft/Phi-3-mini-4k-instruct and microsoft/phi-4.

use super::layer_cache::{full_attention, sliding_attention};
use super::need::{self, Need};
use super::{Family, Hyperparameters, LayerCache, llama};

pub(super) const FAMILY: Family = Family { names: &["phi3"], block_tensors, cache, ..llama::FAMILY };

fn cache(hyperparameters: &Hyperparameters, layer: usize) -> LayerCache {
    match hyperparameters.window {
        0 => full_attention(hyperparameters, layer),
        window => sliding_attention(hyperparameters, layer, window),
    }
}

fn block_tensors(_: &Hyperparameters, _: usize) -> Vec<Need> {
    vec![
        need::all(&["attn_norm.weight", "attn_output.weight", "ffn_norm.weight", "ffn_up.weight", "ffn_down.weight"]),
        need::either(&[&["attn_qkv.weight"], &["attn_q.weight", "attn_k.weight", "attn_v.weight"]]),
    ]
}

#[cfg(test)]
mod tests {
    use super::super::testing::{Case, KIB, kv, sliding};

    #[test]
    fn every_layer_has_the_window_that_the_file_has() {
        let numbers = [("embedding_length", 3072), ("attention.head_count", 32), ("attention.sliding_window", 2047)];
        let case = Case::new("phi3", 32, &numbers);
        case.has_layers(&[(sliding(32, 96, 96, 2047), 32)]);
        // 2047 + 512 tokens take 2560 cells.
        case.takes(4096, 512, 32 * 2560 * 12 * KIB, 0);
        let without = Case::new("phi3", 32, &numbers[..2]);
        without.has_layers(&[(kv(32, 96, 96), 32)]);
        without.takes(4096, 512, 32 * 4096 * 12 * KIB, 0);
    }
}
