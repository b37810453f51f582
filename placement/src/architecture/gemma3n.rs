//! Gemma 3n: four sliding layers, then one with the whole context. The last layers cache nothing and read what the last layer of their kind
//! before them cached; AltUp, LAuReL and per-layer embeddings add small tensors to each block.
//!
//! The per-layer embeddings' table stays in host memory like the token embeddings (`src/llama-arch.cpp`: `LLM_TENSOR_LAYER_INPUT`). AltUp's own
//! two matrices belong to the output layer there, and so they do here.
//!
//! Source: `src/models/gemma3n.cpp` of llama.cpp, which lets 20 layers cache whatever the file says; the file's `shared_kv_layers` says the same of
//! the two models that there are (15 of 35, 10 of 30). Checked on the configuration of google/gemma-3n-E4B-it.

use super::layer_cache::interleaved_attention;
use super::need::{self, Need};
use super::{Family, Hyperparameters, LayerCache, gemma3, llama};

const PERIOD: u64 = 5;
const CACHING_LAYERS: usize = 20;

pub(super) const FAMILY: Family = Family {
    names: &["gemma3n"],
    required: &["attention.head_count", "feed_forward_length", "attention.sliding_window"],
    block_tensors,
    cache,
    ..llama::FAMILY
};

fn cache(hyperparameters: &Hyperparameters, layer: usize) -> LayerCache {
    let caching = match hyperparameters.shared_kv_layers {
        Some(shared) => (hyperparameters.block_count as usize).saturating_sub(shared as usize),
        None => CACHING_LAYERS,
    };
    if layer >= caching {
        return LayerCache::default();
    }
    interleaved_attention(hyperparameters, layer, hyperparameters.window, PERIOD)
}

fn block_tensors(hyperparameters: &Hyperparameters, layer: usize) -> Vec<Need> {
    let mut needs = gemma3::block_tensors(hyperparameters, layer);
    needs.extend([
        need::all(&["inp_gate.weight", "proj.weight", "post_norm.weight"]),
        need::all(&["altup_correct_coef.weight", "altup_correct_scale.weight", "altup_predict_coef.weight"]),
        need::all(&["altup_router.weight", "altup_router_norm.weight"]),
        need::all(&["laurel_l.weight", "laurel_r.weight", "laurel_post_norm.weight"]),
    ]);
    needs
}

#[cfg(test)]
mod tests {
    use super::super::testing::{Case, KIB, kv, sliding};

    #[test]
    fn the_last_layers_cache_nothing() {
        let numbers = [
            ("embedding_length", 2048),
            ("attention.head_count", 8),
            ("attention.head_count_kv", 2),
            ("attention.key_length", 256),
            ("attention.value_length", 256),
            ("attention.sliding_window", 512),
        ];
        let (slides, full) = ((sliding(2, 256, 256, 512), 4), (kv(2, 256, 256), 1));
        let layers = [slides, full, slides, full, slides, full, slides, full, (kv(0, 0, 0), 15)];
        let unsaid = Case::new("gemma3n", 35, &numbers);
        unsaid.has_layers(&layers);
        // 2 KiB a token: 4 layers of 32768, 16 of 512 + 512.
        unsaid.takes(32768, 512, (4 * 32768 + 16 * 1024) * 2 * KIB, 0);
        let said: Vec<(&str, u64)> = numbers.into_iter().chain([("attention.shared_kv_layers", 15)]).collect();
        Case::new("gemma3n", 35, &said).has_layers(&layers);
    }
}
