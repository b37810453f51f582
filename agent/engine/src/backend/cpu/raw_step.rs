//! One step on the CPU, over buffers that all threads share.
//!
//! The rule that makes the raw pointers sound: within a phase, each row of a value (in `Rows`), each tile's columns of a product (in `Multiply`) and
//! each head of a token and part of its positions (in `Attend`) is written by one thread alone and read by no other; between phases the threads meet.

mod attention;
mod experts;

use stowage_placement::compute::ComputeShape;

use self::attention::Span;
use super::RowNorm;
use super::program::{Layer, Part, Phase, RowStep, Value};
use crate::arena::Region;
use crate::batch::{Batch, TokenAt};
use crate::cache::LayerCache;
use crate::graph::{Activation, Operand, Pairing};
use crate::kernels::matrix::{Columns, Matrix, Products};
use crate::kernels::{BLOCK, BLOCK_BYTES, Isa};
use crate::pool::{Pool, Worker};

/// Scratch memory of the blocks.
pub(super) struct Buffers {
    shape: ComputeShape,
    /// Normed, Query, Key, Value, Attended, Gate, Up; quantised activations; each token's rotation. As `placement::compute::layer_buffers` orders them.
    regions: [Region; 9],
    /// As `placement::compute::expert_buffers` orders them: router's logits, choices, gate, up, the gate quantised, shares.
    experts: Option<[Region; 6]>,
    turns: Vec<Turns>,
    spans: Vec<Span>,
    /// Tokens that there is room for.
    num_batch: usize,
}

/// A way in which positions become angles.
pub(super) struct Turns {
    pub frequencies: Vec<f32>,
    /// What turned elements are multiplied by.
    pub magnitude: f32,
    pub pairing: Pairing,
}

/// What the threads of one step share.
struct Step<'a> {
    isa: Isa,
    shape: &'a ComputeShape,
    tokens: &'a [TokenAt],
    spans: &'a [Span],
    num_batch: usize,
    turns: &'a [Turns],
    /// Columns in a group of quantised activations.
    width: usize,
    hidden: *mut f32,
    buffers: [*mut f32; 9],
    /// Null where there are no experts.
    experts: [*mut f32; 6],
}

// SAFETY: the pointers are to buffers that outlive the step; threads keep to the rule of this module.
unsafe impl Sync for Step<'_> {}

impl Buffers {
    pub fn new(shape: &ComputeShape, turns: Vec<Turns>, num_batch: usize, regions: [Region; 9], experts: Option<[Region; 6]>) -> Buffers {
        Buffers { shape: *shape, regions, experts, turns, spans: Vec::with_capacity(num_batch), num_batch }
    }

    /// Takes the hidden state of the batch's tokens through the layers.
    pub fn step(&mut self, isa: Isa, pool: &Pool, layers: &[&Layer], batch: &Batch, hidden: &mut [f32]) {
        assert!(hidden.len() >= batch.tokens.len() * self.shape.embedding as usize, "a row for each token");
        attention::spans(&batch.tokens, &mut self.spans);
        let step = Step {
            isa,
            shape: &self.shape,
            tokens: &batch.tokens,
            spans: &self.spans,
            num_batch: self.num_batch,
            turns: &self.turns,
            width: isa.group_width(batch.tokens.len()),
            hidden: hidden.as_mut_ptr(),
            buffers: self.regions.each_mut().map(|region| region.floats_mut().as_mut_ptr()),
            experts: match &mut self.experts {
                Some(regions) => regions.each_mut().map(|region| region.floats_mut().as_mut_ptr()),
                None => [std::ptr::null_mut(); 6],
            },
        };
        pool.run(&|worker: &Worker<'_>| {
            // SAFETY: the buffers have room for `num_batch` tokens, which the batch is within, and threads keep to the rule of this module.
            unsafe {
                step.rotations(worker);
                for layer in layers {
                    for phase in &layer.phases {
                        step.phase(phase, &layer.cache, worker);
                        worker.meet();
                    }
                }
            }
        });
    }
}

