//! DeepSeek V2, V3 and R1.

use super::parts::{expert_numbers, experts, gated, shared_expert, transformer};
use crate::config::Config;
use crate::model::Model;

/// With `unconverted` set, as converters wrote it before the matrix that expands the latent was split.
pub fn deepseek(config: &Config) -> Model {
    let mut model = transformer(config, "deepseek2");
    let latent = Latent::of(config);
    latent.numbers(&mut model, config);
    for layer in 0..config.number("num_hidden_layers") {
        latent.tensors(&mut model, layer, config);
        network(&mut model, layer, config);
    }
    model
}

/// The sizes of latent attention.
struct Latent {
    embedding: u64,
    heads: u64,
    rank: u64,
    rope: u64,
    plain: u64,
    value: u64,
}

impl Latent {
    fn of(config: &Config) -> Latent {
        Latent {
            embedding: config.number("hidden_size"),
            heads: config.number("num_attention_heads"),
            rank: config.number("kv_lora_rank"),
            rope: config.number("qk_rope_head_dim"),
            plain: config.number("qk_nope_head_dim"),
            value: config.number("v_head_dim"),
        }
    }

    fn numbers(&self, model: &mut Model, config: &Config) {
        model.number("leading_dense_block_count", config.number("first_k_dense_replace"));
        expert_numbers(model, config.number("n_routed_experts"), config);
        model.number("expert_feed_forward_length", config.number("moe_intermediate_size"));
        model.number("expert_shared_count", config.number("n_shared_experts"));
        model.number("attention.kv_lora_rank", self.rank);
        model.number("rope.dimension_count", self.rope);
        if config.flag("unconverted") {
            model.set("attention.head_count_kv", self.heads);
            model.set("attention.key_length", self.plain + self.rope);
            model.set("attention.value_length", self.value);
            return;
        }
        model.set("attention.head_count_kv", 1);
        model.set("attention.key_length", self.rank + self.rope);
        model.set("attention.value_length", self.rank);
        model.number("attention.key_length_mla", self.plain + self.rope);
        model.number("attention.value_length_mla", self.value);
    }

    fn tensors(&self, model: &mut Model, layer: u64, config: &Config) {
        let Latent { embedding, heads, rank, rope, plain, value } = *self;
        model.vectors(layer, embedding, &["attn_norm.weight", "ffn_norm.weight"]);
        model.vectors(layer, rank, &["attn_kv_a_norm.weight"]);
        let queries = heads * (plain + rope);
        match config.optional("q_lora_rank") {
            Some(query_rank) => {
                model.vectors(layer, query_rank, &["attn_q_a_norm.weight"]);
                model.block(layer, &[("attn_q_a.weight", &[embedding, query_rank]), ("attn_q_b.weight", &[query_rank, queries])]);
            }
            None => model.block(layer, &[("attn_q.weight", &[embedding, queries])]),
        }
        let common: [(&str, &[u64]); 2] =
            [("attn_kv_a_mqa.weight", &[embedding, rank + rope]), ("attn_output.weight", &[heads * value, embedding])];
        model.block(layer, &common);
        if config.flag("unconverted") {
            model.block(layer, &[("attn_kv_b.weight", &[rank, heads * (plain + value)])]);
        } else {
            model.block(layer, &[("attn_k_b.weight", &[plain, rank, heads]), ("attn_v_b.weight", &[rank, value, heads])]);
        }
    }
}

fn network(model: &mut Model, layer: u64, config: &Config) {
    let (embedding, width) = (config.number("hidden_size"), config.number("moe_intermediate_size"));
    if layer < config.number("first_k_dense_replace") {
        gated(model, layer, embedding, config.number("intermediate_size"));
        return;
    }
    let count = config.number("n_routed_experts");
    experts(model, layer, embedding, width, count);
    shared_expert(model, layer, embedding, width * config.number("n_shared_experts"));
    if config.text("model_type") == "deepseek_v3" {
        model.vectors(layer, count, &["exp_probs_b.bias"]);
    }
}
