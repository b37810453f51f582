//! Routed experts, token by token.

use candle_core::{D, Device, Tensor};

use super::{Candle, ReferenceRun, activated, sigmoid};
use crate::graph::{ExpertMatrix, Experts, Gating};

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
        for (expert, weight) in chosen(experts, logits)? {
            let (gate, up) = (self.expert(row, &experts.gate, expert)?, self.expert(row, &experts.up, expert)?);
            let result = self.expert(&activated(experts.activation, &gate, &up)?, &experts.down, expert)?;
            sum = (sum + (result * f64::from(weight))?)?;
        }
        Ok(sum)
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

/// The experts that a token goes to by its logits `[1, count]`, with their weights.
fn chosen(experts: &Experts, logits: &Tensor) -> Candle<Vec<(usize, f32)>> {
    let scores = match experts.gating {
        Gating::Softmax => softmax(logits)?,
        Gating::Sigmoid => sigmoid(logits)?,
        Gating::SoftmaxOfChosen => logits.clone(),
    };
    let scores = scores.flatten_all()?.to_vec1::<f32>()?;
    let mut order: Vec<usize> = (0..scores.len()).collect();
    order.sort_by(|a, b| scores[*b].total_cmp(&scores[*a]));
    order.truncate(experts.used);
    let mut weights = Tensor::from_vec(order.iter().map(|expert| scores[*expert]).collect::<Vec<f32>>(), (1, order.len()), &Device::Cpu)?;
    if experts.gating == Gating::SoftmaxOfChosen {
        weights = softmax(&weights)?;
    }
    if experts.renormalise {
        weights = weights.broadcast_div(&weights.sum_keepdim(D::Minus1)?)?;
    }
    let weights = (weights * f64::from(experts.scale))?.flatten_all()?.to_vec1::<f32>()?;
    Ok(order.into_iter().zip(weights).collect())
}

fn softmax(logits: &Tensor) -> Candle<Tensor> {
    let exponents = logits.broadcast_sub(&logits.max_keepdim(D::Minus1)?)?.exp()?;
    exponents.broadcast_div(&exponents.sum_keepdim(D::Minus1)?)
}
