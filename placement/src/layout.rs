//! Bytes that a backend allocates for a tensor. The engine allocates by these functions, so prediction and allocation can't differ.
//!
//! On the CPU a matrix is held in tiles of 16 rows, in which a quantised block takes what it takes in the file: the only growth is the rows
//! that fill up the last tile, and the 64 bytes that each tensor is rounded up to.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::gguf::GgmlType;
use crate::units::Bytes;

/// Rows of a tile: what one pass of the CPU's kernels multiplies at once.
pub const TILE_ROWS: u64 = 16;

/// What computes the layers on a device.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Backend {
    /// candle-core tensors in f32: what the others are compared to.
    Reference,
    #[default]
    Cpu,
    /// The CPU's kernels, charged to a GPU that isn't there. For tests.
    #[serde(rename = "simulated")]
    SimulatedGpu,
    Cuda,
}

impl Backend {
    pub const fn as_str(self) -> &'static str {
        match self {
            Backend::Reference => "reference",
            Backend::Cpu => "cpu",
            Backend::SimulatedGpu => "simulated",
            Backend::Cuda => "cuda",
        }
    }

    /// Each allocation is a multiple of this.
    pub const fn alignment(self) -> u64 {
        match self {
            Backend::Reference | Backend::Cpu | Backend::SimulatedGpu => 64,
            Backend::Cuda => 256,
        }
    }

    /// `bytes` as this backend allocates them. `None`: more than 64 bits hold.
    pub fn aligned(self, bytes: u64) -> Option<Bytes> {
        bytes.checked_next_multiple_of(self.alignment()).map(Bytes)
    }
}

/// What a backend allocates for a tensor of `rows` rows of `columns` elements of type `ty`, scratch and cache aside.
///
/// A tensor of one row (a norm's weights, a bias) is held as f32 whatever it is in the file. `None`: more than 64 bits hold, or `columns` is
/// not a whole number of blocks.
pub fn weight_bytes(ty: GgmlType, rows: u64, columns: u64, backend: Backend) -> Option<Bytes> {
    if rows == 1 || backend == Backend::Reference {
        return backend.aligned(rows.checked_mul(columns)?.checked_mul(4)?);
    }
    let held_rows = match backend {
        Backend::Cpu | Backend::SimulatedGpu if is_tiled(ty) => rows.checked_next_multiple_of(TILE_ROWS)?,
        _ => rows,
    };
    backend.aligned(ty.bytes(columns)?.0.checked_mul(held_rows)?)
}

/// Whether the CPU holds a matrix of this type in tiles: all but plain floats, which stay as they are in the file.
pub fn is_tiled(ty: GgmlType) -> bool {
    !matches!(ty, GgmlType::F32 | GgmlType::F16 | GgmlType::BF16)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_quantised_matrix_takes_what_it_takes_in_the_file_where_its_rows_fill_their_tiles() {
        assert_eq!(weight_bytes(GgmlType::Q4_1, 576, 576, Backend::Cpu), Some(Bytes(576 * 576 / 32 * 20)));
        assert_eq!(weight_bytes(GgmlType::Q4_1, 577, 576, Backend::Cpu), Some(Bytes(592 * 576 / 32 * 20)));
        assert_eq!(weight_bytes(GgmlType::Q6_K, 16, 256, Backend::Cpu), Some(Bytes(16 * 210 + 32)));
    }

    #[test]
    fn one_row_is_held_as_f32() {
        assert_eq!(weight_bytes(GgmlType::F16, 1, 100, Backend::Cpu), Some(Bytes(448)));
        assert_eq!(weight_bytes(GgmlType::F32, 1, 64, Backend::Cuda), Some(Bytes(256)));
    }

    #[test]
    fn every_type_has_a_size_on_every_backend() {
        for ty in GgmlType::ALL {
            for backend in [Backend::Cpu, Backend::SimulatedGpu, Backend::Cuda] {
                // 16 rows fill a tile, and 256 elements are whole blocks of every type.
                assert_eq!(weight_bytes(*ty, 16, 256, backend), ty.bytes(16 * 256).and_then(|bytes| backend.aligned(bytes.0)), "{ty}");
            }
        }
    }

    #[test]
    fn overflow_and_broken_blocks_are_seen() {
        assert_eq!(weight_bytes(GgmlType::F32, 1 << 40, 1 << 40, Backend::Cpu), None);
        assert_eq!(weight_bytes(GgmlType::Q8_0, u64::MAX, 32, Backend::Cpu), None);
        assert_eq!(weight_bytes(GgmlType::Q8_0, 16, 33, Backend::Cpu), None);
    }
}
