//! Texts being turned into vectors, one after the other, in one slot.

use tokio::sync::oneshot;

use crate::api::EngineError;
use crate::graph::Pooling;
use crate::schedule::queue::EmbedJob;

pub struct Embedding {
    inputs: Vec<Vec<u32>>,
    reply: oneshot::Sender<Result<Vec<Vec<f32>>, EngineError>>,
    pooling: Pooling,
    /// Of the input that is being read, hidden states that were taken, and the sum of those that count.
    rows: usize,
    sum: Vec<f32>,
    done: Vec<Vec<f32>>,
}

impl Embedding {
    pub fn new(job: EmbedJob, width: usize, pooling: Pooling) -> Embedding {
        Embedding { inputs: job.inputs, reply: job.reply, pooling, rows: 0, sum: vec![0.0; width], done: Vec::new() }
    }

    /// The input that is being read.
    pub fn input(&self) -> &[u32] {
        self.inputs.get(self.done.len()).map_or(&[], Vec::as_slice)
    }

    /// Takes hidden states, one a row. `ended`: they were the last of this input.
    pub fn add(&mut self, hidden: &[f32], ended: bool) {
        let width = self.sum.len();
        for row in hidden.chunks_exact(width) {
            self.rows += 1;
            if self.pooling == Pooling::First && self.rows > 1 {
                break;
            }
            self.sum.iter_mut().zip(row).for_each(|(sum, value)| *sum += value);
        }
        if ended {
            self.rows = 0;
            let sum = std::mem::replace(&mut self.sum, vec![0.0; width]);
            self.done.push(normalised(sum));
        }
    }

    pub fn is_done(&self) -> bool {
        self.done.len() == self.inputs.len()
    }

    pub fn is_abandoned(&self) -> bool {
        self.reply.is_closed()
    }

    pub fn take_done(&mut self) -> Vec<Vec<f32>> {
        std::mem::take(&mut self.done)
    }

    pub fn finish(self, result: Result<Vec<Vec<f32>>, EngineError>) {
        // Nobody waits any more where this fails.
        self.reply.send(result).ok();
    }
}

/// Of length 1, so that sum and mean come to the same.
fn normalised(mut vector: Vec<f32>) -> Vec<f32> {
    let length = vector.iter().map(|value| f64::from(*value).powi(2)).sum::<f64>().sqrt();
    if length > 0.0 {
        vector.iter_mut().for_each(|value| *value = (f64::from(*value) / length) as f32);
    }
    vector
}
