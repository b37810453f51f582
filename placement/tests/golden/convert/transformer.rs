//! Transformers with one feed-forward network in each block.

use super::parts::{Attention, gated, query_key_value, query_key_value_bias, transformer};
use crate::config::Config;
use crate::model::Model;

pub fn llama(config: &Config, architecture: &'static str) -> Model {
    pre_norm(config, architecture, |_, _, _| {})
}

pub fn qwen2(config: &Config) -> Model {
    pre_norm(config, "qwen2", query_key_value_bias)
}

pub fn qwen3(config: &Config) -> Model {
    pre_norm(config, "qwen3", |model, layer, attention| {
        model.vectors(layer, attention.length, &["attn_q_norm.weight", "attn_k_norm.weight"]);
    })
}

/// Norms before attention and before a gated network, and what else a block has.
fn pre_norm(config: &Config, architecture: &'static str, more: impl Fn(&mut Model, u64, &Attention)) -> Model {
    let (mut model, attention) = (transformer(config, architecture), Attention::of(config));
    for layer in 0..config.number("num_hidden_layers") {
        model.vectors(layer, attention.embedding, &["attn_norm.weight", "ffn_norm.weight"]);
        query_key_value(&mut model, layer, &attention);
        gated(&mut model, layer, attention.embedding, config.number("intermediate_size"));
        more(&mut model, layer, &attention);
    }
    model
}

pub fn phi3(config: &Config) -> Model {
    let (mut model, attention) = (transformer(config, "phi3"), Attention::of(config));
    let (embedding, width) = (attention.embedding, config.number("intermediate_size"));
    if let Some(window) = config.optional("sliding_window") {
        model.number("attention.sliding_window", window);
    }
    for layer in 0..config.number("num_hidden_layers") {
        model.vectors(layer, embedding, &["attn_norm.weight", "ffn_norm.weight"]);
        model.block(
            layer,
            &[
                ("attn_qkv.weight", &[embedding, attention.query() + 2 * attention.key()]),
                ("attn_output.weight", &[attention.query(), embedding]),
                ("ffn_up.weight", &[embedding, 2 * width]),
                ("ffn_down.weight", &[width, embedding]),
            ],
        );
    }
    model
}

pub fn cohere(config: &Config, architecture: &'static str) -> Model {
    let (mut model, attention) = (transformer(config, architecture), Attention::of(config));
    if architecture == "cohere2" {
        model.number("attention.sliding_window", config.number("sliding_window"));
    }
    for layer in 0..config.number("num_hidden_layers") {
        model.vectors(layer, attention.embedding, &["attn_norm.weight"]);
        query_key_value(&mut model, layer, &attention);
        gated(&mut model, layer, attention.embedding, config.number("intermediate_size"));
    }
    model
}

pub fn glm4(config: &Config) -> Model {
    let (mut model, attention) = (transformer(config, "glm4"), Attention::of(config));
    let (embedding, width) = (attention.embedding, config.number("intermediate_size"));
    for layer in 0..config.number("num_hidden_layers") {
        let norms = ["attn_norm.weight", "post_attention_norm.weight", "ffn_norm.weight", "post_ffw_norm.weight"];
        model.vectors(layer, embedding, &norms);
        query_key_value(&mut model, layer, &attention);
        if config.flag("attention_bias") {
            query_key_value_bias(&mut model, layer, &attention);
        }
        model.block(layer, &[("ffn_up.weight", &[embedding, 2 * width]), ("ffn_down.weight", &[width, embedding])]);
    }
    model
}

pub fn olmo2(config: &Config) -> Model {
    let (mut model, attention) = (transformer(config, "olmo2"), Attention::of(config));
    for layer in 0..config.number("num_hidden_layers") {
        model.vectors(layer, attention.embedding, &["post_attention_norm.weight", "post_ffw_norm.weight"]);
        model.block(layer, &[("attn_q_norm.weight", &[attention.query()]), ("attn_k_norm.weight", &[attention.key()])]);
        query_key_value(&mut model, layer, &attention);
        gated(&mut model, layer, attention.embedding, config.number("intermediate_size"));
    }
    model
}

pub fn starcoder2(config: &Config) -> Model {
    let (mut model, attention) = (transformer(config, "starcoder2"), Attention::of(config));
    let (embedding, width) = (attention.embedding, config.number("intermediate_size"));
    model.tensor("output_norm.bias", &[embedding]);
    for layer in 0..config.number("num_hidden_layers") {
        model.vectors(layer, embedding, &["attn_norm.weight", "attn_norm.bias", "ffn_norm.weight", "ffn_norm.bias"]);
        model.vectors(layer, embedding, &["attn_output.bias", "ffn_down.bias"]);
        query_key_value(&mut model, layer, &attention);
        query_key_value_bias(&mut model, layer, &attention);
        let up_down: [(&str, &[u64]); 3] =
            [("ffn_up.weight", &[embedding, width]), ("ffn_up.bias", &[width]), ("ffn_down.weight", &[width, embedding])];
        model.block(layer, &up_down);
    }
    model
}
