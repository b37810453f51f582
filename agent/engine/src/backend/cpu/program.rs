//! A block's operations as the phases in which threads go through them.
//!
//! Within a phase no thread needs what another writes; between phases they meet. Operations on single rows follow each other without a meeting, for a
//! row stays with its thread, and activations are quantised where they were just computed.

use std::ops::Range;
use std::sync::Arc;

use stowage_placement::Reason;
use stowage_placement::layout::TILE_ROWS;

use super::experts::ExpertWeights;
use super::loader::Loader;
use super::{RowNorm, Vector};
use crate::api::EngineError;
use crate::cache::LayerCache;
use crate::graph::{Activation, Attention, Block, Experts, Operand, Operation, Product, Rope};
use crate::kernels::matrix::Matrix;

/// One block, ready to run.
pub(super) struct Layer {
    pub phases: Vec<Phase>,
    pub cache: LayerCache,
}

/// A value that rows are read from or written to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Value {
    Of(Operand),
    /// The router's logits.
    Router,
}

impl From<Operand> for Value {
    fn from(operand: Operand) -> Value {
        Value::Of(operand)
    }
}

/// What all threads do before they meet again.
pub(super) enum Phase {
    /// Each thread with its own tokens.
    Rows(Vec<RowStep>),
    /// Each thread with its own tiles of the matrices, all of which multiply the same value.
    Multiply { from: Operand, parts: Vec<Part> },
    /// Each thread with its own heads, tokens and parts of what they see.
    Attend(Arc<Attend>),
    /// Each thread with its own tiles of each expert's gate and up.
    ExpertsUp(Arc<ExpertWeights>),
    /// Each thread with its own tiles of each expert's down, which all add to Hidden.
    ExpertsDown(Arc<ExpertWeights>),
}

pub(super) struct Attend {
    pub heads: usize,
    pub scale: f32,
    pub softcap: f32,
    pub sinks: Option<Vector>,
    pub causal: bool,
    pub to: Operand,
}

/// What is done with one token's row.
pub(super) enum RowStep {
    /// Norms `parts` parts of the row, each as long as the weight.
    Norm {
        from: Operand,
        norm: RowNorm,
        parts: usize,
        to: Operand,
    },
    /// Brings the row into the form in which quantised matrices are multiplied.
    Quantise {
        from: Operand,
        length: usize,
    },
    /// The same for a token alone, as experts are multiplied.
    QuantiseAlone {
        from: Operand,
        length: usize,
    },
    Rotate {
        value: Operand,
        heads: usize,
        rope: usize,
    },
    /// Puts Key and Value into the cache, and brings the heads of Query into the form that they have there.
    Store {
        heads: usize,
    },
    /// Puts the parts of the token's attention together, where it was computed in parts.
    Merge(Arc<Attend>),
    Gelu {
        value: Operand,
        length: usize,
    },
    GatedActivation {
        activation: Activation,
        gate: Operand,
        up: Operand,
        length: usize,
    },
    Share {
        value: Operand,
        by: Operand,
        length: usize,
    },
    /// Adds `scale` times the row.
    Add {
        from: Operand,
        scale: f32,
        to: Operand,
    },
    /// Adds some elements of a vector.
    Bias {
        vector: Arc<Vector>,
        elements: Range<usize>,
        to: Value,
    },
    /// Chooses the token's experts.
    Choose(Arc<ExpertWeights>),
    /// Gated activation of the chosen experts, weighted.
    ActivateExperts(Arc<ExpertWeights>),
    /// Adds the biases of what the chosen experts give.
    ExpertsBias(Arc<ExpertWeights>),
}

/// Some rows of a matrix in a product.
pub(super) struct Part {
    pub matrix: Arc<Matrix>,
    pub rows: Range<usize>,
    pub to: Value,
    pub add: bool,
}

impl Part {
    /// The tiles of its rows, which begin with a tile.
    pub fn tiles(&self) -> Range<usize> {
        let tile = TILE_ROWS as usize;
        self.rows.start / tile..self.rows.end.div_ceil(tile)
    }
}

/// Phases under construction.
pub(super) struct Program<'a, 'l> {
    loader: &'a mut Loader<'l>,
    ropes: &'a [Rope],
    phases: Vec<Phase>,
    rows: Vec<RowStep>,
    /// Columns of Gate and of Up, known from the products that wrote them.
    gate_length: usize,
    up_length: usize,
}

impl Program<'_, '_> {
    pub fn compile(block: &Block, ropes: &[Rope], loader: &mut Loader<'_>) -> Result<Vec<Phase>, EngineError> {
        let mut program = Program { loader, ropes, phases: Vec::new(), rows: Vec::new(), gate_length: 0, up_length: 0 };
        for operation in &block.operations {
            program.operation(operation)?;
        }
        program.end_rows();
        Ok(program.phases)
    }

