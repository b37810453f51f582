//! The tensors without which a block is damaged, in the ways in which converters have written them.

use crate::architecture::Hyperparameters;

/// What follows `blk.N.` in the names of tensors that belong together; where they were written in several ways, one way is enough.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Need {
    /// The usual way first: an error names what is missing of it.
    pub ways: Vec<Vec<String>>,
}

pub(crate) fn all(tensors: &[&str]) -> Need {
    either(&[tensors])
}

pub(crate) fn either(ways: &[&[&str]]) -> Need {
    Need { ways: ways.iter().map(|tensors| tensors.iter().map(|tensor| (*tensor).to_owned()).collect()).collect() }
}

/// Query, key and value, which some converters write as one matrix.
pub(crate) fn query_key_value() -> Need {
    either(&[&["attn_q.weight", "attn_k.weight", "attn_v.weight"], &["attn_qkv.weight"]])
}

/// Their biases.
pub(crate) fn query_key_value_bias() -> Need {
    either(&[&["attn_q.bias", "attn_k.bias", "attn_v.bias"], &["attn_qkv.bias"]])
}

/// The norm of each head's query and key.
pub(crate) fn query_key_norms() -> Need {
    all(&["attn_q_norm.weight", "attn_k_norm.weight"])
}

/// A gated feed-forward network.
pub(crate) fn feed_forward() -> Need {
    all(&["ffn_gate.weight", "ffn_up.weight", "ffn_down.weight"])
}

/// The router and its experts: one tensor for all of them, gate and up in one tensor, or (Mixtral's first files) each expert by itself.
pub(crate) fn experts(hyperparameters: &Hyperparameters) -> Vec<Need> {
    let mut ways = either(&[
        &["ffn_gate_exps.weight", "ffn_up_exps.weight", "ffn_down_exps.weight"],
        &["ffn_gate_up_exps.weight", "ffn_down_exps.weight"],
    ]);
    let single = 0..hyperparameters.experts.count.min(MOST_SINGLE_EXPERTS);
    ways.ways.push(single.flat_map(|expert| ["gate", "up", "down"].map(|name| format!("ffn_{name}.{expert}.weight"))).collect());
    vec![all(&["ffn_gate_inp.weight"]), ways]
}

/// Files with a tensor for each expert are from a time when no model had more than eight.
const MOST_SINGLE_EXPERTS: u64 = 16;

/// Experts that every token goes to.
pub(crate) fn shared_experts() -> Need {
    all(&["ffn_gate_shexp.weight", "ffn_up_shexp.weight", "ffn_down_shexp.weight"])
}
