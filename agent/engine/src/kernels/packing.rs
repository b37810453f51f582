//! A tensor of several rows on its way from the model's file to the form that kernels want, tile by tile.

use std::ops::Range;

use stowage_placement::Reason;

use super::held::{Form, Held};
use super::matrix::{Activations, Matrix, Weights};
use super::rows::BLOCK;
use super::tile::{self, ROWS};
use crate::api::EngineError;
use crate::file_mmap::TensorView;

/// Of this form. To be raised when tiles, or what a matrix of plain rows holds, change: what an earlier version kept in files is then packed anew.
pub const VERSION: u32 = 1;

/// Bytes of a tensor that are packed before the file's pages with them are let go of.
const PACKED_AT_ONCE: usize = 16 << 20;

/// A tensor that fits where it is to go.
pub struct Packing<'a> {
    view: &'a TensorView<'a>,
    weights: Weights,
    /// Of one row, as in the file.
    row_bytes: usize,
}

impl<'a> Packing<'a> {
    /// Errors: EngineCannotRun where the tensor's type has no kernels, LoadFailed where it takes more than `room` bytes.
    pub fn of(view: &'a TensorView<'a>, room: usize) -> Result<Packing<'a>, EngineError> {
        let (rows, columns) = (view.rows, view.columns);
        let Some(weights) = Weights::of(view.ggml_type) else {
            let message = format!("tensor `{}` has type {}, for which there are no kernels", view.name, view.ggml_type);
            return Err(EngineError::new(Reason::EngineCannotRun, message));
        };
        let packing = Packing { view, weights, row_bytes: view.data.len() / rows };
        if room < packing.bytes() || (weights.are_tiled() && !columns.is_multiple_of(BLOCK)) {
            let message =
                format!("tensor `{}` of {rows} x {columns} {} does not fit in the {room} bytes planned for it", view.name, view.ggml_type);
            return Err(EngineError::new(Reason::LoadFailed, message));
        }
        Ok(packing)
    }

    pub fn matrix(&self, activations: Activations, held: Held) -> Matrix {
        Matrix { weights: self.weights, rows: self.view.rows, columns: self.view.columns, row_bytes: self.row_bytes, activations, held }
    }

    /// In what form the tensor's own file has it.
    pub fn form(&self) -> Form {
        if self.weights.are_tiled() { Form::Rows { piece: ROWS * self.row_bytes } } else { Form::Packed }
    }

    pub fn tiles(&self) -> usize {
        self.view.rows.div_ceil(ROWS)
    }

    /// All tiles, in the pieces in which they are packed.
    pub fn pieces(&self) -> impl Iterator<Item = Range<usize>> {
        let (tiles, at_once) = (self.tiles(), (PACKED_AT_ONCE / (ROWS * self.row_bytes)).max(1));
        (0..tiles).step_by(at_once).map(move |first| first..tiles.min(first + at_once))
    }

    fn bytes(&self) -> usize {
        let rows = if self.weights.are_tiled() { self.tiles() * ROWS } else { self.view.rows };
        rows * self.row_bytes
    }

    /// Where a tile goes, as its first byte and its length.
    pub fn place(&self, tile: usize) -> (usize, usize) {
        let start = tile * ROWS * self.row_bytes;
        (start, (ROWS * self.row_bytes).min(self.bytes() - start))
    }

    /// Packs a tile to its place.
    pub fn pack(&self, tile: usize, to: &mut [u8]) {
        let from = &self.view.data[self.source(tile..tile + 1)];
        match self.weights {
            Weights::Tiled(format) => tile::pack(format, from, self.row_bytes, to),
            Weights::Plain(_) => to.copy_from_slice(from),
        }
    }

    /// Lets go of what these tiles were made of.
    pub fn let_go(&self, tiles: Range<usize>) {
        self.view.let_go(self.source(tiles));
    }

    fn source(&self, tiles: Range<usize>) -> Range<usize> {
        let at = |tile: usize| (tile * ROWS * self.row_bytes).min(self.view.data.len());
        at(tiles.start)..at(tiles.end)
    }
}
