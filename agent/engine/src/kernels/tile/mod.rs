//! How quantised weights lie in memory: tiles of 16 rows. And the one scalar reading of every type, from which each faster kernel is checked.
//!
//! A tile interleaves its rows in groups of 4 columns: of 8-bit weights, columns 4g to 4g + 3 of row r stand at byte `(16 g + r) x 4`, so that one vector
//! holds 4 columns of 8 or 16 rows, which is what the CPU's dot-product instructions take. Where codes have fewer bits, several groups share those 64
//! bytes, the first in the lowest bits: 2 groups of 4 bits, 4 of 2 bits, 8 of 1 bit. Codes of 3, 5 and 6 bits are two such planes, which take turns
//! at every 32 columns. No tile is larger than its 16 rows are in the file.
//!
//! | type | a tile's block, in this order; each `[16]` is a value a row |
//! |---|---|
//! | Q4_0 | scales f16; 4 bits |
//! | Q4_1 | scales f16; minima f16; 4 bits |
//! | Q5_0 | scales f16; 4 low bits; 1 high bit |
//! | Q5_1 | scales f16; minima f16; 4 low bits; 1 high bit |
//! | Q8_0 | scales f16; 8 bits, signed |
//! | Q2_K | scales f16; minima f16; `[16][16]` scale and minimum of each 16 columns, 4 bits each; 2 bits |
//! | Q3_K | scales f16; `[8][16]` low 4 bits of the scales of both halves of each 32 columns; `[4][16]` their high 2 bits; 2 low bits; 1 high bit |
//! | Q4_K | scales f16; minima f16; `[8][16]` low 4 bits of scale and minimum of each 32 columns; `[4][16]` their high 2 bits; 4 bits |
//! | Q5_K | as Q4_K; 4 low bits; 1 high bit |
//! | Q6_K | scales f16; `[16][16]` scales of each 16 columns i8; 4 low bits; 2 high bits |
//! | IQ4_NL | scales f16; 4 bits |
//! | IQ4_XS | scales f16; `[4][16]` low 4 bits of the scales of each 32 columns; `[2][16]` their high 2 bits; 4 bits |
//! | MXFP4 | `[16]` exponents; 4 bits |

mod pack;
mod unpack;

pub use pack::pack;
pub use unpack::{IQ4_VALUES, MXFP4_DOUBLED, unpack};

/// Rows of a tile.
pub const ROWS: usize = 16;

/// 32 columns of 16 rows in a form that all types can be brought into: weight = `scale x q + minimum`, with a scale and a minimum for each half of the
/// columns. Interleaved as a tile of 8 bits is.
#[repr(C, align(64))]
#[derive(Clone)]
pub struct Panel {
    pub q: [u8; 512],
    pub scale: [[f32; ROWS]; 2],
    pub minimum: [[f32; ROWS]; 2],
}

impl Panel {
    pub const EMPTY: Panel = Panel { q: [0; 512], scale: [[0.0; ROWS]; 2], minimum: [[0.0; ROWS]; 2] };

    /// Weight at `column` (below 32) of `row`.
    pub fn weight(&self, row: usize, column: usize) -> f32 {
        let half = column / 16;
        self.scale[half][row] * f32::from(self.q[at(row, column)]) + self.minimum[half][row]
    }
}

/// Where a panel has the byte of `column` (below 32) of `row`.
const fn at(row: usize, column: usize) -> usize {
    column / 4 * 64 + row * 4 + column % 4
}
