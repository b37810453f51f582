//! The quantised types that run, and where a tile has the parts of each.

use stowage_placement::gguf::GgmlType;

use super::tile::ROWS;

/// A type that is packed into tiles.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    Q4_0,
    Q4_1,
    Q5_0,
    Q5_1,
    Q8_0,
    Q2K,
    Q3K,
    Q4K,
    Q5K,
    Q6K,
    Iq4Nl,
    Iq4Xs,
    Mxfp4,
}

/// Calls a function that is compiled for each format, with the format's index in `Format::ALL` as its constant.
macro_rules! by_format {
    ($format:expr, $function:ident($($argument:expr),*)) => {
        by_format!(@each $format, $function, ($($argument),*), Q4_0 Q4_1 Q5_0 Q5_1 Q8_0 Q2K Q3K Q4K Q5K Q6K Iq4Nl Iq4Xs Mxfp4)
    };
    (@each $format:expr, $function:ident, $arguments:tt, $($name:ident)+) => {
        match $format { $(Format::$name => by_format!(@call $function::<{ Format::$name as usize }> $arguments)),+ }
    };
    (@call $function:ident::<$index:tt> ($($argument:expr),*)) => { $function::<$index>($($argument),*) };
}
pub(super) use by_format;

/// Codes of some bits each, of all the columns of a tile's block: see `tile`.
#[derive(Clone, Copy)]
pub struct Plane {
    /// Where it begins in the block.
    pub at: usize,
    pub bits: usize,
    /// Bytes from 32 columns to the next 32.
    pub stride: usize,
}

impl Format {
    pub const ALL: [Format; 13] = [
        Format::Q4_0,
        Format::Q4_1,
        Format::Q5_0,
        Format::Q5_1,
        Format::Q8_0,
        Format::Q2K,
        Format::Q3K,
        Format::Q4K,
        Format::Q5K,
        Format::Q6K,
        Format::Iq4Nl,
        Format::Iq4Xs,
        Format::Mxfp4,
    ];

    /// `None`: plain floats, or a type that the engine doesn't run.
    pub fn of(ty: GgmlType) -> Option<Format> {
        Some(match ty {
            GgmlType::Q4_0 => Format::Q4_0,
            GgmlType::Q4_1 => Format::Q4_1,
            GgmlType::Q5_0 => Format::Q5_0,
            GgmlType::Q5_1 => Format::Q5_1,
            GgmlType::Q8_0 => Format::Q8_0,
            GgmlType::Q2_K => Format::Q2K,
            GgmlType::Q3_K => Format::Q3K,
            GgmlType::Q4_K => Format::Q4K,
            GgmlType::Q5_K => Format::Q5K,
            GgmlType::Q6_K => Format::Q6K,
            GgmlType::IQ4_NL => Format::Iq4Nl,
            GgmlType::IQ4_XS => Format::Iq4Xs,
            GgmlType::MXFP4 => Format::Mxfp4,
            _ => return None,
        })
    }

    /// Blocks of 32 columns in a tile's block.
    pub const fn subs(self) -> usize {
        match self {
            Format::Q2K | Format::Q3K | Format::Q4K | Format::Q5K | Format::Q6K | Format::Iq4Xs => 8,
            _ => 1,
        }
    }

    /// Whether the two halves of 32 columns have scales of their own.
    pub const fn has_halves(self) -> bool {
        matches!(self, Format::Q2K | Format::Q3K | Format::Q6K)
    }

    /// Whether weights are signed and fill their byte.
    pub const fn is_signed(self) -> bool {
        matches!(self, Format::Q8_0 | Format::Iq4Nl | Format::Iq4Xs)
    }

    /// Bytes of a tile's block before its weights.
    const fn header(self) -> usize {
        match self {
            Format::Mxfp4 => 16,
            Format::Q4_0 | Format::Q5_0 | Format::Q8_0 | Format::Iq4Nl => 32,
            Format::Q4_1 | Format::Q5_1 => 64,
            Format::Iq4Xs => 32 + 96,
            Format::Q3K => 32 + 192,
            Format::Q4K | Format::Q5K => 64 + 192,
            Format::Q6K => 32 + 256,
            Format::Q2K => 64 + 256,
        }
    }

