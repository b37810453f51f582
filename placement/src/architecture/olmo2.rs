//! OLMo 2 and 3: norms behind attention and behind the feed-forward network instead of before them, and over all of query and of key. OLMo 3 calls
//! itself `olmo2` too and has a window: three sliding layers, then one with the whole context.
//!
//! Source: `src/models/olmo2.cpp` of llama.cpp. Checked on the configurations of allenai/OLMo-2-1124-7B and allenai/Olmo-3-7B-Instruct.

use super::layer_cache::interleaved_attention;
use super::need::{self, Need};
use super::{Family, Hyperparameters, LayerCache, llama};

const PERIOD: u64 = 4;

pub(super) const FAMILY: Family = Family { names: &["olmo2"], block_tensors, cache, ..llama::FAMILY };

fn cache(hyperparameters: &Hyperparameters, layer: usize) -> LayerCache {
    interleaved_attention(hyperparameters, layer, hyperparameters.window, PERIOD)
}

fn block_tensors(_: &Hyperparameters, _: usize) -> Vec<Need> {
    vec![
        need::query_key_value(),
        need::query_key_norms(),
        need::all(&["attn_output.weight", "post_attention_norm.weight", "post_ffw_norm.weight"]),
        need::feed_forward(),
    ]
}

#[cfg(test)]
mod tests {
    use super::super::testing::{Case, KIB, kv, sliding};

    const NUMBERS: [(&str, u64); 2] = [("embedding_length", 4096), ("attention.head_count", 32)];

    #[test]
    fn olmo_2_caches_all_of_the_context() {
        let case = Case::new("olmo2", 32, &NUMBERS);
        case.has_layers(&[(kv(32, 128, 128), 32)]);
        case.takes(4096, 512, 32 * 4096 * 16 * KIB, 0);
    }

    #[test]
    fn with_a_window_three_layers_of_four_slide() {
        let numbers: Vec<(&str, u64)> = NUMBERS.into_iter().chain([("attention.sliding_window", 4096)]).collect();
        let (slides, full) = ((sliding(32, 128, 128, 4096), 3), (kv(32, 128, 128), 1));
        Case::new("olmo2", 8, &numbers).has_layers(&[slides, full, slides, full]);
    }
}
