//! Experts on the CPU: which a token goes to, and their matrices.

use std::sync::Arc;

use super::loader::Loader;
use super::program::check_tiles;
use super::{Floats, Vector};
use crate::api::EngineError;
use crate::graph::{Activation, ExpertMatrix, Experts, Gating, Groups};
use crate::kernels::matrix::Matrix;

/// The experts of one block.
pub(super) struct ExpertWeights {
    pub count: usize,
    pub used: usize,
    gating: Gating,
    selection_bias: Option<Vector>,
    groups: Option<Groups>,
    renormalise: bool,
    scale: f32,
    pub feed_forward: usize,
    pub embedding: usize,
    pub activation: Activation,
    pub gate: Arc<Matrix>,
    pub up: Arc<Matrix>,
    pub down: Arc<Matrix>,
    /// `[count, rows]` each.
    gate_bias: Option<Floats>,
    up_bias: Option<Floats>,
    down_bias: Option<Floats>,
}

/// An expert that a token goes to, and how much of it the token takes. Eight bytes, as `placement::compute::expert_buffers` counts them.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
#[repr(C)]
pub(super) struct Choice {
    pub expert: u32,
    pub weight: f32,
}

impl ExpertWeights {
    pub fn load(experts: &Experts, loader: &mut Loader<'_>) -> Result<ExpertWeights, EngineError> {
        let Experts { count, used, router: _, router_bias: _, gating, selection_bias, groups, renormalise, .. } = experts;
        let Experts { scale, feed_forward, gate, up, down, activation, .. } = experts;
        for matrix in [gate, up, down] {
            check_tiles(matrix.weight.rows, &(0..matrix.rows), &matrix.weight.name)?;
        }
        let mut bias = |matrix: &ExpertMatrix| matrix.bias.as_ref().map(|bias| loader.floats(bias)).transpose();
        let (gate_bias, up_bias, down_bias) = (bias(gate)?, bias(up)?, bias(down)?);
        Ok(ExpertWeights {
            count: *count,
            used: *used,
            gating: *gating,
            selection_bias: selection_bias.as_ref().map(|bias| loader.vector(bias)).transpose()?,
            groups: *groups,
            renormalise: *renormalise,
            scale: *scale,
            feed_forward: *feed_forward,
            embedding: down.rows,
            activation: *activation,
            gate: loader.matrix(&gate.weight)?,
            up: loader.matrix(&up.weight)?,
            down: loader.matrix(&down.weight)?,
            gate_bias,
            up_bias,
            down_bias,
        })
    }

    pub fn has_down_bias(&self) -> bool {
        self.down_bias.is_some()
    }

    /// Chooses a token's experts by the router's logits, `[count]`, into `chosen`, `[used]`. The logits are spent.
    pub fn choose(&self, logits: &mut [f32], chosen: &mut [Choice]) {
        match self.gating {
            Gating::Softmax => softmax(logits, |logit| logit),
            Gating::Sigmoid => logits.iter_mut().for_each(|logit| *logit = 1.0 / (1.0 + (-*logit).exp())),
            Gating::SoftmaxOfChosen => {}
        }
        self.take_best(logits, chosen);
        if self.gating == Gating::SoftmaxOfChosen {
            softmax(chosen, |choice| &mut choice.weight);
        }
        let sum: f32 = if self.renormalise { chosen.iter().map(|choice| choice.weight).sum::<f32>() } else { 1.0 };
        for choice in chosen {
            // Weights that are all too small to be told from zero stay what they are.
            choice.weight *= self.scale / sum.max(f32::MIN_POSITIVE);
        }
    }

    /// Takes the best experts by their scores, each with its score.
    fn take_best(&self, scores: &[f32], chosen: &mut [Choice]) {
        let by = |expert: usize| scores[expert] + self.selection_bias.as_ref().map_or(0.0, |bias| bias.floats()[expert]);
        let allowed = self.groups.map(|groups| (best_groups(groups, scores.len(), by), scores.len() / groups.count));
        take_largest(scores.len(), chosen, |expert| match allowed {
            Some((groups, size)) if groups & 1 << (expert / size) == 0 => f32::NEG_INFINITY,
            _ => by(expert),
        });
        chosen.iter_mut().for_each(|choice| choice.weight = scores[choice.expert as usize]);
    }

