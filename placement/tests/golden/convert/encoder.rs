//! BERT and Nomic's BERT.

use super::parts::{Attention, gated, query_key_value, query_key_value_bias};
use crate::config::Config;
use crate::model::Model;

pub fn bert(config: &Config) -> Model {
    let mut model = encoder(config, "bert", config.number("max_position_embeddings"));
    let attention = Attention::of(config);
    let (embedding, width) = (attention.embedding, config.number("intermediate_size"));
    model.tensor("position_embd.weight", &[embedding, config.number("max_position_embeddings")]);
    for layer in 0..config.number("num_hidden_layers") {
        norms(&mut model, layer, embedding);
        model.vectors(layer, embedding, &["attn_output.bias", "ffn_down.bias"]);
        query_key_value(&mut model, layer, &attention);
        query_key_value_bias(&mut model, layer, &attention);
        let network: [(&str, &[u64]); 3] =
            [("ffn_up.weight", &[embedding, width]), ("ffn_up.bias", &[width]), ("ffn_down.weight", &[width, embedding])];
        model.block(layer, &network);
    }
    model
}

pub fn nomic_bert(config: &Config) -> Model {
    let mut model = encoder(config, "nomic-bert", config.number("max_trained_positions"));
    let embedding = config.number("hidden_size");
    for layer in 0..config.number("num_hidden_layers") {
        norms(&mut model, layer, embedding);
        let attention: [(&str, &[u64]); 2] =
            [("attn_qkv.weight", &[embedding, 3 * embedding]), ("attn_output.weight", &[embedding, embedding])];
        model.block(layer, &attention);
        gated(&mut model, layer, embedding, config.number("intermediate_size"));
    }
    model
}

fn encoder(config: &Config, architecture: &'static str, context: u64) -> Model {
    let mut model = Model::new(architecture);
    let embedding = config.number("hidden_size");
    model.number("block_count", config.number("num_hidden_layers"));
    model.number("context_length", context);
    model.number("embedding_length", embedding);
    model.number("feed_forward_length", config.number("intermediate_size"));
    model.number("attention.head_count", config.number("num_attention_heads"));
    model.tensor("token_embd.weight", &[embedding, config.number("vocab_size")]);
    model.tensor("token_types.weight", &[embedding, config.number("type_vocab_size")]);
    model.tensor("token_embd_norm.weight", &[embedding]);
    model.tensor("token_embd_norm.bias", &[embedding]);
    model
}

fn norms(model: &mut Model, layer: u64, embedding: u64) {
    model.vectors(layer, embedding, &["attn_output_norm.weight", "attn_output_norm.bias"]);
    model.vectors(layer, embedding, &["layer_output_norm.weight", "layer_output_norm.bias"]);
}
