//! One step as a device is told of it: its tokens, and which of them stand together. Kernels read it from the device's memory, so that steps of the same shape are
//! the same launches.

use super::attention::splits;
use super::buffers::Buffers;
use super::driver::Driver;
use super::kernels::FEW;
use super::raw_bytes::bytes;
use crate::api::EngineError;
use crate::batch::{Batch, TokenAt};

/// Tokens of a span at most, where there are few rows, and where there are many.
const LONGEST_SPANS: [u32; 2] = [8, 64];

/// The shape of a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Pass {
    pub rows: u32,
    pub spans: u32,
    /// Tokens of the longest span.
    pub longest_span: u32,
    /// Blocks that share a head's positions.
    pub splits: u32,
}

/// Slot, first row and length of each run of up to `longest` tokens of one sequence.
fn spans(tokens: &[TokenAt], longest: u32) -> Vec<[u32; 3]> {
    let mut spans: Vec<[u32; 3]> = Vec::new();
    for (row, token) in tokens.iter().enumerate() {
        match spans.last_mut() {
            Some([slot, _, count]) if *slot == token.slot && *count < longest => *count += 1,
            _ => spans.push([token.slot, row as u32, 1]),
        }
    }
    spans
}

impl Pass {
    /// Tells the device of a batch.
    pub fn upload(batch: &Batch, buffers: &Buffers, driver: &dyn Driver) -> Result<Pass, EngineError> {
        let tokens: Vec<[u32; 2]> = batch.tokens.iter().map(|at| [at.slot, at.position]).collect();
        let rows = batch.tokens.len() as u32;
        let spans = spans(&batch.tokens, LONGEST_SPANS[usize::from(rows > FEW)]);
        driver.upload(buffers.tokens, bytes(&tokens))?;
        driver.upload(buffers.spans, bytes(&spans))?;
        let longest = batch.tokens.iter().map(|at| u64::from(at.position) + 1).max().unwrap_or(1);
        Ok(Pass {
            rows,
            spans: spans.len() as u32,
            longest_span: spans.iter().map(|span| span[2]).max().unwrap_or(1),
            splits: splits(rows, longest),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_span_has_tokens_of_one_sequence_and_no_more_than_are_wanted() {
        let mut batch = Batch::default();
        batch.push_run(&[1; 10], 2, 5, false);
        batch.push(1, 0, 0);
        assert_eq!(spans(&batch.tokens, 8), [[2, 0, 8], [2, 8, 2], [0, 10, 1]]);
    }
}
