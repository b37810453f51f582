//! Cohere's Command R, and Command R7B and Command A (`cohere2`): attention and feed-forward network side by side behind one norm, the output tied to
//! the token embeddings. `cohere2` has three sliding layers, then one with the whole context.
//!
//! Command R+ has a norm on each head's query and key, which llama.cpp expects of models of 64 layers and more.
//!
//! Source: `src/models/command-r.cpp` and `cohere2.cpp` of llama.cpp. Checked on the configurations of CohereForAI/c4ai-command-r-v01 and
//! CohereForAI/c4ai-command-r7b-12-2024.

use super::layer_cache::interleaved_attention;
use super::need::{self, Need};
use super::{Family, Hyperparameters, LayerCache, llama};

const PERIOD: u64 = 4;
const LAYERS_WITH_NORMS: usize = 64;

pub(super) const COMMAND_R: Family = Family { names: &["command-r"], block_tensors, ..llama::FAMILY };

pub(super) const COHERE2: Family = Family {
    names: &["cohere2"],
    required: &["attention.head_count", "feed_forward_length", "attention.sliding_window"],
    block_tensors: plain,
    cache: sliding,
    ..llama::FAMILY
};

fn sliding(hyperparameters: &Hyperparameters, layer: usize) -> LayerCache {
    interleaved_attention(hyperparameters, layer, hyperparameters.window, PERIOD)
}

fn block_tensors(hyperparameters: &Hyperparameters, layer: usize) -> Vec<Need> {
    let mut needs = plain(hyperparameters, layer);
    if hyperparameters.loaded_blocks() >= LAYERS_WITH_NORMS {
        needs.push(need::query_key_norms());
    }
    needs
}

fn plain(hyperparameters: &Hyperparameters, layer: usize) -> Vec<Need> {
    let mut needs = llama::attention(hyperparameters, layer);
    needs.push(need::feed_forward());
    needs
}

#[cfg(test)]
mod tests {
    use super::super::testing::{Case, KIB, kv, sliding};

    #[test]
    fn command_r_has_keys_and_values_for_every_head() {
        let numbers = [("embedding_length", 8192), ("attention.head_count", 64), ("attention.head_count_kv", 64)];
        let case = Case::new("command-r", 40, &numbers);
        case.has_layers(&[(kv(64, 128, 128), 40)]);
        case.takes(4096, 512, 40 * 4096 * 32 * KIB, 0);
        assert!(Case::new("command-r", 64, &numbers).without("attn_q_norm.weight").error().contains("attn_q_norm"));
    }

    #[test]
    fn three_layers_of_four_slide_in_cohere2() {
        let numbers =
            [("embedding_length", 4096), ("attention.head_count", 32), ("attention.head_count_kv", 8), ("attention.sliding_window", 4096)];
        let case = Case::new("cohere2", 8, &numbers);
        let (slides, full) = ((sliding(8, 128, 128, 4096), 3), (kv(8, 128, 128), 1));
        case.has_layers(&[slides, full, slides, full]);
        case.takes(131_072, 512, (2 * 131_072 + 6 * 4608) * 4 * KIB, 0);
    }
}
