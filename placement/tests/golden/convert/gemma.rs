//! Gemma 2, 3, 3n and 4.

use super::parts::{Attention, gated, query_key_value, transformer};
use crate::config::Config;
use crate::model::Model;

const NORMS: [&str; 4] = ["attn_norm.weight", "post_attention_norm.weight", "ffn_norm.weight", "post_ffw_norm.weight"];
const HEAD_NORMS: [&str; 2] = ["attn_q_norm.weight", "attn_k_norm.weight"];

pub fn gemma2(config: &Config) -> Model {
    blocks(config, "gemma2", &[])
}

pub fn gemma3(config: &Config) -> Model {
    blocks(config, "gemma3", &HEAD_NORMS)
}

fn blocks(config: &Config, architecture: &'static str, head_norms: &[&str]) -> Model {
    let (mut model, attention) = (transformer(config, architecture), Attention::of(config));
    model.number("attention.sliding_window", config.number("sliding_window"));
    for layer in 0..config.number("num_hidden_layers") {
        model.vectors(layer, attention.embedding, &NORMS);
        model.vectors(layer, attention.length, head_norms);
        query_key_value(&mut model, layer, &attention);
        gated(&mut model, layer, attention.embedding, config.number("intermediate_size"));
    }
    model
}

pub fn gemma3n(config: &Config) -> Model {
    let mut model = blocks(config, "gemma3n", &HEAD_NORMS);
    let embedding = config.number("hidden_size");
    let inputs = config.number("altup_num_inputs");
    model.number("attention.shared_kv_layers", config.number("num_kv_shared_layers"));
    model.flags("attention.sliding_window_pattern", config.sliding_layers());
    model.tensor("altup_proj.weight", &[embedding, embedding, inputs - 1]);
    model.tensor("altup_unembd_proj.weight", &[embedding, embedding, inputs - 1]);
    // The converter fills the table up to the vocabulary.
    per_layer_embeddings(&mut model, config, config.number("vocab_size"));
    for layer in 0..config.number("num_hidden_layers") {
        let rank = config.number("laurel_rank");
        model.vectors(layer, embedding, &["altup_correct_scale.weight", "altup_router_norm.weight", "laurel_post_norm.weight"]);
        model.block(
            layer,
            &[
                ("altup_correct_coef.weight", &[inputs, inputs]),
                ("altup_predict_coef.weight", &[inputs, inputs * inputs]),
                ("altup_router.weight", &[embedding, inputs]),
                ("laurel_l.weight", &[embedding, rank]),
                ("laurel_r.weight", &[rank, embedding]),
            ],
        );
    }
    model
}

fn per_layer_embeddings(model: &mut Model, config: &Config, vocabulary: u64) {
    let (embedding, width) = (config.number("hidden_size"), config.number("hidden_size_per_layer_input"));
    let layers = config.number("num_hidden_layers");
    model.number("embedding_length_per_layer_input", width);
    model.tensor("per_layer_token_embd.weight", &[width * layers, vocabulary]);
    model.tensor("per_layer_model_proj.weight", &[embedding, width * layers]);
    model.tensor("per_layer_proj_norm.weight", &[width]);
    for layer in 0..layers {
        model.block(layer, &[("inp_gate.weight", &[embedding, width]), ("proj.weight", &[width, embedding])]);
        model.vectors(layer, embedding, &["post_norm.weight"]);
    }
}

pub fn gemma4(config: &Config) -> Model {
    let mut model = transformer(config, "gemma4");
    let slides = config.sliding_layers();
    let (sliding, full) = (Attention::of(config), full_attention(config));
    let shared = config.number("num_kv_shared_layers");
    model.set("attention.key_length", full.length);
    model.set("attention.value_length", full.length);
    model.number("attention.key_length_swa", sliding.length);
    model.number("attention.value_length_swa", sliding.length);
    model.number("attention.sliding_window", config.number("sliding_window"));
    model.number("attention.shared_kv_layers", shared);
    model.array("attention.head_count_kv", slides.iter().map(|slides| if *slides { sliding.kv_heads } else { full.kv_heads }));
    model.flags("attention.sliding_window_pattern", slides.clone());
    model.tensor("rope_freqs.weight", &[full.length / 2]);
    for (layer, slides) in (0..).zip(&slides) {
        let attention = if *slides { &sliding } else { &full };
        model.vectors(layer, attention.embedding, &NORMS);
        model.vectors(layer, attention.length, &HEAD_NORMS);
        model.vectors(layer, 1, &["layer_output_scale.weight"]);
        query_key_value(&mut model, layer, attention);
        if config.flag("attention_k_eq_v") && !slides {
            model.drop(&format!("blk.{layer}.attn_v.weight"));
        }
        gated(&mut model, layer, attention.embedding, config.number("intermediate_size"));
    }
    if config.optional("hidden_size_per_layer_input").is_some_and(|width| width > 0) {
        per_layer_embeddings(&mut model, config, config.number("vocab_size_per_layer_input"));
    }
    model
}

/// Layers with the whole context have longer heads, and may have fewer.
fn full_attention(config: &Config) -> Attention {
    let sliding = Attention::of(config);
    let kv_heads = config.optional("num_global_key_value_heads").unwrap_or(sliding.kv_heads);
    Attention { length: config.number("global_head_dim"), kv_heads, ..sliding }
}
