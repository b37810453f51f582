//! How far one way of computing a model is from another: the Kullback-Leibler divergence between their next-token distributions.
//!
//! Equal greedy answers are no measure, since near ties flip; distributions are.

use crate::api::EngineError;
use crate::batch::Batch;
use crate::model::LoadedModel;

/// Divergences over all tokens of a text.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Divergence {
    pub tokens: usize,
    /// Mean and 99th percentile of KL(reference || other), in nats.
    pub mean: f64,
    pub percentile_99: f64,
    /// Share of tokens after which both find the same token most probable.
    pub same_top: f64,
    /// e to the mean negative log probability of the text, by the reference and by the other.
    pub perplexity: [f64; 2],
}

/// Compares models with a reference on a text, read in pieces of `num_ctx` tokens, each after `begin` (the tokens that the model wants before every prompt)
/// with an empty cache and in batches of `num_batch`. Of each, in their order.
pub fn compare(
    reference: &mut LoadedModel,
    others: &mut [LoadedModel],
    begin: &[u32],
    text: &[u32],
) -> Result<Vec<Divergence>, EngineError> {
    let all = || others.iter().chain([&*reference]);
    let context = all().map(LoadedModel::num_ctx).min().unwrap_or_default() as usize;
    let step = all().map(LoadedModel::num_batch).min().unwrap_or_default() as usize;
    let mut sums: Vec<Sums> = others.iter().map(|_| Sums::default()).collect();
    for piece in text.chunks(context.saturating_sub(begin.len()).max(1)) {
        let piece = [begin, piece].concat();
        for (index, tokens) in piece.chunks(step).enumerate() {
            let first = index * step;
            let expected = log_probabilities(reference, tokens, first)?;
            for (other, sums) in others.iter_mut().zip(&mut sums) {
                let found = log_probabilities(other, tokens, first)?;
                for (row, (expected, found)) in expected.iter().zip(&found).enumerate() {
                    sums.add(expected, found, piece.get(first + row + 1).copied());
                }
            }
        }
    }
    Ok(sums.into_iter().map(Sums::divergence).collect())
}

/// What adds up to a [`Divergence`].
#[derive(Default)]
struct Sums {
    divergences: Vec<f64>,
    same: usize,
    losses: [f64; 2],
    predicted: usize,
}

impl Sums {
    /// One token's distributions, and the token that did follow where there is one.
    fn add(&mut self, expected: &[f32], found: &[f32], next: Option<u32>) {
        self.divergences.push(kl(expected, found));
        self.same += usize::from(top(expected) == top(found));
        if let Some(next) = next {
            self.losses[0] -= f64::from(expected[next as usize]);
            self.losses[1] -= f64::from(found[next as usize]);
            self.predicted += 1;
        }
    }

    fn divergence(mut self) -> Divergence {
        self.divergences.sort_by(f64::total_cmp);
        let tokens = self.divergences.len();
        Divergence {
            tokens,
            mean: self.divergences.iter().sum::<f64>() / tokens as f64,
            percentile_99: self.divergences.get(tokens * 99 / 100).copied().unwrap_or_default(),
            same_top: self.same as f64 / tokens as f64,
            perplexity: self.losses.map(|loss| (loss / self.predicted as f64).exp()),
        }
    }
}

/// Log probabilities of every next token, after each of these.
fn log_probabilities(model: &mut LoadedModel, tokens: &[u32], first: usize) -> Result<Vec<Vec<f32>>, EngineError> {
    let mut batch = Batch::default();
    for (i, &token) in tokens.iter().enumerate() {
        batch.push_wanted(token, 0, (first + i) as u32);
    }
    let mut rows = Vec::with_capacity(tokens.len());
    model.step_each(&batch, &mut |_, logits| rows.push(log_softmax(logits)))?;
    Ok(rows)
}

fn log_softmax(logits: &[f32]) -> Vec<f32> {
    let greatest = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let sum: f64 = logits.iter().map(|logit| f64::from(logit - greatest).exp()).sum();
    let shift = f64::from(greatest) + sum.ln();
    logits.iter().map(|logit| (f64::from(*logit) - shift) as f32).collect()
}

/// KL(p || q) from log probabilities.
fn kl(p: &[f32], q: &[f32]) -> f64 {
    p.iter().zip(q).map(|(p, q)| f64::from(*p).exp() * (f64::from(*p) - f64::from(*q))).sum()
}

fn top(values: &[f32]) -> Option<usize> {
    (0..values.len()).max_by(|a, b| values[*a].total_cmp(&values[*b]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_divergence_of_a_distribution_from_itself_is_zero_and_else_positive() {
        let (p, q) = (log_softmax(&[1.0, 2.0, 3.0]), log_softmax(&[1.0, 2.0, 3.5]));
        assert_eq!(kl(&p, &p), 0.0);
        assert!(kl(&p, &q) > 0.01);
    }
}
