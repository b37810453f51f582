//! BERT and Nomic's BERT: they read a text at once, both ways, and keep nothing of it. Their answer is the last block's hidden states, so that
//! nothing follows the blocks; embeddings of positions and of token types belong to the input.
//!
//! Source: `src/models/bert.cpp` and `nomic-bert.cpp` of llama.cpp, which makes no memory for them (`llama_model::create_memory`). Checked on the
//! configurations of BAAI/bge-large-en-v1.5 and nomic-ai/nomic-embed-text-v1.5.

use super::need::{self, Need};
use super::{Family, Hyperparameters, OutputLayer, layer_cache};

pub(super) const BERT: Family = Family {
    names: &["bert"],
    required: &["attention.head_count", "feed_forward_length"],
    block_tensors: bert,
    cache: layer_cache::none,
    output: OutputLayer::None,
};

pub(super) const NOMIC_BERT: Family = Family { names: &["nomic-bert"], block_tensors: nomic_bert, ..BERT };

fn bert(_: &Hyperparameters, _: usize) -> Vec<Need> {
    vec![need::query_key_value(), norms(), need::all(&["attn_output.weight", "ffn_up.weight", "ffn_down.weight"])]
}

fn nomic_bert(_: &Hyperparameters, _: usize) -> Vec<Need> {
    let fused = need::either(&[&["attn_qkv.weight"], &["attn_q.weight", "attn_k.weight", "attn_v.weight"]]);
    vec![fused, norms(), need::all(&["attn_output.weight"]), need::feed_forward()]
}

fn norms() -> Need {
    need::all(&["attn_output_norm.weight", "attn_output_norm.bias", "layer_output_norm.weight", "layer_output_norm.bias"])
}

#[cfg(test)]
mod tests {
    use super::super::testing::{Case, kv};

    #[test]
    fn nothing_is_cached_and_nothing_follows_the_blocks() {
        for name in ["bert", "nomic-bert"] {
            let case = Case::new(name, 12, &[("embedding_length", 768), ("attention.head_count", 12)]);
            case.has_layers(&[(kv(0, 0, 0), 12)]);
            case.takes(512, 512, 0, 0);
            assert_eq!(case.weights_of_layer(12), 0);
        }
    }
}
