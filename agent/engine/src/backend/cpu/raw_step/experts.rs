//! What a step does with experts: all tokens of a batch that go to one are multiplied with it together, a few at a time.

use std::mem::MaybeUninit;
use std::ops::Range;

use super::{Step, activate};
use crate::backend::cpu::experts::{Choice, ExpertWeights};
use crate::graph::Operand;
use crate::kernels::matrix::{Columns, Matrix, Products};
use crate::kernels::{BLOCK, BLOCK_BYTES, Isa, ROWS};
use crate::pool::Worker;

/// Which of the experts' buffers is which.
const GATES: usize = 2;
const UPS: usize = 3;
const QUANTISED: usize = 4;

/// Tokens of one expert that are multiplied together at most.
const TOGETHER: usize = 8;
/// Longest columns that are put together; longer ones are multiplied one by one.
const LONGEST: usize = 16384;

/// A token that goes to an expert, and which of the token's experts that is.
#[derive(Clone, Copy, Default)]
struct Pair {
    row: usize,
    index: usize,
}

/// One token's activations.
#[derive(Clone, Copy)]
struct Column {
    floats: *const f32,
    /// As `rows::quantise` makes them of a column alone.
    quantised: *const u8,
}

/// Room for a group of columns, on the stack.
struct Group([MaybeUninit<u32>; TOGETHER * LONGEST / BLOCK * (BLOCK_BYTES / 4)]);

impl Group {
    /// Puts columns side by side, in the form that `rows::quantise` gives a group of `width`. Where there are fewer, the last stands for what is missing.
    ///
    /// # Safety
    ///
    /// The columns are quantised, each `length` weights long, which is at most [`LONGEST`]; `width` is at most [`TOGETHER`].
    unsafe fn gather(&mut self, columns: &[Column], length: usize, width: usize) -> *const u8 {
        let to: *mut u32 = self.0.as_mut_ptr().cast();
        for c in 0..width {
            let from = columns[c.min(columns.len() - 1)].quantised.cast::<u32>();
            for word in 0..length / BLOCK * (BLOCK_BYTES / 4) {
                // SAFETY: by the contract of this function.
                unsafe { *to.add(word * width + c) = *from.add(word) };
            }
        }
        to.cast()
    }
}

impl Step<'_> {
    /// The experts that a token goes to.
    #[allow(clippy::mut_from_ref)]
    pub(super) unsafe fn choices(&self, row: usize, used: usize) -> &mut [Choice] {
        // SAFETY: the caller gives a row of the batch, which is this thread's while it is written.
        unsafe { std::slice::from_raw_parts_mut(self.experts[1].cast::<Choice>().add(row * used), used) }
    }

    /// Gate, or up, of the `index`-th expert of a token, and of all tokens.
    unsafe fn expert_row(&self, buffer: usize, row: usize, index: usize) -> *mut f32 {
        let (used, width) = (self.shape.experts_used as usize, self.shape.expert_feed_forward as usize);
        // SAFETY: the caller gives a row of the batch and one of its experts.
        unsafe { self.experts[buffer].add((row * used + index) * width) }
    }

    pub(super) unsafe fn activate_experts(&self, experts: &ExpertWeights, row: usize) {
        let length = experts.feed_forward;
        // SAFETY: gate and up have `feed_forward` floats for each of the token's experts.
        unsafe {
            for (index, choice) in self.choices(row, experts.used).iter().enumerate() {
                let (gate, up) = (self.expert_row(GATES, row, index), self.expert_row(UPS, row, index));
                let (gates, ups) = (std::slice::from_raw_parts_mut(gate, length), std::slice::from_raw_parts_mut(up, length));
                experts.add_biases(choice.expert as usize, gates, ups);
                activate(self.isa, experts.activation, gate, up, length);
                self.isa.scale(gate, choice.weight, length);
                if experts.down.is_quantised() {
                    self.isa.quantise(gate, length, 0, 1, self.expert_column(row, index, length));
                }
            }
        }
    }

    /// Where the gate of the `index`-th expert of a token is quantised.
    unsafe fn expert_column(&self, row: usize, index: usize, length: usize) -> *mut u8 {
        let at = (row * self.shape.experts_used as usize + index) * (length / BLOCK) * BLOCK_BYTES;
        // SAFETY: the caller gives a row of the batch and one of its experts.
        unsafe { self.experts[QUANTISED].cast::<u8>().add(at) }
    }

    /// Calls `with` for each expert that any token goes to, with as many of those tokens at a time as make a group.
    unsafe fn each_group(&self, experts: &ExpertWeights, mut with: impl FnMut(usize, &[Pair])) {
        // SAFETY: choices were made before this phase, and are only read in it.
        let choices: &[Choice] = unsafe { std::slice::from_raw_parts(self.experts[1].cast(), self.tokens.len() * experts.used) };
        let most = self.isa.group_width(TOGETHER);
        for expert in 0..experts.count {
            let (mut pairs, mut count) = ([Pair::default(); TOGETHER], 0);
            for (at, _) in choices.iter().enumerate().filter(|(_, choice)| choice.expert as usize == expert) {
                pairs[count] = Pair { row: at / experts.used, index: at % experts.used };
                count += 1;
                if count == most {
                    with(expert, &pairs[..most]);
                    count = 0;
                }
            }
            if count > 0 {
                with(expert, &pairs[..count]);
            }
        }
    }

    pub(super) unsafe fn experts_up(&self, experts: &ExpertWeights, worker: &Worker<'_>) {
        let tiles = experts.feed_forward.div_ceil(ROWS);
        let share = worker.share(tiles, 1);
        let (floats, stride) = self.value(Operand::Normed);
        let column_bytes = experts.gate.columns / BLOCK * BLOCK_BYTES;
        // SAFETY: passed on to the caller; each tile of each expert is one thread's.
        unsafe {
            self.each_group(experts, |expert, pairs| {
                let column = |pair: &Pair| Column {
                    floats: floats.add(pair.row * stride),
                    quantised: self.quantised().wrapping_add(pair.row * column_bytes),
                };
                for (matrix, buffer) in [(&experts.gate, GATES), (&experts.up, UPS)] {
                    let to = |pair: &Pair| self.expert_row(buffer, pair.row, pair.index);
                    multiply(self.isa, matrix, expert * tiles, &share, pairs, column, to, false);
                }
            });
        }
    }

    pub(super) unsafe fn experts_down(&self, experts: &ExpertWeights, worker: &Worker<'_>) {
        let tiles = experts.embedding.div_ceil(ROWS);
        let share = worker.share(tiles, 1);
        let length = experts.feed_forward;
        // SAFETY: passed on to the caller; each tile of each token's hidden state is one thread's, whichever the expert.
        unsafe {
            self.each_group(experts, |expert, pairs| {
                let column = |pair: &Pair| Column {
                    floats: self.expert_row(GATES, pair.row, pair.index),
                    quantised: self.expert_column(pair.row, pair.index, length),
                };
                let to = |pair: &Pair| self.row(Operand::Hidden, pair.row);
                multiply(self.isa, &experts.down, expert * tiles, &share, pairs, column, to, true);
            });
        }
    }
}

