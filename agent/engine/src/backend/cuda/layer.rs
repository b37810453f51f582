//! A block's operations as launches: products of the same rows together, and all that is done to queries, keys and values before attention as one.

use stowage_placement::Reason;

use super::activation::{Activate, Combine};
use super::arguments::{Cache, NormArguments, Part, Quantised};
use super::attention::{Approach, DeviceAttention};
use super::buffers::{Buffers, Rows};
use super::driver::DevicePointer;
use super::experts::DeviceExperts;
use super::kernels::{Kernels, THREADS, WARP};
use super::linear::Linear;
use super::pass::Pass;
use super::weights::{DeviceNorm, Loader};
use crate::api::EngineError;
use crate::graph::{Block, Norm, Operand, Operation, Product, Rope};

/// One block, ready to run.
pub struct DeviceLayer {
    steps: Vec<Step>,
}

enum Step {
    Norm(RowNorm),
    Linear(Linear),
    Attention(Box<DeviceAttention>),
    Activate(Activate),
    Combine(Combine),
    Experts(Box<DeviceExperts>),
}

/// A norm of each of `parts` parts of a row.
pub struct RowNorm {
    arguments: NormArguments,
    parts: u32,
}

impl RowNorm {
    pub fn new(norm: DeviceNorm, from: Rows, to: Rows, parts: usize) -> RowNorm {
        let arguments = NormArguments {
            from: from.at,
            to: to.at,
            weight: norm.weight,
            bias: norm.bias,
            rows: DevicePointer::NULL,
            from_stride: from.stride,
            to_stride: to.stride,
            length: norm.length as u32,
            epsilon: norm.epsilon,
            quantised: Quantised::NOWHERE,
        };
        RowNorm { arguments, parts: parts as u32 }
    }

    /// Of the rows that are named at `rows`, where it is not null, else of the first. They go into 8 bits, too, where that is asked for.
    pub fn run(&self, kernels: &Kernels, count: u32, rows: DevicePointer, quantised: Quantised) -> Result<(), EngineError> {
        let arguments = NormArguments { rows, quantised, ..self.arguments };
        kernels.launch(kernels.norm_rows, [count, self.parts, 1], 2 * THREADS / WARP, &arguments)
    }
}

impl DeviceLayer {
    pub fn compile(
        block: &Block,
        cache: Cache,
        ropes: &[Rope],
        buffers: &Buffers,
        loader: &mut Loader<'_>,
        kernels: &mut Kernels,
    ) -> Result<DeviceLayer, EngineError> {
        let mut compiler = Compiler {
            cache,
            window: block.cache.window,
            ropes,
            buffers,
            loader,
            kernels,
            steps: Vec::new(),
            approach: Approach::default(),
            gate_length: 0,
            up_length: 0,
        };
        for operation in &block.operations {
            compiler.operation(operation)?;
        }
        Ok(DeviceLayer { steps: compiler.steps })
    }

    pub fn run(&self, kernels: &Kernels, pass: &Pass) -> Result<(), EngineError> {
        let rows = pass.rows;
        let mut is_prepared = false;
        for (at, step) in self.steps.iter().enumerate() {
            // What makes the rows that are multiplied next brings them into 8 bits, where that is how they are multiplied.
            let next = match self.steps.get(at + 1) {
                Some(Step::Linear(linear)) if step.gives(linear) => Some(linear),
                _ => None,
            };
            let quantised = next.map_or(Quantised::NOWHERE, |linear| linear.wants(rows));
            match step {
                Step::Norm(norm) => norm.run(kernels, rows, DevicePointer::NULL, quantised)?,
                Step::Activate(activate) => activate.run(kernels, rows, quantised)?,
                Step::Linear(linear) if is_prepared => linear.run_prepared(kernels, rows)?,
                Step::Linear(linear) => linear.run(kernels, rows)?,
                Step::Attention(attention) => attention.run(kernels, pass)?,
                Step::Combine(combine) => combine.run(kernels, rows)?,
                Step::Experts(experts) => experts.run(kernels, rows)?,
            }
            is_prepared = next.is_some();
        }
        Ok(())
    }
}

impl Step {
    /// Whether it makes the rows that are multiplied, and nothing else.
    fn gives(&self, linear: &Linear) -> bool {
        match self {
            Step::Norm(norm) => norm.parts == 1 && norm.arguments.to == linear.from.at && norm.arguments.length == linear.length,
            Step::Activate(activate) => activate.result() == linear.from.at,
            _ => false,
        }
    }
}

/// Steps under construction.
struct Compiler<'a, 'l> {
    cache: Cache,
    window: Option<usize>,
    ropes: &'a [Rope],
    buffers: &'a Buffers,
    loader: &'a mut Loader<'l>,
    kernels: &'a mut Kernels,
    steps: Vec<Step>,
    approach: Approach,
    /// Columns of Gate and of Up, known from the products that wrote them.
    gate_length: usize,
    up_length: usize,
}