    /// Bits of a code: the low ones, and the high ones.
    const fn bits(self) -> [usize; 2] {
        match self {
            Format::Q8_0 => [8, 0],
            Format::Q2K => [2, 0],
            Format::Q3K => [2, 1],
            Format::Q4_0 | Format::Q4_1 | Format::Q4K | Format::Iq4Nl | Format::Iq4Xs | Format::Mxfp4 => [4, 0],
            Format::Q5_0 | Format::Q5_1 | Format::Q5K => [4, 1],
            Format::Q6K => [4, 2],
        }
    }

    /// Bytes that the codes of 32 columns take.
    const fn stride(self) -> usize {
        let [low, high] = self.bits();
        (low + high) * ROWS * 4
    }

    /// The low bits of the weights' codes. They follow the header.
    pub const fn low(self) -> Plane {
        Plane { at: self.header(), bits: self.bits()[0], stride: self.stride() }
    }

    /// Their high bits. Those of 32 columns follow the low ones of the same columns, so that memory is read in order.
    pub const fn high(self) -> Option<Plane> {
        let [low, high] = self.bits();
        if high == 0 {
            return None;
        }
        Some(Plane { at: self.header() + low * ROWS * 4, bits: high, stride: self.stride() })
    }

    /// Bytes of a tile's block.
    pub const fn bytes(self) -> usize {
        self.header() + self.subs() * self.stride()
    }
}

impl Plane {
    /// Byte and bit at which the code of a weight begins. Each byte has those of one column in 4 of several groups.
    #[inline(always)]
    fn place(self, row: usize, column: usize) -> (usize, usize) {
        // The logarithm of how many groups share a byte.
        let sharing = self.bits.leading_zeros() - 8usize.leading_zeros();
        let (sub, group) = (column / 32, column % 32 / 4);
        (self.at + sub * self.stride + (group >> sharing) * 64 + row * 4 + column % 4, (group & ((1 << sharing) - 1)) * self.bits)
    }

    const fn mask(self) -> u8 {
        (255u16 >> (8 - self.bits)) as u8
    }

    /// The codes of one group of 4 columns of all rows, moved up by some bits: set where that is none, else added to what is there.
    pub fn add_group(self, block: &[u8], sub: usize, group: usize, up: usize, codes: &mut [u8; 64]) {
        let (byte, bit) = self.place(0, sub * 32 + group * 4);
        let mask = self.mask();
        for (code, byte) in codes.iter_mut().zip(&block[byte..byte + 64]) {
            let before = if up == 0 { 0 } else { *code };
            *code = before | (byte >> bit & mask) << up;
        }
    }

    /// Sets what is in this plane of 32 columns of a tile's block, given the codes of each group of 4 columns and row, a byte each.
    #[inline(always)]
    pub fn set(self, block: &mut [u8], sub: usize, codes: impl Fn(usize, usize) -> u32) {
        let mask = u32::from(self.mask()) * 0x0101_0101;
        let sharing = 8 / self.bits;
        let (bytes, _) = block[self.at + sub * self.stride..].as_chunks_mut::<64>();
        for (place, to) in bytes.iter_mut().take(8 / sharing).enumerate() {
            let (fours, _) = to.as_chunks_mut::<4>();
            for (row, four) in fours.iter_mut().enumerate() {
                let shared = (0..sharing).map(|group| (codes(place * sharing + group, row) & mask) << (group * self.bits));
                *four = shared.fold(0, |all, code| all | code).to_le_bytes();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_format_stands_in_the_list_of_all_at_its_index() {
        assert!(Format::ALL.iter().enumerate().all(|(index, format)| *format as usize == index));
    }

    #[test]
    fn no_tile_is_larger_or_smaller_than_its_rows_in_the_file() {
        for ty in GgmlType::ALL {
            if let Some(format) = Format::of(*ty) {
                assert_eq!(format.bytes() as u64, ty.block_bytes() * ROWS as u64, "{ty}");
                assert_eq!(format.subs() as u64 * 32, ty.block_elements(), "{ty}");
            }
        }
    }
}
