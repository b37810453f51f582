//! Feed-forward networks of which each token goes through a few.

use super::keys::Keys;
use super::{Activation, Weight, cannot_run};
use crate::api::EngineError;

/// A router and its experts.
#[derive(Clone, Debug)]
pub struct Experts {
    pub count: usize,
    /// Experts that a token goes to.
    pub used: usize,
    /// `[count, embedding]`
    pub router: Weight,
    pub router_bias: Option<Weight>,
    pub gating: Gating,
    /// Added to what experts are chosen by, and not to their weights.
    pub selection_bias: Option<Weight>,
    pub groups: Option<Groups>,
    /// Whether the weights of a token's experts are divided by their sum.
    pub renormalise: bool,
    /// What the weights are multiplied by at last.
    pub scale: f32,
    /// Rows of `gate` and `up`, columns of `down`.
    pub feed_forward: usize,
    pub gate: ExpertMatrix,
    pub up: ExpertMatrix,
    pub down: ExpertMatrix,
    pub activation: Activation,
}

/// The same matrix of all experts, one after the other in one tensor: expert `e` has rows `e x rows` to `(e + 1) x rows - 1`.
#[derive(Clone, Debug)]
pub struct ExpertMatrix {
    pub weight: Weight,
    /// Rows of one expert.
    pub rows: usize,
    /// `[count, rows]`
    pub bias: Option<Weight>,
}

/// How the router's logits become weights.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Gating {
    /// The softmax over all experts, of which the largest are taken.
    Softmax,
    /// The sigmoid of each.
    Sigmoid,
    /// The largest logits are taken, and the softmax is over those.
    SoftmaxOfChosen,
}

/// Experts stand in groups of equal size, one after the other, and a token's are chosen from the `used` best alone. A group is as good as its two best
/// experts together.
///
/// Source: section 2.1.2 of the DeepSeek-V3 report, and `build_moe_ffn` of llama.cpp.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Groups {
    pub count: usize,
    pub used: usize,
}

/// A set of groups fits into a word.
const MOST_GROUPS: usize = 64;

impl Experts {
    pub fn weights(&self) -> Vec<&Weight> {
        let mut weights = vec![&self.router];
        weights.extend(&self.router_bias);
        weights.extend(&self.selection_bias);
        for matrix in [&self.gate, &self.up, &self.down] {
            weights.push(&matrix.weight);
            weights.extend(&matrix.bias);
        }
        weights
    }
}

/// What a family says of its experts beside what the file says.
#[derive(Clone, Copy, Debug)]
pub(super) struct Routing {
    pub gating: Gating,
    pub renormalise: bool,
    pub activation: Activation,
}

/// As the file states it, else as the family has it.
fn gating(keys: &Keys<'_>, usual: Gating) -> Result<Gating, EngineError> {
    match keys.optional("expert_gating_func")?.unwrap_or(0) {
        0 => Ok(usual),
        1 => Ok(Gating::Softmax),
        2 => Ok(Gating::Sigmoid),
        3 => Ok(Gating::SoftmaxOfChosen),
        other => Err(cannot_run(format!("the engine has no function {other} by which experts are weighed"))),
    }
}

/// The groups that experts are chosen from, where the file has more than one.
fn groups(keys: &Keys<'_>, experts: usize, chosen: usize) -> Result<Option<Groups>, EngineError> {
    let Some(count) = keys.optional("expert_group_count")?.filter(|count| *count > 1) else { return Ok(None) };
    let used = keys.required("expert_group_used_count")?;
    let size = experts / count;
    if count > MOST_GROUPS || !experts.is_multiple_of(count) || size < 2 || used == 0 || used > count || used * size < chosen {
        return Err(cannot_run(format!(
            "the engine can't choose {chosen} of {experts} experts from {used} of {count} groups; it takes up to {MOST_GROUPS} groups of equal size, of at \
             least 2 experts each, and those used must have as many as a token goes to"
        )));
    }
    Ok(Some(Groups { count, used }))
}

/// The experts of a block, where the file has any.
pub(super) fn read(keys: &Keys<'_>, block: usize, embedding: usize, routing: Routing) -> Result<Option<Experts>, EngineError> {
    let count = keys.optional("expert_count")?.unwrap_or(0);
    if count == 0 {
        return Ok(None);
    }
    let used = keys.required("expert_used_count")?;
    if used == 0 || used > count {
        return Err(cannot_run(format!("a token can't go to {used} of {count} experts")));
    }
    let feed_forward = match keys.optional("expert_feed_forward_length")?.filter(|length| *length > 0) {
        Some(length) => length,
        None => keys.required("feed_forward_length")?,
    };
    let name = |tensor: &str| format!("blk.{block}.{tensor}");
    if !keys.has(&name("ffn_gate_exps.weight")) {
        return Err(cannot_run(
            "the engine takes experts from one tensor each for gate, up and down, and this file has them otherwise".into(),
        ));
    }
    let matrix = |tensor: &str, rows: usize, columns: usize| {
        let weight = Weight { name: name(&format!("{tensor}.weight")), rows: count * rows, columns };
        let bias = name(&format!("{tensor}.bias"));
        let bias = keys.has(&bias).then(|| Weight { name: bias.clone(), rows: count, columns: rows });
        ExpertMatrix { weight, rows, bias }
    };
    Ok(Some(Experts {
        count,
        used,
        router: Weight { name: name("ffn_gate_inp.weight"), rows: count, columns: embedding },
        router_bias: keys.vector(&name("ffn_gate_inp.bias"), count),
        gating: gating(keys, routing.gating)?,
        selection_bias: keys.vector(&name("exp_probs_b.bias"), count),
        groups: groups(keys, count, used)?,
        renormalise: keys.flag("expert_weights_norm")?.unwrap_or(routing.renormalise),
        scale: keys.float("expert_weights_scale")?.filter(|scale| *scale != 0.0).unwrap_or(1.0) as f32,
        feed_forward,
        gate: matrix("ffn_gate_exps", feed_forward, embedding),
        up: matrix("ffn_up_exps", feed_forward, embedding),
        down: matrix("ffn_down_exps", embedding, feed_forward),
        activation: routing.activation,
    }))
}
