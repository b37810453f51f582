//! gpt-oss: every other layer has a sliding window, the first among them; experts with biases, and a learned sink for each head.
//!
//! Source: `src/models/openai-moe.cpp` of llama.cpp. Checked on the configuration of openai/gpt-oss-20b, and on what llama.cpp prints for it.

use super::layer_cache::interleaved_attention;
use super::need::{self, Need};
use super::{Family, Hyperparameters, LayerCache, llama};

const PERIOD: u64 = 2;

pub(super) const FAMILY: Family = Family {
    names: &["gpt-oss"],
    required: &["attention.head_count", "attention.sliding_window", "expert_count", "expert_feed_forward_length"],
    block_tensors,
    cache,
    ..llama::FAMILY
};

fn cache(hyperparameters: &Hyperparameters, layer: usize) -> LayerCache {
    interleaved_attention(hyperparameters, layer, hyperparameters.window, PERIOD)
}

fn block_tensors(hyperparameters: &Hyperparameters, layer: usize) -> Vec<Need> {
    let mut needs = llama::attention(hyperparameters, layer);
    needs.extend([
        need::query_key_value_bias(),
        need::all(&["attn_output.bias", "attn_sinks.weight", "post_attention_norm.weight", "ffn_gate_inp.bias"]),
        need::all(&["ffn_gate_exps.bias", "ffn_up_exps.bias", "ffn_down_exps.bias"]),
    ]);
    needs.extend(need::experts(hyperparameters));
    needs
}

#[cfg(test)]
mod tests {
    use super::super::testing::{Case, KIB, kv, sliding};

    #[test]
    fn every_other_layer_looks_back_128_tokens() {
        let numbers = [
            ("embedding_length", 2880),
            ("attention.head_count", 64),
            ("attention.head_count_kv", 8),
            ("attention.key_length", 64),
            ("attention.value_length", 64),
            ("attention.sliding_window", 128),
            ("expert_count", 32),
            ("expert_used_count", 4),
            ("expert_feed_forward_length", 2880),
        ];
        let case = Case::new("gpt-oss", 4, &numbers);
        let (slides, full) = ((sliding(8, 64, 64, 128), 1), (kv(8, 64, 64), 1));
        case.has_layers(&[slides, full, slides, full]);
        // 128 + 512 tokens take 768 cells.
        case.takes(131_072, 512, (2 * 131_072 + 2 * 768) * 2 * KIB, 0);
        case.takes(131_072, 128, (2 * 131_072 + 2 * 256) * 2 * KIB, 0);
    }
}