impl Compiler<'_, '_> {
    fn operation(&mut self, operation: &Operation) -> Result<(), EngineError> {
        let step = match operation {
            Operation::Norm { from, norm, parts, to } => match self.norm(*from, norm, *parts, *to)? {
                Some(norm) => Step::Norm(norm),
                None => return Ok(()),
            },
            Operation::Rope { value, heads: _, rope } => return self.rope(*value, *rope),
            Operation::Linear { from, products } => Step::Linear(self.linear(*from, products)?),
            Operation::Attention(attention) => {
                let (approach, context) = (std::mem::take(&mut self.approach), (self.ropes, self.cache, self.window));
                let sinks = self.loader.optional_vector(attention.sinks.as_ref())?;
                let attention = DeviceAttention::new(attention, sinks, approach, context, self.buffers, self.kernels)?;
                Step::Attention(Box::new(attention))
            }
            Operation::Gelu { value } => Step::Activate(Activate::gelu(self.buffers.rows(*value)?, self.up_length as u32)),
            Operation::GatedActivation { activation, gate, up } => {
                let (gate, up) = (self.buffers.rows(*gate)?, self.buffers.rows(*up)?);
                Step::Activate(Activate::gated(*activation, gate, up, self.gate_length as u32))
            }
            Operation::Share { value, by } => {
                Step::Combine(Combine::share(self.buffers.rows(*value)?, self.buffers.rows(*by)?, self.gate_length as u32))
            }
            Operation::Experts(experts) => Step::Experts(Box::new(DeviceExperts::load(experts, self.buffers, self.loader, self.kernels)?)),
            Operation::Add { from, scale, to } => {
                let (from, to) = (self.buffers.rows(*from)?, self.buffers.rows(*to)?);
                Step::Combine(Combine::add(to, from, to.stride, *scale))
            }
        };
        self.steps.push(step);
        Ok(())
    }

    /// A norm of queries or keys, head by head, is left to what brings them to attention.
    fn norm(&mut self, from: Operand, norm: &Norm, parts: usize, to: Operand) -> Result<Option<RowNorm>, EngineError> {
        let device = self.loader.norm(norm)?;
        let of_heads = from == to && norm.bias.is_none() && norm.weight.columns == self.cache.key_length as usize;
        match from {
            Operand::Query if of_heads => self.approach.query_norm = Some(device),
            Operand::Key if of_heads => self.approach.key_norm = Some(device),
            Operand::Query | Operand::Key if !self.approach.is_empty() => return Err(out_of_order("a norm")),
            _ => return Ok(Some(RowNorm::new(device, self.buffers.rows(from)?, self.buffers.rows(to)?, parts))),
        }
        let turned = if from == Operand::Query { self.approach.query_rope } else { self.approach.key_rope };
        if turned.is_some() { Err(out_of_order("a norm")) } else { Ok(None) }
    }

    fn rope(&mut self, value: Operand, rope: usize) -> Result<(), EngineError> {
        let turned = match value {
            Operand::Query => &mut self.approach.query_rope,
            Operand::Key => &mut self.approach.key_rope,
            _ => return Err(out_of_order("a rotation of something else")),
        };
        if turned.replace(rope).is_some() { Err(out_of_order("a second rotation")) } else { Ok(()) }
    }

    fn linear(&mut self, from: Operand, products: &[Product]) -> Result<Linear, EngineError> {
        let rows = self.buffers.rows(from)?;
        let length = products.first().map_or(0, |product| product.weight.columns);
        let mut linear = Linear::new(rows, length as u32, self.buffers.activations);
        for Product { weight, rows, bias, to, add } in products {
            match to {
                Operand::Gate => self.gate_length = rows.len(),
                Operand::Up => self.up_length = rows.len(),
                _ => {}
            }
            let matrix = self.loader.matrix(weight)?;
            let bias = self.loader.optional_vector(bias.as_ref())?;
            let bias = if bias == DevicePointer::NULL { bias } else { bias.after(4 * rows.start) };
            let to = self.buffers.rows(*to)?;
            let (first, count) = (rows.start as u32, rows.len() as u32);
            let part = Part { matrix: matrix.matrix, to: to.at, bias, first, rows: count, stride: to.stride, add: (*add).into() };
            linear.push(self.kernels, matrix.ty, part)?;
        }
        Ok(linear)
    }
}

fn out_of_order(what: &str) -> EngineError {
    let message =
        format!("the cuda backend norms and then turns queries and keys, once, before it attends; this model has {what} elsewhere");
    EngineError::new(Reason::EngineCannotRun, message)
}