impl Step<'_> {
    /// Where a value's rows begin, and how many floats they are apart.
    fn value(&self, value: impl Into<Value>) -> (*mut f32, usize) {
        let shape = self.shape;
        let operand = match value.into() {
            Value::Router => return (self.experts[0], shape.experts as usize),
            Value::Of(Operand::Share) => return (self.experts[5], 1),
            Value::Of(operand) => operand,
        };
        let (index, width) = match operand {
            Operand::Hidden => return (self.hidden, shape.embedding as usize),
            Operand::Normed => (0, shape.embedding),
            Operand::Query => (1, shape.heads * shape.key_length),
            Operand::Key => (2, shape.kv_heads_max * shape.key_length),
            Operand::Value => (3, shape.kv_heads_max * shape.value_length),
            Operand::Attended => (4, shape.heads * shape.value_length),
            Operand::Gate => (5, shape.feed_forward),
            Operand::Up => (6, shape.feed_forward),
            Operand::Share => unreachable!("it lies with the experts' buffers"),
        };
        (self.buffers[index], width as usize)
    }

    unsafe fn row(&self, value: impl Into<Value>, row: usize) -> *mut f32 {
        let (start, width) = self.value(value);
        // SAFETY: the caller gives a row of the batch.
        unsafe { start.add(row * width) }
    }

    fn quantised(&self) -> *mut u8 {
        self.buffers[7].cast()
    }

    /// `key_length` floats: cosines, then sines.
    unsafe fn rotation(&self, rope: usize, row: usize) -> *mut f32 {
        // SAFETY: the caller gives a rope and a row of the batch.
        unsafe { self.buffers[8].add((row * self.shape.ropes as usize + rope) * self.shape.key_length as usize) }
    }

    /// This thread's tokens.
    fn rows(&self, worker: &Worker<'_>) -> std::ops::Range<usize> {
        worker.share(self.tokens.len(), 1)
    }

    /// Angles of this thread's tokens. In f64, so that far positions are as exact as near ones.
    unsafe fn rotations(&self, worker: &Worker<'_>) {
        for row in self.rows(worker) {
            let position = f64::from(self.tokens[row].position);
            for (rope, Turns { frequencies, magnitude, .. }) in self.turns.iter().enumerate() {
                for (i, frequency) in frequencies.iter().enumerate() {
                    let (sin, cos) = (position * f64::from(*frequency)).sin_cos();
                    // SAFETY: the row has room for two numbers a pair.
                    unsafe {
                        *self.rotation(rope, row).add(i) = cos as f32 * magnitude;
                        *self.rotation(rope, row).add(frequencies.len() + i) = sin as f32 * magnitude;
                    }
                }
            }
        }
    }

    unsafe fn phase(&self, phase: &Phase, cache: &LayerCache, worker: &Worker<'_>) {
        // SAFETY: passed on to the caller.
        unsafe {
            match phase {
                Phase::Rows(steps) => {
                    for row in self.rows(worker) {
                        for step in steps {
                            self.row_step(step, row, cache);
                        }
                    }
                }
                Phase::Multiply { from, parts } => self.multiply(*from, parts, worker),
                Phase::Attend(attend) => self.attend(attend, cache, worker),
                Phase::ExpertsUp(experts) => self.experts_up(experts, worker),
                Phase::ExpertsDown(experts) => self.experts_down(experts, worker),
            }
        }
    }

    unsafe fn row_step(&self, step: &RowStep, row: usize, cache: &LayerCache) {
        // SAFETY: rows have the widths of their values, which are those that the weights were checked to have.
        unsafe {
            match step {
                RowStep::Norm { from, norm, parts, to } => {
                    let (from, to) = (self.row(*from, row), self.row(*to, row));
                    for at in (0..*parts).map(|part| part * norm.weight.length) {
                        norm.apply(self.isa, from.add(at), to.add(at));
                    }
                }
                RowStep::Quantise { from, length } => {
                    let group = row / self.width * self.width * (length / BLOCK) * BLOCK_BYTES;
                    self.isa.quantise(self.row(*from, row), *length, row % self.width, self.width, self.quantised().add(group));
                }
                RowStep::QuantiseAlone { from, length } => {
                    self.isa.quantise(self.row(*from, row), *length, 0, 1, self.quantised().add(row * (length / BLOCK) * BLOCK_BYTES));
                }
                RowStep::Rotate { value, heads, rope } => {
                    let Turns { frequencies, pairing, .. } = &self.turns[*rope];
                    let (length, pairs) = (self.shape.key_length as usize, frequencies.len());
                    match pairing {
                        Pairing::Neighbours => self.isa.rotate(self.row(*value, row), *heads, length, self.rotation(*rope, row), pairs),
                        Pairing::Halves => self.isa.rotate_halves(self.row(*value, row), *heads, length, self.rotation(*rope, row), pairs),
                    }
                }
                RowStep::Store { heads } => {
                    let TokenAt { slot, position, .. } = self.tokens[row];
                    if cache.is_quantised() {
                        self.spread_outliers(row, *heads, cache);
                    }
                    cache.store(slot as usize, position as usize, self.row(Operand::Key, row), self.row(Operand::Value, row));
                }
                RowStep::Merge(attend) => self.merge(attend, row, cache),
                RowStep::Gelu { value, length } => self.isa.gelu(self.row(*value, row), *length),
                RowStep::GatedActivation { activation, gate, up, length } => {
                    activate(self.isa, *activation, self.row(*gate, row), self.row(*up, row), *length);
                }
                RowStep::Share { value, by, length } => {
                    let share = 1.0 / (1.0 + (-*self.row(*by, row)).exp());
                    self.isa.scale(self.row(*value, row), share, *length);
                }
                RowStep::Add { from, scale, to } => {
                    self.isa.add_scaled(self.row(*to, row), self.row(*from, row), *scale, self.shape.embedding as usize);
                }
                RowStep::Bias { vector, elements, to } => {
                    let bias = &vector.floats()[elements.clone()];
                    self.isa.add_scaled(self.row(*to, row), bias.as_ptr(), 1.0, bias.len());
                }
                RowStep::Choose(experts) => {
                    let logits = std::slice::from_raw_parts_mut(self.row(Value::Router, row), experts.count);
                    experts.choose(logits, self.choices(row, experts.used));
                }
                RowStep::ActivateExperts(experts) => self.activate_experts(experts, row),
                RowStep::ExpertsBias(experts) => {
                    let hidden = std::slice::from_raw_parts_mut(self.row(Operand::Hidden, row), experts.embedding);
                    for choice in self.choices(row, experts.used) {
                        experts.add_down_bias(*choice, hidden);
                    }
                }
            }
        }
    }

    unsafe fn multiply(&self, from: Operand, parts: &[Part], worker: &Worker<'_>) {
        let total = parts.iter().map(|part| part.tiles().len()).sum();
        let share = worker.share(total, 1);
        let (floats, stride) = self.value(from);
        let columns = Columns { tokens: self.tokens.len(), floats, stride, quantised: self.quantised(), width: self.width };
        let mut before = 0;
        for part in parts {
            let (tiles, (to, stride)) = (part.tiles(), self.value(part.to));
            let own = |at: usize| tiles.start + at.clamp(before, before + tiles.len()) - before;
            let own = own(share.start)..own(share.end);
            before += tiles.len();
            // SAFETY: passed on to the caller; the tiles are this thread's. Rows are counted from the part's first.
            unsafe {
                let products = Products { to: to.wrapping_sub(part.rows.start), stride, add: part.add };
                part.matrix.multiply_tiles(self.isa, own, &columns, products);
            }
        }
    }
}