    /// Adds an expert's biases to its gate and up.
    pub fn add_biases(&self, expert: usize, gate: &mut [f32], up: &mut [f32]) {
        for (bias, to) in [(&self.gate_bias, gate), (&self.up_bias, up)] {
            if let Some(bias) = bias {
                to.iter_mut().zip(bias.row(expert)).for_each(|(to, bias)| *to += bias);
            }
        }
    }

    /// Adds an expert's last bias, as far as the token takes it.
    pub fn add_down_bias(&self, choice: Choice, to: &mut [f32]) {
        if let Some(bias) = &self.down_bias {
            let bias = bias.row(choice.expert as usize);
            to.iter_mut().zip(bias).for_each(|(to, bias)| *to += choice.weight * bias);
        }
    }
}

/// The groups that experts are chosen from, one bit each: those whose two best experts are best together.
fn best_groups(groups: Groups, experts: usize, by: impl Fn(usize) -> f32) -> u64 {
    let size = experts / groups.count;
    let worth = |group: usize| {
        let mut best = [Choice::default(); 2];
        take_largest(size, &mut best, |expert| by(group * size + expert));
        best[0].weight + best[1].weight
    };
    let mut worths = [0.0; u64::BITS as usize];
    (0..groups.count).for_each(|group| worths[group] = worth(group));
    let mut best = [Choice::default(); u64::BITS as usize];
    take_largest(groups.count, &mut best[..groups.used], |group| worths[group]);
    best[..groups.used].iter().fold(0, |set, choice| set | 1 << choice.expert)
}

/// The largest of `count` values with their indices, the largest first; of equal ones the first.
fn take_largest(count: usize, chosen: &mut [Choice], value: impl Fn(usize) -> f32) {
    for at in 0..chosen.len() {
        let taken = |index: usize| chosen[..at].iter().any(|choice| choice.expert as usize == index);
        let mut best: Option<(usize, f32)> = None;
        for index in 0..count {
            let value = value(index);
            if best.is_none_or(|(_, most)| value > most) && !taken(index) {
                best = Some((index, value));
            }
        }
        let (expert, weight) = best.unwrap_or_default();
        chosen[at] = Choice { expert: expert as u32, weight };
    }
}

fn softmax<T>(values: &mut [T], of: impl Fn(&mut T) -> &mut f32) {
    let most = values.iter_mut().fold(f32::NEG_INFINITY, |most, value| most.max(*of(value)));
    let mut sum = 0.0;
    for value in values.iter_mut() {
        let value = of(value);
        *value = (*value - most).exp();
        sum += *value;
    }
    values.iter_mut().for_each(|value| *of(value) /= sum);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_largest_are_taken_in_order_and_of_equal_ones_the_first() {
        let mut chosen = [Choice::default(); 3];
        take_largest(4, &mut chosen, |index| [0.1, 0.7, 0.2, 0.7][index]);
        assert_eq!(chosen.map(|choice| choice.expert), [1, 3, 2]);
        assert_eq!(chosen[2].weight, 0.2);
    }

    #[test]
    fn a_group_is_as_good_as_its_two_best_experts_together() {
        // The best expert is in a group whose second best is so bad that two other groups come before it.
        let scores = [9.0, -9.0, 0.0, 4.0, 4.0, 0.0, 3.0, 3.0, 1.0];
        assert_eq!(best_groups(Groups { count: 3, used: 2 }, scores.len(), |expert| scores[expert]), 0b011);
        let scores = [9.0, -9.0, -8.0, 4.0, 4.0, 0.0, 3.0, 3.0, 1.0];
        assert_eq!(best_groups(Groups { count: 3, used: 2 }, scores.len(), |expert| scores[expert]), 0b110);
    }

    #[test]
    fn a_softmax_adds_up_to_one_whatever_the_size_of_its_logits() {
        let mut values = [1000.0f32, 999.0, -1000.0];
        softmax(&mut values, |value| value);
        assert!((values.iter().sum::<f32>() - 1.0).abs() < 1e-6 && (values[0] / values[1] - 1f32.exp()).abs() < 1e-4);
    }
}
