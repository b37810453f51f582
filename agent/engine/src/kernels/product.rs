//! The product of one tile of weights with one group of quantised columns: what the kernels of all instruction sets compute.

use super::tile::ROWS;

/// Most columns in a group.
pub const MOST_COLUMNS: usize = 8;

/// One tile, or panels unpacked from it, times one group. `to` has a row for each column of the group: `to[column x stride + row]`.
#[derive(Clone, Copy)]
pub struct TileProduct {
    pub tile: *const u8,
    /// Blocks of 32 weights in a row.
    pub blocks: usize,
    /// Quantised activations, see `rows::quantise`, of as many blocks.
    pub group: *const u8,
    /// Columns in the group's layout.
    pub width: usize,
    /// Columns whose result is wanted, at most `width`.
    pub columns: usize,
    /// Rows whose result is wanted, at most 16.
    pub rows: usize,
    pub to: *mut f32,
    pub stride: usize,
    /// Adds to what is there.
    pub add: bool,
}

impl TileProduct {
    /// What the results of one column are added to. They are added to it from the first block on, so that it makes no difference whether a row's
    /// blocks are multiplied at once or in parts.
    ///
    /// # Safety
    ///
    /// `to` has the wanted rows and columns.
    #[inline(always)]
    pub unsafe fn begin(&self, column: usize) -> [f32; ROWS] {
        let mut results = [0f32; ROWS];
        if self.add {
            // SAFETY: by the contract of this function.
            unsafe { std::ptr::copy_nonoverlapping(self.to.add(column * self.stride), results.as_mut_ptr(), self.rows) };
        }
        results
    }

    /// Writes the results of one column.
    ///
    /// # Safety
    ///
    /// `to` has room for the wanted rows and columns.
    #[inline(always)]
    pub unsafe fn finish(&self, column: usize, results: &[f32; ROWS]) {
        // SAFETY: by the contract of this function.
        unsafe { std::ptr::copy_nonoverlapping(results.as_ptr(), self.to.add(column * self.stride), self.rows) };
    }
}
