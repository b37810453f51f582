//! DeepSeek V2, V3 and R1, and what is built like them: multi-head latent attention (MLA).
//!
//! Newer files have the matrix that expands the latent split in two (`attn_k_b`, `attn_v_b`), so that it can be absorbed into query and output: then
//! each layer caches the latent and the rotated part of one key, `kv_lora_rank + rope_dim` elements a token, and no value. Older files have it
//! unconverted (`attn_kv_b`): there llama.cpp expands keys and values of every head and caches those, and so it is counted, 71 times as much for R1.
//! Which of the two a file is shows in its tensors.
//!
//! Source: `src/models/deepseek2.cpp` and `has_v` in `src/llama-kv-cache.cpp` of llama.cpp. Checked on the configurations of deepseek-ai/DeepSeek-R1 and
//! deepseek-ai/DeepSeek-V2-Lite; the cache of unconverted weights on what llama.cpp printed for R1 before it could absorb them: 4.88 MB a token,
//! 61 layers x 128 heads x (192 + 128) x 2.

use super::need::{self, Need};
use super::{Family, Hyperparameters, LayerCache, llama};

pub(super) const FAMILY: Family = Family {
    names: &["deepseek2"],
    required: &["attention.head_count", "attention.kv_lora_rank", "rope.dimension_count", "feed_forward_length"],
    block_tensors,
    cache,
    ..llama::FAMILY
};

fn cache(hyperparameters: &Hyperparameters, layer: usize) -> LayerCache {
    if !hyperparameters.absorbed {
        return LayerCache { kv_heads: hyperparameters.heads[layer], ..super::layer_cache::full_attention(hyperparameters, layer) };
    }
    let key_length = hyperparameters.kv_lora_rank + hyperparameters.rope_dimensions;
    LayerCache { kv_heads: 1, key_length, ..LayerCache::default() }
}

fn block_tensors(hyperparameters: &Hyperparameters, layer: usize) -> Vec<Need> {
    let mut needs = vec![
        need::all(&["attn_norm.weight", "attn_kv_a_mqa.weight", "attn_kv_a_norm.weight", "attn_output.weight", "ffn_norm.weight"]),
        need::either(&[&["attn_q_a.weight", "attn_q_a_norm.weight", "attn_q_b.weight"], &["attn_q.weight"]]),
        need::all(if hyperparameters.absorbed { &["attn_k_b.weight", "attn_v_b.weight"] } else { &["attn_kv_b.weight"] }),
    ];
    if hyperparameters.experts.count == 0 || (layer as u64) < hyperparameters.experts.leading_dense_blocks {
        needs.push(need::feed_forward());
        return needs;
    }
    needs.extend(need::experts(hyperparameters));
    if hyperparameters.experts.shared > 0 {
        needs.push(need::shared_experts());
    }
    needs
}

#[cfg(test)]
mod tests {
    use super::super::testing::{Case, KIB, kv};

    const R1: [(&str, u64); 7] = [
        ("embedding_length", 7168),
        ("attention.head_count", 128),
        ("attention.kv_lora_rank", 512),
        ("rope.dimension_count", 64),
        ("expert_count", 256),
        ("expert_used_count", 8),
        ("leading_dense_block_count", 3),
    ];

    #[test]
    fn absorbed_weights_cache_the_latent_alone() {
        let converted = [("attention.head_count_kv", 1), ("attention.key_length", 576), ("attention.value_length", 512)];
        let numbers: Vec<(&str, u64)> = R1.into_iter().chain(converted).collect();
        let case = Case::new("deepseek2", 61, &numbers);
        case.has_layers(&[(kv(1, 576, 0), 61)]);
        case.takes(32768, 512, 61 * 32768 * 1152, 0);
    }

    #[test]
    fn unconverted_weights_cache_keys_and_values_of_every_head() {
        let unconverted = [("attention.head_count_kv", 128), ("attention.key_length", 192), ("attention.value_length", 128)];
        let numbers: Vec<(&str, u64)> = R1.into_iter().chain(unconverted).collect();
        let case = Case::new("deepseek2", 61, &numbers).unconverted();
        case.has_layers(&[(kv(128, 192, 128), 61)]);
        case.takes(4096, 512, 61 * 4096 * 80 * KIB, 0);
    }
}
