//! Routed experts, token by token.

use candle_core::{D, Device, Tensor};

use super::{Candle, ReferenceRun, activated, sigmoid};
use crate::graph::{ExpertMatrix, Experts, Gating, Groups};

impl ReferenceRun {
    /// What each token's experts make of it, `[tokens, embedding]`.
    pub(super) fn experts(&self, experts: &Experts, rows: &Tensor) -> Candle<Tensor> {
        let logits = rows.matmul(&self.weight(&experts.router)?.t()?)?;
        let logits = match &experts.router_bias {
            Some(bias) => logits.broadcast_add(&self.weight(bias)?.flatten_all()?)?,
            None => logits,
        };
        let results = (0..rows.dim(0)?).map(|row| self.token(experts, &rows.narrow(0, row, 1)?, &logits.narrow(0, row, 1)?));
        Tensor::cat(&results.collect::<Candle<Vec<Tensor>>>()?, 0)
    }

    fn token(&self, experts: &Experts, row: &Tensor, logits: &Tensor) -> Candle<Tensor> {
        let mut sum = row.zeros_like()?;
        for (expert, weight) in self.chosen(experts, logits)? {
            let (gate, up) = (self.expert(row, &experts.gate, expert)?, self.expert(row, &experts.up, expert)?);
            let result = self.expert(&activated(experts.activation, &gate, &up)?, &experts.down, expert)?;
            sum = (sum + (result * f64::from(weight))?)?;
        }
        Ok(sum)
    }

    /// The experts that a token goes to by its logits `[1, count]`, with their weights.
    fn chosen(&self, experts: &Experts, logits: &Tensor) -> Candle<Vec<(usize, f32)>> {
        let scores = match experts.gating {
            Gating::Softmax => softmax(logits)?,
            Gating::Sigmoid => sigmoid(logits)?,
            Gating::SoftmaxOfChosen => logits.clone(),
        };
        let mut by = scores.clone();
        if let Some(bias) = &experts.selection_bias {
            by = by.broadcast_add(&self.weight(bias)?.flatten_all()?)?;
        }
        let (scores, mut by) = (scores.flatten_all()?.to_vec1::<f32>()?, by.flatten_all()?.to_vec1::<f32>()?);
        if let Some(groups) = &experts.groups {
            by = in_best_groups(groups, &by);
        }
        let chosen = &order(&by)[..experts.used];
        let weights = chosen.iter().map(|expert| scores[*expert]).collect();
        let mut weights = Tensor::from_vec(weights, (1, chosen.len()), &Device::Cpu)?;
        if experts.gating == Gating::SoftmaxOfChosen {
            weights = softmax(&weights)?;
        }
        if experts.renormalise {
            weights = weights.broadcast_div(&weights.sum_keepdim(D::Minus1)?)?;
        }
        let weights = (weights * f64::from(experts.scale))?.flatten_all()?.to_vec1::<f32>()?;
        Ok(chosen.iter().copied().zip(weights).collect())
    }

    /// The product of a row with one expert's matrix.
    fn expert(&self, row: &Tensor, matrix: &ExpertMatrix, expert: usize) -> Candle<Tensor> {
        let product = row.matmul(&self.weight(&matrix.weight)?.narrow(0, expert * matrix.rows, matrix.rows)?.t()?)?;
        match &matrix.bias {
            Some(bias) => product + self.weight(bias)?.narrow(0, expert, 1)?,
            None => Ok(product),
        }
    }
}

/// What experts are chosen by, with -infinity for those that are not in the best groups.
fn in_best_groups(groups: &Groups, scores: &[f32]) -> Vec<f32> {
    let of_groups = scores.chunks_exact(scores.len() / groups.count);
    let worth: Vec<f32> = of_groups.map(|group| order(group).iter().take(2).map(|expert| group[*expert]).sum()).collect();
    let best = &order(&worth)[..groups.used];
    let group_of = |expert: usize| expert / (scores.len() / groups.count);
    scores.iter().enumerate().map(|(expert, score)| if best.contains(&group_of(expert)) { *score } else { f32::NEG_INFINITY }).collect()
}

/// Indices of the values, the largest first.
fn order(values: &[f32]) -> Vec<usize> {
    let mut order: Vec<usize> = (0..values.len()).collect();
    order.sort_by(|a, b| values[*b].total_cmp(&values[*a]));
    order
}

fn softmax(logits: &Tensor) -> Candle<Tensor> {
    let exponents = logits.broadcast_sub(&logits.max_keepdim(D::Minus1)?)?.exp()?;
    exponents.broadcast_div(&exponents.sum_keepdim(D::Minus1)?)
}
