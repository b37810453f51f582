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

/// Compares two models on a text, read in pieces of `num_ctx` tokens, each with an empty cache and in batches of `num_batch`.
pub fn compare(reference: &mut LoadedModel, other: &mut LoadedModel, text: &[u32]) -> Result<Divergence, EngineError> {
    let mut divergences = Vec::with_capacity(text.len());
    let (mut same, mut losses, mut predicted) = (0usize, [0f64; 2], 0usize);
    let context = reference.num_ctx().min(other.num_ctx()) as usize;
    let step = reference.num_batch().min(other.num_batch()) as usize;
    for piece in text.chunks(context) {
        for (index, tokens) in piece.chunks(step).enumerate() {
            let first = index * step;
            let expected = log_probabilities(reference, tokens, first)?;
            let found = log_probabilities(other, tokens, first)?;
            for (row, (expected, found)) in expected.iter().zip(&found).enumerate() {
                divergences.push(kl(expected, found));
                same += usize::from(top(expected) == top(found));
                if let Some(&next) = piece.get(first + row + 1) {
                    losses[0] -= f64::from(expected[next as usize]);
                    losses[1] -= f64::from(found[next as usize]);
                    predicted += 1;
                }
            }
        }
    }
    divergences.sort_by(f64::total_cmp);
    let tokens = divergences.len();
    Ok(Divergence {
        tokens,
        mean: divergences.iter().sum::<f64>() / tokens as f64,
        percentile_99: divergences.get(tokens * 99 / 100).copied().unwrap_or_default(),
        same_top: same as f64 / tokens as f64,
        perplexity: losses.map(|loss| (loss / predicted as f64).exp()),
    })
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
