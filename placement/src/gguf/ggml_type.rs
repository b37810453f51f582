//! The types that a tensor's elements can have, and what a block of them takes in a file.

use std::fmt;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::units::Bytes;

macro_rules! ggml_types {
    ($($name:ident = $id:literal, $elements:literal in $bytes:literal;)+) => {
        /// A tensor's element type, under ggml's name and number.
        ///
        /// Source of numbers and block sizes: `ggml/include/ggml.h` (`enum ggml_type`) and `ggml/src/ggml-common.h` (`block_*`) of llama.cpp.
        #[allow(non_camel_case_types)]
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
        pub enum GgmlType { $($name,)+ }

        impl GgmlType {
            pub const ALL: &'static [GgmlType] = &[$(GgmlType::$name,)+];

            /// The type with this number in a file; `None` where the number is unknown or no longer in use.
            pub const fn from_id(id: u32) -> Option<GgmlType> {
                match id { $($id => Some(GgmlType::$name),)+ _ => None }
            }

            pub const fn id(self) -> u32 {
                match self { $(GgmlType::$name => $id,)+ }
            }

            pub const fn as_str(self) -> &'static str {
                match self { $(GgmlType::$name => stringify!($name),)+ }
            }

            /// Elements in one block.
            pub const fn block_elements(self) -> u64 {
                match self { $(GgmlType::$name => $elements,)+ }
            }

            /// Bytes that one block takes in a file.
            pub const fn block_bytes(self) -> u64 {
                match self { $(GgmlType::$name => $bytes,)+ }
            }
        }
    };
}

ggml_types! {
    F32 = 0, 1 in 4;
    F16 = 1, 1 in 2;
    Q4_0 = 2, 32 in 18;
    Q4_1 = 3, 32 in 20;
    Q5_0 = 6, 32 in 22;
    Q5_1 = 7, 32 in 24;
    Q8_0 = 8, 32 in 34;
    Q8_1 = 9, 32 in 36;
    Q2_K = 10, 256 in 84;
    Q3_K = 11, 256 in 110;
    Q4_K = 12, 256 in 144;
    Q5_K = 13, 256 in 176;
    Q6_K = 14, 256 in 210;
    Q8_K = 15, 256 in 292;
    IQ2_XXS = 16, 256 in 66;
    IQ2_XS = 17, 256 in 74;
    IQ3_XXS = 18, 256 in 98;
    IQ1_S = 19, 256 in 50;
    IQ4_NL = 20, 32 in 18;
    IQ3_S = 21, 256 in 110;
    IQ2_S = 22, 256 in 82;
    IQ4_XS = 23, 256 in 136;
    I8 = 24, 1 in 1;
    I16 = 25, 1 in 2;
    I32 = 26, 1 in 4;
    I64 = 27, 1 in 8;
    F64 = 28, 1 in 8;
    IQ1_M = 29, 256 in 56;
    BF16 = 30, 1 in 2;
    TQ1_0 = 34, 256 in 54;
    TQ2_0 = 35, 256 in 66;
    MXFP4 = 39, 32 in 17;
    NVFP4 = 40, 64 in 36;
    Q1_0 = 41, 128 in 18;
    Q2_0 = 42, 64 in 18;
}

impl GgmlType {
    /// Bytes of `elements` elements in a file. `None` where they are no whole number of blocks, or overflow.
    pub fn bytes(self, elements: u64) -> Option<Bytes> {
        if !elements.is_multiple_of(self.block_elements()) {
            return None;
        }
        (elements / self.block_elements()).checked_mul(self.block_bytes()).map(Bytes)
    }

    /// Whether the elements are numbers of their own, not blocks that share a scale.
    pub const fn is_plain(self) -> bool {
        self.block_elements() == 1
    }
}

impl fmt::Display for GgmlType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_type_is_found_again_by_its_number() {
        for ty in GgmlType::ALL {
            assert_eq!(GgmlType::from_id(ty.id()), Some(*ty));
        }
        for retired in [4, 5, 31, 32, 33, 36, 37, 38, u32::MAX] {
            assert_eq!(GgmlType::from_id(retired), None);
        }
    }

    #[test]
    fn only_whole_blocks_have_a_size_and_overflow_is_seen() {
        assert_eq!(GgmlType::Q4_K.bytes(512), Some(Bytes(288)));
        assert_eq!(GgmlType::Q4_K.bytes(500), None);
        assert_eq!(GgmlType::F64.bytes(u64::MAX / 4), None);
    }
}
