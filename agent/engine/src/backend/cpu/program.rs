//! A block's operations as the phases in which threads go through them.
//!
//! Within a phase no thread needs what another writes; between phases they meet. Operations on single rows follow each other without a meeting, for a
//! row stays with its thread, and activations are quantised where they were just computed.

use super::{Loader, Vector};
use crate::api::EngineError;
use crate::cache::LayerCache;
use crate::graph::{Block, Operand, Operation, Product};
use crate::kernels::matrix::Matrix;

/// One block, ready to run.
pub(super) struct Layer {
    pub phases: Vec<Phase>,
    pub cache: LayerCache,
}

/// What all threads do before they meet again.
pub(super) enum Phase {
    /// Each thread with its own tokens.
    Rows(Vec<RowStep>),
    /// Each thread with its own tiles of the matrices, all of which multiply the same value.
    Multiply { from: Operand, parts: Vec<Part> },
    /// Each thread with its own heads and tokens.
    Attend { heads: usize, scale: f32, to: Operand },
}

/// What is done with one token's row.
pub(super) enum RowStep {
    Norm {
        from: Operand,
        weight: Vector,
        epsilon: f32,
        to: Operand,
    },
    /// Brings the row into the form in which quantised matrices are multiplied.
    Quantise {
        from: Operand,
        length: usize,
    },
    Rotate {
        value: Operand,
        heads: usize,
    },
    /// Puts Key and Value into the cache.
    Store,
    GatedActivation {
        gate: Operand,
        up: Operand,
        length: usize,
    },
}

/// One matrix of a product.
pub(super) struct Part {
    pub matrix: Matrix,
    pub to: Operand,
    pub add: bool,
}

/// Phases under construction.
#[derive(Default)]
pub(super) struct Program {
    phases: Vec<Phase>,
    rows: Vec<RowStep>,
    /// Columns of Gate, known from the product that wrote it.
    gate_length: usize,
}

impl Program {
    pub fn compile(block: &Block, loader: &mut Loader<'_>) -> Result<Vec<Phase>, EngineError> {
        let mut program = Program::default();
        for operation in &block.operations {
            program.operation(operation, loader)?;
        }
        program.end_rows();
        Ok(program.phases)
    }

    fn operation(&mut self, operation: &Operation, loader: &mut Loader<'_>) -> Result<(), EngineError> {
        match operation {
            Operation::Norm { from, weight, epsilon, to } => {
                self.rows.push(RowStep::Norm { from: *from, weight: loader.vector(weight)?, epsilon: *epsilon, to: *to });
            }
            Operation::Linear { from, products } => self.linear(*from, products, loader)?,
            Operation::Rope { value, heads } => self.rows.push(RowStep::Rotate { value: *value, heads: *heads }),
            Operation::Attention { heads, scale, to } => {
                self.rows.push(RowStep::Store);
                self.end_rows();
                self.phases.push(Phase::Attend { heads: *heads, scale: *scale, to: *to });
            }
            Operation::GatedActivation { gate, up } => {
                self.rows.push(RowStep::GatedActivation { gate: *gate, up: *up, length: self.gate_length });
            }
        }
        Ok(())
    }

    fn linear(&mut self, from: Operand, products: &[Product], loader: &mut Loader<'_>) -> Result<(), EngineError> {
        let mut parts = Vec::with_capacity(products.len());
        for Product { weight, to, add } in products {
            if *to == Operand::Gate {
                self.gate_length = weight.rows;
            }
            parts.push(Part { matrix: loader.matrix(weight)?, to: *to, add: *add });
        }
        if let Some(part) = parts.iter().find(|part| part.matrix.is_quantised()) {
            self.rows.push(RowStep::Quantise { from, length: part.matrix.columns });
        }
        self.end_rows();
        self.phases.push(Phase::Multiply { from, parts });
        Ok(())
    }

    fn end_rows(&mut self) {
        if !self.rows.is_empty() {
            self.phases.push(Phase::Rows(std::mem::take(&mut self.rows)));
        }
    }
}
