//! Models with recurrent layers.

use super::parts::{Attention, ends, expert_numbers, experts, gated, prediction, query_key_value, shared_expert, transformer};
use crate::config::Config;
use crate::model::Model;

/// Qwen3-Next, and Qwen3.5 with and without experts.
pub fn qwen3_next(config: &Config, architecture: &'static str) -> Model {
    let (mut model, attention) = (transformer(config, architecture), Attention::of(config));
    let (layers, interval) = (config.number("num_hidden_layers"), config.number("full_attention_interval"));
    let predicting = config.optional("mtp_num_hidden_layers").unwrap_or(0);
    delta_net_numbers(&mut model, config);
    model.number("full_attention_interval", interval);
    if predicting > 0 {
        model.set("block_count", layers + predicting);
        model.number("nextn_predict_layers", predicting);
    }
    if architecture != "qwen35" {
        expert_numbers(&mut model, config.number("num_experts"), config);
        model.number("expert_feed_forward_length", config.number("moe_intermediate_size"));
        model.number("expert_shared_feed_forward_length", config.number("shared_expert_intermediate_size"));
    }
    for layer in 0..layers + predicting {
        model.vectors(layer, attention.embedding, &["attn_norm.weight", "post_attention_norm.weight"]);
        if layer < layers && (layer + 1) % interval != 0 {
            delta_net(&mut model, layer, config);
        } else {
            gated_attention(&mut model, layer, &attention);
        }
        next_network(&mut model, layer, config);
    }
    (layers..layers + predicting).for_each(|layer| prediction(&mut model, layer, attention.embedding));
    model
}

fn delta_net_numbers(model: &mut Model, config: &Config) {
    let (value_heads, value) = (config.number("linear_num_value_heads"), config.number("linear_value_head_dim"));
    model.number("ssm.conv_kernel", config.number("linear_conv_kernel_dim"));
    model.number("ssm.state_size", config.number("linear_key_head_dim"));
    model.number("ssm.group_count", config.number("linear_num_key_heads"));
    model.number("ssm.time_step_rank", value_heads);
    model.number("ssm.inner_size", value_heads * value);
}

fn delta_net(model: &mut Model, layer: u64, config: &Config) {
    let (embedding, heads) = (config.number("hidden_size"), config.number("linear_num_value_heads"));
    let keys = config.number("linear_num_key_heads") * config.number("linear_key_head_dim");
    let values = heads * config.number("linear_value_head_dim");
    model.vectors(layer, heads, &["ssm_a", "ssm_dt.bias"]);
    model.vectors(layer, config.number("linear_value_head_dim"), &["ssm_norm.weight"]);
    model.block(
        layer,
        &[
            ("attn_qkv.weight", &[embedding, 2 * keys + values]),
            ("attn_gate.weight", &[embedding, values]),
            ("ssm_conv1d.weight", &[config.number("linear_conv_kernel_dim"), 2 * keys + values]),
            ("ssm_out.weight", &[values, embedding]),
        ],
    );
    if model.architecture == "qwen3next" {
        model.block(layer, &[("ssm_ba.weight", &[embedding, 2 * heads])]);
    } else {
        model.block(layer, &[("ssm_beta.weight", &[embedding, heads]), ("ssm_alpha.weight", &[embedding, heads])]);
    }
}

/// Each head's query comes with a gate of the same length.
fn gated_attention(model: &mut Model, layer: u64, attention: &Attention) {
    let Attention { embedding, .. } = *attention;
    model.vectors(layer, attention.length, &["attn_q_norm.weight", "attn_k_norm.weight"]);
    model.block(
        layer,
        &[
            ("attn_q.weight", &[embedding, 2 * attention.query()]),
            ("attn_k.weight", &[embedding, attention.key()]),
            ("attn_v.weight", &[embedding, attention.key()]),
            ("attn_output.weight", &[attention.query(), embedding]),
        ],
    );
}

fn next_network(model: &mut Model, layer: u64, config: &Config) {
    let embedding = config.number("hidden_size");
    if model.architecture == "qwen35" {
        gated(model, layer, embedding, config.number("intermediate_size"));
        return;
    }
    experts(model, layer, embedding, config.number("moe_intermediate_size"), config.number("num_experts"));
    model.vectors(layer, embedding, &["ffn_gate_inp_shexp.weight"]);
    shared_expert(model, layer, embedding, config.number("shared_expert_intermediate_size"));
}

