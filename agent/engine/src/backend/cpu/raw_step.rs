//! One step on the CPU, over buffers that all threads share.
//!
//! The rule that makes the raw pointers sound: within a phase, each row of a value (in `Rows`), each tile's columns of a product (in `Multiply`) and
//! each head of a token (in `Attend`) is written by one thread alone and read by no other; between phases the threads meet.

use stowage_placement::compute::ComputeShape;

use super::program::{Layer, Part, Phase, RowStep};
use crate::api::EngineError;
use crate::arena::Region;
use crate::batch::{Batch, TokenAt};
use crate::cache::LayerCache;
use crate::graph::Operand;
use crate::kernels::matrix::{Columns, Matrix, Products};
use crate::kernels::{BLOCK, BLOCK_BYTES, Head, Isa, Query};
use crate::pool::{Pool, Worker};

/// Quantised activations that a pass over a matrix goes through at once, so that they stay in the second-level cache.
const PASS_BYTES: usize = 512 << 10;
/// Tokens of one sequence whose attention is one piece of work.
const SPAN_TOKENS: usize = 8;

/// Scratch memory of the blocks.
pub(super) struct Buffers {
    shape: ComputeShape,
    /// Normed, Query, Key, Value, Attended, Gate, Up; quantised activations; each token's rotation. As `placement::compute::layer_buffers` orders them.
    regions: [Region; 9],
    frequencies: Vec<f32>,
    spans: Vec<Span>,
}

/// Neighbouring tokens of one sequence.
#[derive(Clone, Copy)]
struct Span {
    slot: usize,
    first: usize,
    count: usize,
}

/// What the threads of one step share.
struct Step<'a> {
    isa: Isa,
    shape: &'a ComputeShape,
    tokens: &'a [TokenAt],
    spans: &'a [Span],
    frequencies: &'a [f32],
    /// Columns in a group of quantised activations.
    width: usize,
    hidden: *mut f32,
    buffers: [*mut f32; 9],
}

// SAFETY: the pointers are to buffers that outlive the step; threads keep to the rule of this module.
unsafe impl Sync for Step<'_> {}

impl Buffers {
    pub fn new(shape: &ComputeShape, frequencies: Vec<f32>, num_batch: usize, regions: [Region; 9]) -> Result<Buffers, EngineError> {
        Ok(Buffers { shape: *shape, regions, frequencies, spans: Vec::with_capacity(num_batch) })
    }