/// # Safety
///
/// Each pointer has `length` floats.
unsafe fn activate(isa: Isa, activation: Activation, gate: *mut f32, up: *const f32, length: usize) {
    // SAFETY: passed on to the caller.
    unsafe {
        match activation {
            Activation::Silu => isa.gated_silu(gate, up, length),
            Activation::GeluTanh => isa.gated_gelu_tanh(gate, up, length),
            Activation::ClampedSwiGlu { alpha, limit } => isa.gated_clamped(gate, up, length, alpha, limit),
        }
    }
}

/// Scratch memory of the output layer.
pub(super) struct OutputBuffers {
    rows: usize,
    /// Normed rows, their quantised form, logits, as `placement::compute::output_buffers` orders them.
    regions: [Region; 3],
}

/// A pointer that threads share under the rule of this module.
#[derive(Clone, Copy)]
struct Shared<T>(*mut T);

// SAFETY: see the rule of this module.
unsafe impl<T> Sync for Shared<T> {}

impl<T> Shared<T> {
    fn get(&self) -> *mut T {
        self.0
    }
}

impl OutputBuffers {
    pub fn new(rows: usize, regions: [Region; 3]) -> OutputBuffers {
        OutputBuffers { rows, regions }
    }

    /// Logits of some rows of the hidden state.
    pub fn logits(&mut self, isa: Isa, pool: &Pool, rows: &[u32], hidden: &[f32], norm: &RowNorm, matrix: &Matrix) -> &mut [f32] {
        let (embedding, vocabulary) = (matrix.columns, matrix.rows);
        assert!(rows.len() <= self.rows && rows.iter().all(|&row| (row as usize + 1) * embedding <= hidden.len()), "rows are there");
        let width = isa.group_width(rows.len());
        let [normed, quantised, logits] = &mut self.regions;
        let (normed, logits_at) = (Shared(normed.floats_mut().as_mut_ptr()), Shared(logits.floats_mut().as_mut_ptr()));
        let quantised = Shared(quantised.bytes_mut().as_mut_ptr());
        pool.run(&|worker: &Worker<'_>| {
            // SAFETY: the buffers have room for `self.rows` rows, and threads keep to the rule of this module.
            unsafe {
                for index in worker.share(rows.len(), 1) {
                    let from = hidden.as_ptr().add(rows[index] as usize * embedding);
                    let to = normed.get().add(index * embedding);
                    norm.apply(isa, from, to);
                    if matrix.is_quantised() {
                        let group = quantised.get().add(index / width * width * (embedding / BLOCK) * BLOCK_BYTES);
                        isa.quantise(to, embedding, index % width, width, group);
                    }
                }
                worker.meet();
                let columns = Columns { tokens: rows.len(), floats: normed.get(), stride: embedding, quantised: quantised.get(), width };
                let products = Products { to: logits_at.get(), stride: vocabulary, add: false };
                matrix.multiply_tiles(isa, worker.share(matrix.tiles(), 1), &columns, products);
            }
        });
        &mut self.regions[2].floats_mut()[..rows.len() * vocabulary]
    }
}

/// Norms every row of `length` floats in place.
pub(super) fn normalise(isa: Isa, pool: &Pool, hidden: &mut [f32], length: usize, norm: &RowNorm) {
    let rows = hidden.len() / length;
    let hidden = Shared(hidden.as_mut_ptr());
    pool.run(&|worker: &Worker<'_>| {
        for row in worker.share(rows, 1) {
            // SAFETY: the row is in the hidden state, and this thread's alone.
            unsafe {
                let at = hidden.get().add(row * length);
                norm.apply(isa, at, at);
            }
        }
    });
}