pub fn falcon_h1(config: &Config) -> Model {
    let (mut model, attention) = (transformer(config, "falcon-h1"), Attention::of(config));
    let mixer = Mixer {
        embedding: attention.embedding,
        inner: config.number("mamba_d_ssm"),
        state: config.number("mamba_d_state"),
        groups: config.number("mamba_n_groups"),
        heads: config.number("mamba_n_heads"),
        kernel: config.number("mamba_d_conv"),
    };
    mixer.numbers(&mut model);
    for layer in 0..config.number("num_hidden_layers") {
        model.vectors(layer, attention.embedding, &["attn_norm.weight", "ffn_norm.weight"]);
        query_key_value(&mut model, layer, &attention);
        mixer.tensors(&mut model, layer);
        gated(&mut model, layer, attention.embedding, config.number("intermediate_size"));
    }
    model
}

pub fn mamba2(config: &Config) -> Model {
    let embedding = config.number("hidden_size");
    let (heads, groups) = (config.number("num_heads"), config.number("n_groups"));
    let mixer = Mixer {
        embedding,
        inner: config.number("expand") * embedding,
        state: config.number("state_size"),
        groups,
        heads,
        kernel: config.number("conv_kernel"),
    };
    let mut model = without_attention(config, "mamba2");
    mixer.numbers(&mut model);
    for layer in 0..config.number("num_hidden_layers") {
        model.vectors(layer, embedding, &["attn_norm.weight"]);
        mixer.tensors(&mut model, layer);
        model.block(layer, &[("ssm_norm.weight", &[mixer.inner / groups, groups])]);
    }
    model
}

/// The sizes of Mamba 2.
struct Mixer {
    embedding: u64,
    inner: u64,
    state: u64,
    groups: u64,
    heads: u64,
    kernel: u64,
}

impl Mixer {
    fn numbers(&self, model: &mut Model) {
        model.number("ssm.conv_kernel", self.kernel);
        model.number("ssm.inner_size", self.inner);
        model.number("ssm.state_size", self.state);
        model.number("ssm.group_count", self.groups);
        model.number("ssm.time_step_rank", self.heads);
    }

    fn tensors(&self, model: &mut Model, layer: u64) {
        let channels = self.inner + 2 * self.groups * self.state;
        let tensors: [(&str, &[u64]); 7] = [
            ("ssm_in.weight", &[self.embedding, self.inner + channels + self.heads]),
            ("ssm_conv1d.weight", &[self.kernel, channels]),
            ("ssm_conv1d.bias", &[channels]),
            ("ssm_dt.bias", &[self.heads]),
            ("ssm_a", &[1, self.heads]),
            ("ssm_d", &[1, self.heads]),
            ("ssm_out.weight", &[self.inner, self.embedding]),
        ];
        model.block(layer, &tensors);
    }
}

pub fn mamba(config: &Config) -> Model {
    let mut model = without_attention(config, "mamba");
    let (embedding, inner) = (config.number("hidden_size"), config.number("intermediate_size"));
    let (state, kernel, rank) = (config.number("state_size"), config.number("conv_kernel"), config.number("time_step_rank"));
    model.number("ssm.conv_kernel", kernel);
    model.number("ssm.inner_size", inner);
    model.number("ssm.state_size", state);
    model.number("ssm.time_step_rank", rank);
    for layer in 0..config.number("num_hidden_layers") {
        model.vectors(layer, embedding, &["attn_norm.weight"]);
        model.vectors(layer, inner, &["ssm_conv1d.bias", "ssm_dt.bias", "ssm_d"]);
        model.block(
            layer,
            &[
                ("ssm_in.weight", &[embedding, 2 * inner]),
                ("ssm_conv1d.weight", &[kernel, inner]),
                ("ssm_x.weight", &[inner, rank + 2 * state]),
                ("ssm_dt.weight", &[rank, inner]),
                ("ssm_a", &[state, inner]),
                ("ssm_out.weight", &[inner, embedding]),
            ],
        );
    }
    model
}

/// The converter writes a context of 2^20 for models that were trained for none in particular.
fn without_attention(config: &Config, architecture: &'static str) -> Model {
    let mut model = Model::new(architecture);
    model.number("block_count", config.number("num_hidden_layers"));
    model.number("context_length", 1 << 20);
    model.number("embedding_length", config.number("hidden_size"));
    model.number("feed_forward_length", 0);
    model.number("attention.head_count", 0);
    ends(&mut model, config, config.number("hidden_size"));
    model
}
