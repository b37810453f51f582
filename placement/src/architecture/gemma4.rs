//! Gemma 4: the file says which layers slide. Sliding layers have heads of their own length and number (`*_swa`, `head_count_kv` an array), and the
//! last `shared_kv_layers` cache nothing and read what the last layer of their kind before them cached.
//!
//! Layers with the whole context may have no matrix for values, which then are their keys; llama.cpp caches both all the same, and so it is
//! counted. The per-layer embeddings' table stays in host memory.
//!
//! Source: `src/models/gemma4.cpp` of llama.cpp. Checked on the configurations of google/gemma-4-E4B-it and google/gemma-4-31B-it.

use super::layer_cache::interleaved_attention;
use super::need::{self, Need};
use super::{Family, Hyperparameters, LayerCache, llama};

pub(super) const FAMILY: Family = Family {
    names: &["gemma4"],
    required: &[
        "attention.head_count",
        "attention.sliding_window",
        "attention.sliding_window_pattern",
        "attention.key_length_swa",
        "attention.value_length_swa",
    ],
    block_tensors,
    cache,
    ..llama::FAMILY
};

fn caches(hyperparameters: &Hyperparameters, layer: usize) -> bool {
    let shared = hyperparameters.shared_kv_layers.unwrap_or(0) as usize;
    layer < (hyperparameters.block_count as usize).saturating_sub(shared)
}

fn cache(hyperparameters: &Hyperparameters, layer: usize) -> LayerCache {
    if !caches(hyperparameters, layer) {
        return LayerCache::default();
    }
    // The file has an array, so no period is ever taken.
    interleaved_attention(hyperparameters, layer, hyperparameters.window, 1)
}

fn block_tensors(hyperparameters: &Hyperparameters, layer: usize) -> Vec<Need> {
    let mut needs = vec![
        need::all(&["attn_norm.weight", "attn_q_norm.weight", "attn_output.weight", "post_attention_norm.weight"]),
        need::all(&["ffn_norm.weight", "post_ffw_norm.weight"]),
        need::feed_forward(),
    ];
    if caches(hyperparameters, layer) {
        needs.push(need::either(&[&["attn_q.weight", "attn_k.weight", "attn_k_norm.weight"], &["attn_qkv.weight", "attn_k_norm.weight"]]));
    } else {
        needs.push(need::either(&[&["attn_q.weight"], &["attn_qkv.weight"]]));
    }
    if hyperparameters.experts.count > 0 {
        needs.extend(need::experts(hyperparameters));
    }
    needs
}

#[cfg(test)]
mod tests {
    use super::super::testing::{Case, KIB, kv, sliding};

    #[test]
    fn sliding_layers_have_heads_of_their_own_and_the_last_share() {
        let numbers = [
            ("embedding_length", 2560),
            ("attention.head_count", 8),
            ("attention.head_count_kv", 2),
            ("attention.key_length", 512),
            ("attention.value_length", 512),
            ("attention.key_length_swa", 256),
            ("attention.value_length_swa", 256),
            ("attention.sliding_window", 512),
            ("attention.shared_kv_layers", 18),
        ];
        let pattern: Vec<bool> = (0..42).map(|layer| layer % 6 != 5).collect();
        let case = Case::new("gemma4", 42, &numbers).flags("attention.sliding_window_pattern", &pattern);
        let (slides, full) = ((sliding(2, 256, 256, 512), 5), (kv(2, 512, 512), 1));
        case.has_layers(&[slides, full, slides, full, slides, full, slides, full, (kv(0, 0, 0), 18)]);
        // 4 KiB a token in 4 layers of 131072, 2 KiB in 20 of 512 + 512.
        case.takes(131_072, 512, 4 * 131_072 * 4 * KIB + 20 * 1024 * 2 * KIB, 0);
    }

    #[test]
    fn layers_may_differ_in_their_number_of_kv_heads() {
        let numbers = [
            ("embedding_length", 5376),
            ("attention.head_count", 32),
            ("attention.key_length", 512),
            ("attention.value_length", 512),
            ("attention.key_length_swa", 256),
            ("attention.value_length_swa", 256),
            ("attention.sliding_window", 1024),
        ];
        let pattern: Vec<bool> = (0..6).map(|layer| layer != 5).collect();
        let case = Case::new("gemma4", 6, &numbers)
            .flags("attention.sliding_window_pattern", &pattern)
            .array("attention.head_count_kv", &[16, 16, 16, 16, 16, 4]);
        case.has_layers(&[(sliding(16, 256, 256, 1024), 5), (kv(4, 512, 512), 1)]);
    }

    #[test]
    fn a_pattern_that_does_not_have_one_entry_a_layer_is_refused() {
        let numbers = [("embedding_length", 2560), ("attention.head_count", 8), ("attention.sliding_window", 512)];
        let case = Case::new("gemma4", 4, &numbers).flags("attention.sliding_window_pattern", &[true; 3]);
        assert!(case.error().contains("has 3 values; expected a yes or no for each of 4 layers"));
    }

    #[test]
    fn a_file_that_does_not_say_which_layers_slide_is_refused() {
        let numbers = [("embedding_length", 2560), ("attention.head_count", 8), ("attention.sliding_window", 512)];
        assert!(Case::new("gemma4", 4, &numbers).error().contains("gemma4.attention.sliding_window_pattern"));
    }
}
