//! Phi-3 and Phi-4: query, key and value in one matrix, gate and up in another.
//!
//! Phi-3's configurations have a sliding window, and its files may too; llama.cpp gives every layer the whole context all the same, since its
//! files don't say which layers slide. That is the larger number, and it is the one taken here.
//!
//! Source: `src/models/phi3.cpp` of llama.cpp. Checked on the configurations of microsoft/Phi-3-mini-4k-instruct and microsoft/phi-4.

use super::need::{self, Need};
use super::{Family, Hyperparameters, llama};

pub(super) const FAMILY: Family = Family { names: &["phi3"], block_tensors, ..llama::FAMILY };

fn block_tensors(_: &Hyperparameters, _: usize) -> Vec<Need> {
    vec![
        need::all(&["attn_norm.weight", "attn_output.weight", "ffn_norm.weight", "ffn_up.weight", "ffn_down.weight"]),
        need::either(&[&["attn_qkv.weight"], &["attn_q.weight", "attn_k.weight", "attn_v.weight"]]),
    ]
}

#[cfg(test)]
mod tests {
    use super::super::testing::{Case, KIB, kv};

    #[test]
    fn every_layer_caches_all_of_the_context_whatever_window_the_file_has() {
        let numbers = [("embedding_length", 3072), ("attention.head_count", 32), ("attention.sliding_window", 2047)];
        let case = Case::new("phi3", 32, &numbers);
        case.has_layers(&[(kv(32, 96, 96), 32)]);
        case.takes(4096, 512, 32 * 4096 * 12 * KIB, 0);
    }
}