/// Some tiles of one expert, whose first tile is `first`, times the columns of some tokens.
///
/// # Safety
///
/// As for `Matrix::multiply`; what `to` gives has room for the rows of one expert, and is another for each pair.
#[allow(clippy::too_many_arguments)]
unsafe fn multiply(
    isa: Isa,
    matrix: &Matrix,
    first: usize,
    tiles: &Range<usize>,
    pairs: &[Pair],
    column: impl Fn(&Pair) -> Column,
    to: impl Fn(&Pair) -> *mut f32,
    add: bool,
) {
    if pairs.len() == 1 || !matrix.is_quantised() || matrix.columns > LONGEST {
        for pair in pairs {
            let Column { floats, quantised } = column(pair);
            let columns = Columns { tokens: 1, floats, stride: 0, quantised, width: 1 };
            // Rows are counted from the expert's first.
            let products = Products { to: to(pair).wrapping_sub(first * ROWS), stride: 0, add };
            // SAFETY: by the contract of this function.
            unsafe { matrix.multiply_tiles(isa, first + tiles.start..first + tiles.end, &columns, products) };
        }
        return;
    }
    let mut group = Group([MaybeUninit::uninit(); _]);
    let mut columns = [column(&pairs[0]); TOGETHER];
    columns.iter_mut().zip(pairs).for_each(|(to, pair)| *to = column(pair));
    let width = isa.group_width(pairs.len());
    // SAFETY: by the contract of this function.
    let quantised = unsafe { group.gather(&columns[..pairs.len()], matrix.columns, width) };
    let columns = Columns { tokens: pairs.len(), floats: std::ptr::null(), stride: 0, quantised, width };
    for tile in tiles.clone() {
        let rows = ROWS.min(matrix.rows - (first + tile) * ROWS);
        let mut products = [0f32; TOGETHER * ROWS];
        let into = Products { to: products.as_mut_ptr().wrapping_sub((first + tile) * ROWS), stride: ROWS, add: false };
        // SAFETY: by the contract of this function; there is room for a tile of each column.
        unsafe {
            matrix.multiply(isa, first + tile, &columns, into);
            for (pair, products) in pairs.iter().zip(products.chunks_exact(ROWS)) {
                let to = to(pair).add(tile * ROWS);
                for (row, product) in products.iter().enumerate().take(rows) {
                    *to.add(row) = if add { *to.add(row) + product } else { *product };
                }
            }
        }
    }
}
