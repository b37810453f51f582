//! The product of one tile of weights with one group of quantised columns: what the kernels of all instruction sets compute.

use stowage_placement::gguf::GgmlType;

use super::tile::ROWS;

/// What a tile's bytes are: a type that is interleaved when it is packed, or panels that were unpacked from any other.
///
/// A panel's weights are at most 63; those of a wide one fill their byte, and its minimum is -128 times its scale.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    Q4_0,
    Q4_1,
    Q8_0,
    Q4K,
    Q6K,
    Panel,
    WidePanel,
}

impl Format {
    pub fn of(ty: GgmlType) -> Format {
        match ty {
            GgmlType::Q4_0 => Format::Q4_0,
            GgmlType::Q4_1 => Format::Q4_1,
            GgmlType::Q8_0 => Format::Q8_0,
            GgmlType::Q4_K => Format::Q4K,
            GgmlType::Q6_K => Format::Q6K,
            GgmlType::IQ4_NL | GgmlType::IQ4_XS | GgmlType::MXFP4 => Format::WidePanel,
            _ => Format::Panel,
        }
    }

    pub fn is_panel(self) -> bool {
        matches!(self, Format::Panel | Format::WidePanel)
    }
}

/// Most columns in a group.
pub const MOST_COLUMNS: usize = 8;

/// One tile times one group. `to` has a row for each column of the group: `to[column x stride + row]`.
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
    /// Writes the results of one column.
    ///
    /// # Safety
    ///
    /// `to` has room for the wanted rows and columns.
    #[inline(always)]
    pub unsafe fn finish(&self, column: usize, results: &[f32; ROWS]) {
        // SAFETY: by the contract of this function.
        unsafe {
            let to = self.to.add(column * self.stride);
            for (row, result) in results.iter().enumerate().take(self.rows) {
                let before = if self.add { *to.add(row) } else { 0.0 };
                *to.add(row) = before + result;
            }
        }
    }
}