    fn operation(&mut self, operation: &Operation) -> Result<(), EngineError> {
        match operation {
            Operation::Norm { from, norm, parts, to } => {
                self.rows.push(RowStep::Norm { from: *from, norm: self.loader.norm(norm)?, parts: *parts, to: *to });
            }
            Operation::Linear { from, products } => self.linear(*from, products)?,
            Operation::Rope { value, heads, rope } => {
                debug_assert!(*rope < self.ropes.len());
                self.rows.push(RowStep::Rotate { value: *value, heads: *heads, rope: *rope });
            }
            Operation::Attention(attention) => self.attention(attention)?,
            Operation::Gelu { value } => self.rows.push(RowStep::Gelu { value: *value, length: self.up_length }),
            Operation::GatedActivation { activation, gate, up } => {
                let (activation, length) = (*activation, self.gate_length);
                self.rows.push(RowStep::GatedActivation { activation, gate: *gate, up: *up, length });
            }
            Operation::Share { value, by } => self.rows.push(RowStep::Share { value: *value, by: *by, length: self.gate_length }),
            Operation::Experts(experts) => self.experts(experts)?,
            Operation::Add { from, scale, to } => self.rows.push(RowStep::Add { from: *from, scale: *scale, to: *to }),
        }
        Ok(())
    }

    fn attention(&mut self, attention: &Attention) -> Result<(), EngineError> {
        let Attention { heads, scale, softcap, causal, sinks, to } = attention;
        let sinks = sinks.as_ref().map(|sinks| self.loader.vector(sinks)).transpose()?;
        self.rows.push(RowStep::Store { heads: *heads });
        self.end_rows();
        let attend = Attend { heads: *heads, scale: *scale, softcap: softcap.unwrap_or(0.0), sinks, causal: *causal, to: *to };
        let attend = Arc::new(attend);
        self.phases.push(Phase::Attend(Arc::clone(&attend)));
        self.rows.push(RowStep::Merge(attend));
        Ok(())
    }

    fn linear(&mut self, from: Operand, products: &[Product]) -> Result<(), EngineError> {
        let mut parts = Vec::with_capacity(products.len());
        let mut biases = Vec::new();
        for Product { weight, rows, bias, to, add } in products {
            match to {
                Operand::Gate => self.gate_length = rows.len(),
                Operand::Up => self.up_length = rows.len(),
                _ => {}
            }
            check_tiles(weight.rows, rows, &weight.name)?;
            parts.push(Part { matrix: self.loader.matrix(weight)?, rows: rows.clone(), to: (*to).into(), add: *add });
            if let Some(bias) = bias {
                biases.push(RowStep::Bias { vector: self.loader.shared_vector(bias)?, elements: rows.clone(), to: (*to).into() });
            }
        }
        self.multiply(from, parts);
        self.rows.extend(biases);
        Ok(())
    }

    fn multiply(&mut self, from: Operand, parts: Vec<Part>) {
        if let Some(part) = parts.iter().find(|part| part.matrix.is_quantised()) {
            self.rows.push(RowStep::Quantise { from, length: part.matrix.columns });
        }
        self.end_rows();
        self.phases.push(Phase::Multiply { from, parts });
    }

    fn experts(&mut self, experts: &Experts) -> Result<(), EngineError> {
        let router = self.loader.matrix(&experts.router)?;
        let bias = experts.router_bias.as_ref().map(|bias| self.loader.shared_vector(bias)).transpose()?;
        self.multiply(Operand::Normed, vec![Part { rows: 0..router.rows, matrix: router, to: Value::Router, add: false }]);
        self.rows.extend(bias.map(|vector| RowStep::Bias { vector, elements: 0..experts.count, to: Value::Router }));
        let weights = Arc::new(ExpertWeights::load(experts, self.loader)?);
        self.rows.push(RowStep::Choose(Arc::clone(&weights)));
        if weights.gate.is_quantised() || weights.up.is_quantised() {
            self.rows.push(RowStep::QuantiseAlone { from: Operand::Normed, length: weights.gate.columns });
        }
        self.end_rows();
        self.phases.push(Phase::ExpertsUp(Arc::clone(&weights)));
        self.rows.push(RowStep::ActivateExperts(Arc::clone(&weights)));
        self.end_rows();
        self.phases.push(Phase::ExpertsDown(Arc::clone(&weights)));
        if weights.has_down_bias() {
            self.rows.push(RowStep::ExpertsBias(weights));
        }
        Ok(())
    }

    fn end_rows(&mut self) {
        if !self.rows.is_empty() {
            self.phases.push(Phase::Rows(std::mem::take(&mut self.rows)));
        }
    }
}

/// Parts of a matrix are told apart by their tiles.
pub(super) fn check_tiles(all: usize, rows: &Range<usize>, name: &str) -> Result<(), EngineError> {
    let tile = TILE_ROWS as usize;
    if rows.start.is_multiple_of(tile) && (rows.end.is_multiple_of(tile) || rows.end == all) {
        return Ok(());
    }
    let message =
        format!("rows {} to {} of `{name}` are not whole tiles of {tile} rows, which the CPU's kernels multiply", rows.start, rows.end);
    Err(EngineError::new(Reason::EngineCannotRun, message))
}