    /// Takes the hidden state of the batch's tokens through the layers.
    pub fn step(&mut self, isa: Isa, pool: &Pool, layers: &[&Layer], batch: &Batch, hidden: &mut [f32]) {
        assert!(hidden.len() >= batch.tokens.len() * self.shape.embedding as usize, "a row for each token");
        self.spans.clear();
        spans(&batch.tokens, &mut self.spans);
        let step = Step {
            isa,
            shape: &self.shape,
            tokens: &batch.tokens,
            spans: &self.spans,
            frequencies: &self.frequencies,
            width: isa.group_width(batch.tokens.len()),
            hidden: hidden.as_mut_ptr(),
            buffers: std::array::from_fn(|i| self.regions[i].floats_mut().as_mut_ptr()),
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

fn spans(tokens: &[TokenAt], spans: &mut Vec<Span>) {
    for (index, token) in tokens.iter().enumerate() {
        match spans.last_mut() {
            Some(span) if span.slot == token.slot as usize && span.count < SPAN_TOKENS => span.count += 1,
            _ => spans.push(Span { slot: token.slot as usize, first: index, count: 1 }),
        }
    }
}

impl Step<'_> {
    /// Where a value's rows begin, and how many floats they are apart.
    fn value(&self, value: Operand) -> (*mut f32, usize) {
        let shape = self.shape;
        let (index, width) = match value {
            Operand::Hidden => return (self.hidden, shape.embedding as usize),
            Operand::Normed => (0, shape.embedding),
            Operand::Query => (1, shape.heads * shape.key_length),
            Operand::Key => (2, shape.kv_heads_max * shape.key_length),
            Operand::Value => (3, shape.kv_heads_max * shape.value_length),
            Operand::Attended => (4, shape.heads * shape.value_length),
            Operand::Gate => (5, shape.feed_forward),
            Operand::Up => (6, shape.feed_forward),
        };
        (self.buffers[index], width as usize)
    }

    unsafe fn row(&self, value: Operand, row: usize) -> *mut f32 {
        let (start, width) = self.value(value);
        // SAFETY: the caller gives a row of the batch.
        unsafe { start.add(row * width) }
    }

    fn quantised(&self) -> *mut u8 {
        self.buffers[7].cast()
    }

    /// `key_length` floats: cosines, then sines.
    unsafe fn rotation(&self, row: usize) -> *mut f32 {
        // SAFETY: the caller gives a row of the batch.
        unsafe { self.buffers[8].add(row * self.shape.key_length as usize) }
    }

    /// This thread's tokens, in whole groups.
    fn rows(&self, worker: &Worker<'_>) -> std::ops::Range<usize> {
        worker.share(self.tokens.len(), self.width)
    }

    /// Angles of this thread's tokens. In f64, so that far positions are as exact as near ones.
    unsafe fn rotations(&self, worker: &Worker<'_>) {
        let pairs = self.frequencies.len();
        for row in self.rows(worker) {
            let position = f64::from(self.tokens[row].position);
            for (i, frequency) in self.frequencies.iter().enumerate() {
                let (sin, cos) = (position * f64::from(*frequency)).sin_cos();
                // SAFETY: the row has room for two numbers a pair.
                unsafe {
                    *self.rotation(row).add(i) = cos as f32;
                    *self.rotation(row).add(pairs + i) = sin as f32;
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
                Phase::Attend { heads, scale, to } => self.attend(*heads, *scale, *to, cache, worker),
            }
        }
    }

    unsafe fn row_step(&self, step: &RowStep, row: usize, cache: &LayerCache) {
        // SAFETY: rows have the widths of their values, which are those that the weights were checked to have.
        unsafe {
            match step {
                RowStep::Norm { from, weight, epsilon, to } => {
                    let weight = weight.floats();
                    self.isa.norm(self.row(*from, row), weight.as_ptr(), weight.len(), *epsilon, self.row(*to, row));
                }
                RowStep::Quantise { from, length } => {
                    let group = row / self.width * self.width * (length / BLOCK) * BLOCK_BYTES;
                    self.isa.quantise(self.row(*from, row), *length, row % self.width, self.width, self.quantised().add(group));
                }
                RowStep::Rotate { value, heads } => {
                    let (length, pairs) = (self.shape.key_length as usize, self.frequencies.len());
                    self.isa.rotate(self.row(*value, row), *heads, length, self.rotation(row), pairs);
                }
                RowStep::Store => {
                    let TokenAt { slot, position, .. } = self.tokens[row];
                    cache.store(slot as usize, position as usize, self.row(Operand::Key, row), self.row(Operand::Value, row));
                }
                RowStep::GatedActivation { gate, up, length } => {
                    self.isa.gated_silu(self.row(*gate, row), self.row(*up, row), *length);
                }
            }
        }
    }

    unsafe fn multiply(&self, from: Operand, parts: &[Part], worker: &Worker<'_>) {
        let total = parts.iter().map(|part| part.matrix.tiles()).sum();
        let share = worker.share(total, 1);
        let (floats, stride) = self.value(from);
        let columns = Columns { tokens: self.tokens.len(), floats, stride, quantised: self.quantised(), width: self.width };
        let mut before = 0;
        for Part { matrix, to, add } in parts {
            let tiles =
                share.start.clamp(before, before + matrix.tiles()) - before..share.end.clamp(before, before + matrix.tiles()) - before;
            before += matrix.tiles();
            let (to, stride) = self.value(*to);
            // SAFETY: passed on to the caller; the tiles are this thread's.
            unsafe { multiply_tiles(self.isa, matrix, tiles, &columns, Products { to, stride, add: *add }) };
        }
    }

    unsafe fn attend(&self, heads: usize, scale: f32, to: Operand, cache: &LayerCache, worker: &Worker<'_>) {
        let shape = cache.shape();
        let pieces = self.spans.len() * shape.kv_heads;
        for piece in (worker.index..pieces).step_by(worker.count) {
            let (span, kv_head) = (self.spans[piece / shape.kv_heads], piece % shape.kv_heads);
            let (keys, values) = cache.head(span.slot, kv_head);
            let head = Head { keys, values, key_length: shape.key_length, value_length: shape.value_length, scale };
            let sharing = heads / shape.kv_heads;
            let query = |index: usize| {
                let (row, of_heads) = (span.first + index / sharing, kv_head * sharing + index % sharing);
                // SAFETY: a row of the batch, and one of its heads.
                unsafe {
                    Query {
                        from: self.row(Operand::Query, row).add(of_heads * shape.key_length),
                        to: self.row(to, row).add(of_heads * shape.value_length),
                        positions: self.tokens[row].position as usize + 1,
                    }
                }
            };
            for first in (0..span.count * sharing).step_by(8) {
                let count = (span.count * sharing - first).min(8);
                let queries: [Query; 8] = std::array::from_fn(|i| query(first + i.min(count - 1)));
                // SAFETY: all that the queries see was stored before this phase, and each head of each row is one query's alone.
                unsafe { self.isa.attend(&head, &queries[..count]) };
            }
        }
    }
}

/// Some of a matrix's tiles times all columns, in passes over as many columns as a cache holds.
///
/// # Safety
///
/// As for `Matrix::multiply`.
unsafe fn multiply_tiles(isa: Isa, matrix: &Matrix, tiles: std::ops::Range<usize>, columns: &Columns, products: Products) {
    let column_bytes = (matrix.columns.div_ceil(BLOCK) * BLOCK_BYTES).max(1);
    let pass = (PASS_BYTES / column_bytes / columns.width).max(1) * columns.width;
    for first in (0..columns.tokens).step_by(pass) {
        // SAFETY: by the contract of this function; `first` is the beginning of a group.
        unsafe {
            let columns = Columns {
                tokens: pass.min(columns.tokens - first),
                floats: columns.floats.add(first * columns.stride),
                quantised: columns.quantised.wrapping_add(first * column_bytes),
                ..*columns
            };
            let products = Products { to: products.to.add(first * products.stride), ..products };
            for tile in tiles.clone() {
                matrix.multiply(isa, tile, &columns, products);
            }
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
    pub fn logits(&mut self, isa: Isa, pool: &Pool, rows: &[u32], hidden: &[f32], norm: (&[f32], f32), matrix: &Matrix) -> &[f32] {
        let (weight, epsilon) = norm;
        let (embedding, vocabulary) = (weight.len(), matrix.rows);
        assert!(rows.len() <= self.rows && rows.iter().all(|&row| (row as usize + 1) * embedding <= hidden.len()), "rows are there");
        let width = isa.group_width(rows.len());
        let [normed, quantised, logits] = &mut self.regions;
        let (normed, logits_at) = (Shared(normed.floats_mut().as_mut_ptr()), Shared(logits.floats_mut().as_mut_ptr()));
        let quantised = Shared(quantised.bytes_mut().as_mut_ptr());
        pool.run(&|worker: &Worker<'_>| {
            // SAFETY: the buffers have room for `self.rows` rows, and threads keep to the rule of this module.
            unsafe {
                for index in worker.share(rows.len(), width) {
                    let from = hidden.as_ptr().add(rows[index] as usize * embedding);
                    let to = normed.get().add(index * embedding);
                    isa.norm(from, weight.as_ptr(), embedding, epsilon, to);
                    if matrix.is_quantised() {
                        let group = quantised.get().add(index / width * width * (embedding / BLOCK) * BLOCK_BYTES);
                        isa.quantise(to, embedding, index % width, width, group);
                    }
                }
                worker.meet();
                let columns = Columns { tokens: rows.len(), floats: normed.get(), stride: embedding, quantised: quantised.get(), width };
                let products = Products { to: logits_at.get(), stride: vocabulary, add: false };
                multiply_tiles(isa, matrix, worker.share(matrix.tiles(), 1), &columns, products);
            }
        });
        &self.regions[2].floats()[..rows.len() * vocabulary]
    }
}

/// Norms every row in place.
pub(super) fn normalise(isa: Isa, pool: &Pool, hidden: &mut [f32], weight: &[f32], epsilon: f32) {
    let length = weight.len();
    let rows = hidden.len() / length;
    let hidden = Shared(hidden.as_mut_ptr());
    pool.run(&|worker: &Worker<'_>| {
        for row in worker.share(rows, 1) {
            // SAFETY: the row is in the hidden state, and this thread's alone.
            unsafe {
                let at = hidden.get().add(row * length);
                isa.norm(at, weight.as_ptr(), length, epsilon, at);
            }
        }
    });
}
