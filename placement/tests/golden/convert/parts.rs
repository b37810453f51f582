//! Parts that several families have.

use crate::config::Config;
use crate::model::Model;

/// The sizes of attention in one layer.
#[derive(Clone, Copy, Debug)]
pub struct Attention {
    pub embedding: u64,
    pub heads: u64,
    pub kv_heads: u64,
    pub length: u64,
}

impl Attention {
    pub fn of(config: &Config) -> Attention {
        let (embedding, heads) = (config.number("hidden_size"), config.number("num_attention_heads"));
        let kv_heads = config.optional("num_key_value_heads").unwrap_or(heads);
        Attention { embedding, heads, kv_heads, length: config.optional("head_dim").unwrap_or(embedding / heads) }
    }

    pub fn query(&self) -> u64 {
        self.heads * self.length
    }

    pub fn key(&self) -> u64 {
        self.kv_heads * self.length
    }
}

/// The keys that every transformer has, and the tensors before and after its blocks.
pub fn transformer(config: &Config, architecture: &'static str) -> Model {
    let mut model = Model::new(architecture);
    let attention = Attention::of(config);
    model.number("block_count", config.number("num_hidden_layers"));
    model.number("context_length", config.number("max_position_embeddings"));
    model.number("embedding_length", attention.embedding);
    model.number("feed_forward_length", config.number("intermediate_size"));
    model.number("attention.head_count", attention.heads);
    model.number("attention.head_count_kv", attention.kv_heads);
    if config.optional("head_dim").is_some() {
        model.number("attention.key_length", attention.length);
        model.number("attention.value_length", attention.length);
    }
    ends(&mut model, config, attention.embedding);
    if config.0.get("rope_scaling_type").is_some() {
        scaling(&mut model, config, attention.length);
    }
    model
}

/// Token embeddings and the output layer.
pub fn ends(model: &mut Model, config: &Config, embedding: u64) {
    let vocabulary = config.number("vocab_size");
    model.tensor("token_embd.weight", &[embedding, vocabulary]);
    model.tensor("output_norm.weight", &[embedding]);
    if !config.flag("tie_word_embeddings") {
        model.tensor("output.weight", &[embedding, vocabulary]);
    }
}

/// Llama 3's scaling becomes a tensor of factors, the others keys.
fn scaling(model: &mut Model, config: &Config, length: u64) {
    match config.text("rope_scaling_type") {
        "llama3" => model.tensor("rope_freqs.weight", &[length / 2]),
        "none" => {}
        other => model.text("rope.scaling.type", other),
    }
}

pub fn query_key_value(model: &mut Model, layer: u64, attention: &Attention) {
    let Attention { embedding, .. } = *attention;
    model.block(
        layer,
        &[
            ("attn_q.weight", &[embedding, attention.query()]),
            ("attn_k.weight", &[embedding, attention.key()]),
            ("attn_v.weight", &[embedding, attention.key()]),
            ("attn_output.weight", &[attention.query(), embedding]),
        ],
    );
}

pub fn query_key_value_bias(model: &mut Model, layer: u64, attention: &Attention) {
    let biases: [(&str, &[u64]); 3] =
        [("attn_q.bias", &[attention.query()]), ("attn_k.bias", &[attention.key()]), ("attn_v.bias", &[attention.key()])];
    model.block(layer, &biases);
}

pub fn gated(model: &mut Model, layer: u64, embedding: u64, width: u64) {
    model.block(
        layer,
        &[("ffn_gate.weight", &[embedding, width]), ("ffn_up.weight", &[embedding, width]), ("ffn_down.weight", &[width, embedding])],
    );
}

/// The router and its experts.
pub fn experts(model: &mut Model, layer: u64, embedding: u64, width: u64, count: u64) {
    model.block(
        layer,
        &[
            ("ffn_gate_inp.weight", &[embedding, count]),
            ("ffn_gate_exps.weight", &[embedding, width, count]),
            ("ffn_up_exps.weight", &[embedding, width, count]),
            ("ffn_down_exps.weight", &[width, embedding, count]),
        ],
    );
}

pub fn shared_expert(model: &mut Model, layer: u64, embedding: u64, width: u64) {
    model.block(
        layer,
        &[
            ("ffn_gate_shexp.weight", &[embedding, width]),
            ("ffn_up_shexp.weight", &[embedding, width]),
            ("ffn_down_shexp.weight", &[width, embedding]),
        ],
    );
}

/// How many experts there are, and how many a token goes to.
pub fn expert_numbers(model: &mut Model, count: u64, config: &Config) {
    model.number("expert_count", count);
    model.number("expert_used_count", config.number("num_experts_per_tok"));
}

/// What a block for predicting further tokens has beside an ordinary one.
pub fn prediction(model: &mut Model, layer: u64, embedding: u64) {
    model.block(layer, &[("nextn.eh_proj.weight", &[2 * embedding, embedding])]);
    model.vectors(layer, embedding, &["nextn.enorm.weight", "nextn.hnorm.weight", "nextn.shared_head_norm.weight"]);
}
