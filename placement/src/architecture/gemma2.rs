//! Gemma 2: every other layer has a sliding window, the first among them; a norm follows attention and the feed-forward network.
//!
//! Source: `src/models/gemma2.cpp` of llama.cpp, which takes a window of 4096 where the file says nothing. Checked on the configuration of
//! google/gemma-2-9b.

use super::layer_cache::interleaved_attention;
use super::need::{self, Need};
use super::{Family, Hyperparameters, LayerCache, llama};

const WINDOW: u64 = 4096;
const PERIOD: u64 = 2;

pub(super) const FAMILY: Family = Family { names: &["gemma2"], block_tensors, cache, ..llama::FAMILY };

fn cache(hyperparameters: &Hyperparameters, layer: usize) -> LayerCache {
    let window = if hyperparameters.window > 0 { hyperparameters.window } else { WINDOW };
    interleaved_attention(hyperparameters, layer, window, PERIOD)
}

pub(super) fn block_tensors(hyperparameters: &Hyperparameters, layer: usize) -> Vec<Need> {
    let mut needs = llama::attention(hyperparameters, layer);
    needs.extend([need::all(&["post_attention_norm.weight", "ffn_norm.weight", "post_ffw_norm.weight"]), need::feed_forward()]);
    needs
}

#[cfg(test)]
mod tests {
    use super::super::testing::{Case, KIB, kv, sliding};

    #[test]
    fn every_other_layer_looks_back_4096_tokens() {
        let numbers = [
            ("embedding_length", 3584),
            ("attention.head_count", 16),
            ("attention.head_count_kv", 8),
            ("attention.key_length", 256),
            ("attention.value_length", 256),
        ];
        let case = Case::new("gemma2", 4, &numbers);
        let (slides, full) = ((sliding(8, 256, 256, 4096), 1), (kv(8, 256, 256), 1));
        case.has_layers(&[slides, full, slides, full]);
        // 8 KiB a token: 8192 tokens in two layers, 4096 + 512 in the others.
        case.takes(8192, 512, 2 * (8192 + 4608) * 8 * KIB, 0);
        case.takes(2048, 512, 4 * 2048 * 8 * KIB, 0);
    }
}
