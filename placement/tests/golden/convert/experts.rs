//! Transformers whose blocks have experts.

use super::parts::{
    Attention, expert_numbers, experts, gated, prediction, query_key_value, query_key_value_bias, shared_expert, transformer,
};
use crate::config::Config;
use crate::model::Model;

pub fn mixtral(config: &Config, architecture: &'static str) -> Model {
    let (mut model, attention) = (transformer(config, architecture), Attention::of(config));
    let count = config.number("num_local_experts");
    expert_numbers(&mut model, count, config);
    for layer in 0..config.number("num_hidden_layers") {
        model.vectors(layer, attention.embedding, &["attn_norm.weight", "ffn_norm.weight"]);
        query_key_value(&mut model, layer, &attention);
        experts(&mut model, layer, attention.embedding, config.number("intermediate_size"), count);
    }
    model
}

pub fn qwen2_moe(config: &Config) -> Model {
    let (mut model, attention) = (transformer(config, "qwen2moe"), Attention::of(config));
    let (count, width) = (config.number("num_experts"), config.number("moe_intermediate_size"));
    let shared = config.number("shared_expert_intermediate_size");
    expert_numbers(&mut model, count, config);
    model.number("expert_feed_forward_length", width);
    model.number("expert_shared_feed_forward_length", shared);
    for layer in 0..config.number("num_hidden_layers") {
        model.vectors(layer, attention.embedding, &["attn_norm.weight", "ffn_norm.weight", "ffn_gate_inp_shexp.weight"]);
        query_key_value(&mut model, layer, &attention);
        query_key_value_bias(&mut model, layer, &attention);
        experts(&mut model, layer, attention.embedding, width, count);
        shared_expert(&mut model, layer, attention.embedding, shared);
    }
    model
}

pub fn qwen3_moe(config: &Config) -> Model {
    let (mut model, attention) = (transformer(config, "qwen3moe"), Attention::of(config));
    let (count, width) = (config.number("num_experts"), config.number("moe_intermediate_size"));
    expert_numbers(&mut model, count, config);
    model.number("expert_feed_forward_length", width);
    for layer in 0..config.number("num_hidden_layers") {
        model.vectors(layer, attention.embedding, &["attn_norm.weight", "ffn_norm.weight"]);
        model.vectors(layer, attention.length, &["attn_q_norm.weight", "attn_k_norm.weight"]);
        query_key_value(&mut model, layer, &attention);
        experts(&mut model, layer, attention.embedding, width, count);
    }
    model
}

pub fn glm4_moe(config: &Config) -> Model {
    let (mut model, attention) = (transformer(config, "glm4moe"), Attention::of(config));
    let (layers, predicting) = (config.number("num_hidden_layers"), config.number("num_nextn_predict_layers"));
    let count = config.number("n_routed_experts");
    model.set("block_count", layers + predicting);
    model.number("nextn_predict_layers", predicting);
    model.number("leading_dense_block_count", config.number("first_k_dense_replace"));
    expert_numbers(&mut model, count, config);
    model.number("expert_feed_forward_length", config.number("moe_intermediate_size"));
    model.number("expert_shared_count", config.number("n_shared_experts"));
    for layer in 0..layers + predicting {
        model.vectors(layer, attention.embedding, &["attn_norm.weight", "post_attention_norm.weight"]);
        query_key_value(&mut model, layer, &attention);
        if config.flag("attention_bias") {
            query_key_value_bias(&mut model, layer, &attention);
        }
        glm4_network(&mut model, layer, config);
    }
    for layer in layers..layers + predicting {
        prediction(&mut model, layer, attention.embedding);
        let table = [attention.embedding, config.number("vocab_size")];
        model.block(layer, &[("nextn.embed_tokens.weight", &table), ("nextn.shared_head_head.weight", &table)]);
    }
    model
}

fn glm4_network(model: &mut Model, layer: u64, config: &Config) {
    let (embedding, count) = (config.number("hidden_size"), config.number("n_routed_experts"));
    if layer < config.number("first_k_dense_replace") {
        gated(model, layer, embedding, config.number("intermediate_size"));
        return;
    }
    let width = config.number("moe_intermediate_size");
    experts(model, layer, embedding, width, count);
    model.vectors(layer, count, &["exp_probs_b.bias"]);
    shared_expert(model, layer, embedding, width * config.number("n_shared_experts"));
}

pub fn gpt_oss(config: &Config) -> Model {
    let (mut model, attention) = (transformer(config, "gpt-oss"), Attention::of(config));
    let (count, width) = (config.number("num_local_experts"), config.number("intermediate_size"));
    let embedding = attention.embedding;
    expert_numbers(&mut model, count, config);
    model.number("expert_feed_forward_length", width);
    model.number("attention.sliding_window", config.number("sliding_window"));
    for layer in 0..config.number("num_hidden_layers") {
        model.vectors(layer, embedding, &["attn_norm.weight", "post_attention_norm.weight", "attn_output.bias"]);
        model.vectors(layer, attention.heads, &["attn_sinks.weight"]);
        query_key_value(&mut model, layer, &attention);
        query_key_value_bias(&mut model, layer, &attention);
        experts(&mut model, layer, embedding, width, count);
        let biases: [(&str, &[u64]); 4] = [
            ("ffn_gate_inp.bias", &[count]),
            ("ffn_gate_exps.bias", &[width, count]),
            ("ffn_up_exps.bias", &[width, count]),
            ("ffn_down_exps.bias", &[embedding, count]),
        ];
        model.block(layer, &biases);
    }
    model
}

pub fn minimax_m2(config: &Config) -> Model {
    let (mut model, attention) = (transformer(config, "minimax-m2"), Attention::of(config));
    let (count, width) = (config.number("num_local_experts"), config.number("intermediate_size"));
    expert_numbers(&mut model, count, config);
    model.number("expert_feed_forward_length", width);
    for layer in 0..config.number("num_hidden_layers") {
        model.vectors(layer, attention.embedding, &["attn_norm.weight", "ffn_norm.weight"]);
        model.block(layer, &[("attn_q_norm.weight", &[attention.query()]), ("attn_k_norm.weight", &[attention.key()])]);
        model.vectors(layer, count, &["exp_probs_b.bias"]);
        query_key_value(&mut model, layer, &attention);
        experts(&mut model, layer, attention.embedding, width, count);
    }
    model
}
