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

/// The columns of some tokens, and room to put them side by side, on the stack.
struct Group {
    columns: [Column; TOGETHER],
    count: usize,
    room: [MaybeUninit<u32>; TOGETHER * LONGEST / BLOCK * (BLOCK_BYTES / 4)],
    is_gathered: bool,
}

impl Group {
    #[inline(always)]
    fn new(pairs: &[Pair], column: impl Fn(&Pair) -> Column) -> Group {
        // Where there are fewer, the last stands for what is missing.
        let columns = std::array::from_fn(|c| column(&pairs[c.min(pairs.len() - 1)]));
        Group { columns, count: pairs.len(), room: [MaybeUninit::uninit(); _], is_gathered: false }
    }

    /// The columns side by side, in the form that `rows::quantise` gives a group of `width`.
    ///
    /// # Safety
    ///
    /// The columns are quantised, each `length` weights long, which is at most [`LONGEST`]; `width` is at most [`TOGETHER`]; both are the same in all calls.
    unsafe fn gathered(&mut self, length: usize, width: usize) -> *const u8 {
        let to: *mut u32 = self.room.as_mut_ptr().cast();
        if !self.is_gathered {
            for (c, column) in self.columns[..width].iter().enumerate() {
                let from = column.quantised.cast::<u32>();
                for word in 0..length / BLOCK * (BLOCK_BYTES / 4) {
                    // SAFETY: by the contract of this function.
                    unsafe { *to.add(word * width + c) = *from.add(word) };
                }
            }
            self.is_gathered = true;
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
                let mut group = Group::new(pairs, column);
                for (matrix, buffer) in [(&experts.gate, GATES), (&experts.up, UPS)] {
                    let to = |c: usize| self.expert_row(buffer, pairs[c].row, pairs[c].index);
                    multiply(self.isa, matrix, expert * tiles, &share, &mut group, to, false);
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
                let to = |c: usize| self.row(Operand::Hidden, pairs[c].row);
                multiply(self.isa, &experts.down, expert * tiles, &share, &mut Group::new(pairs, column), to, true);
            });
        }
    }
}

/// Some tiles of one expert, whose first tile is `first`, times the columns of some tokens. A token's products are the same whatever others there are.
///
/// # Safety
///
/// As for `Matrix::multiply`; what `to` gives has room for the rows of one expert, and is another for each column.
unsafe fn multiply(
    isa: Isa,
    matrix: &Matrix,
    first: usize,
    tiles: &Range<usize>,
    group: &mut Group,
    to: impl Fn(usize) -> *mut f32,
    add: bool,
) {
    let count = group.count;
    if count == 1 || !matrix.is_quantised() || matrix.columns > LONGEST {
        for (c, Column { floats, quantised }) in group.columns.into_iter().enumerate().take(count) {
            let columns = Columns { tokens: 1, floats, stride: 0, quantised, width: 1 };
            // Rows are counted from the expert's first.
            let products = Products { to: to(c).wrapping_sub(first * ROWS), stride: 0, add };
            // SAFETY: by the contract of this function.
            unsafe { matrix.multiply_tiles(isa, first + tiles.start..first + tiles.end, &columns, products) };
        }
        return;
    }
    let width = isa.group_width(count);
    // SAFETY: by the contract of this function.
    let quantised = unsafe { group.gathered(matrix.columns, width) };
    let columns = Columns { tokens: count, floats: std::ptr::null(), stride: 0, quantised, width };
    for tile in tiles.clone() {
        let rows = ROWS.min(matrix.rows - (first + tile) * ROWS);
        let mut products = [[0f32; ROWS]; TOGETHER];
        // SAFETY: by the contract of this function; there is room for a tile of each column.
        unsafe {
            for (c, products) in products.iter_mut().enumerate().take(if add { count } else { 0 }) {
                std::ptr::copy_nonoverlapping(to(c).add(tile * ROWS), products.as_mut_ptr(), rows);
            }
            let into = products.as_mut_ptr().cast::<f32>().wrapping_sub((first + tile) * ROWS);
            matrix.multiply(isa, first + tile, &columns, Products { to: into, stride: ROWS, add });
            for (c, products) in products.iter().enumerate().take(count) {
                std::ptr::copy_nonoverlapping(products.as_ptr(), to(c).add(tile * ROWS), rows);
            }
        }
    }
}
