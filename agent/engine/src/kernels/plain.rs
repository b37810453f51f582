//! Products with matrices of plain floats, which lie in memory as in the file. Written once over [`Lanes`].
//!
//! Several rows are multiplied with several columns at once, so that each number that is read serves several products.

use super::lanes::Lanes;

/// How a weight is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Float {
    F32,
    F16,
    BF16,
}

impl Float {
    const fn bytes(self) -> usize {
        match self {
            Float::F32 => 4,
            Float::F16 | Float::BF16 => 2,
        }
    }
}

/// Some rows times some columns. `to` has a row for each column: `to[column x to_stride + row]`.
#[derive(Clone, Copy)]
pub struct PlainProduct {
    pub float: Float,
    /// Rows of `length` weights, one after the other.
    pub weights: *const u8,
    pub rows: usize,
    pub length: usize,
    /// Columns of `length` floats, `stride` apart.
    pub floats: *const f32,
    pub stride: usize,
    pub columns: usize,
    pub to: *mut f32,
    pub to_stride: usize,
    /// Adds to what is there.
    pub add: bool,
}

/// See `PlainProduct`.
#[inline(always)]
pub unsafe fn exact_plain_product<L: Lanes>(p: &PlainProduct) {
    // SAFETY: the caller gives what `PlainProduct` says.
    unsafe {
        match p.float {
            Float::F32 => of_type::<L, { Float::F32 as usize }>(p),
            Float::F16 => of_type::<L, { Float::F16 as usize }>(p),
            Float::BF16 => of_type::<L, { Float::BF16 as usize }>(p),
        }
    }
}

const FLOATS: [Float; 3] = [Float::F32, Float::F16, Float::BF16];

#[inline(always)]
unsafe fn of_type<L: Lanes, const F: usize>(p: &PlainProduct) {
    let mut column = 0;
    // SAFETY: as for `exact_plain_product`; rows and columns stay within theirs.
    unsafe {
        while L::WIDE && column + 4 <= p.columns {
            rows::<L, F, 4, 4>(p, column);
            column += 4;
        }
        while !L::WIDE && column + 3 <= p.columns {
            rows::<L, F, 2, 3>(p, column);
            column += 3;
        }
        while column < p.columns {
            rows::<L, F, 1, 1>(p, column);
            column += 1;
        }
    }
}

/// All rows, R at once, times C columns. Each product of a row and a column is summed in the same order, whatever R and C. Of one column the rows are
/// one stream of memory: several at once are slower, and so is asking for them ahead.
#[inline(always)]
unsafe fn rows<L: Lanes, const F: usize, const R: usize, const C: usize>(p: &PlainProduct, column: usize) {
    let mut row = 0;
    // SAFETY: as for `of_type`.
    unsafe {
        while row + R <= p.rows {
            block::<L, F, R, C>(p, row, column);
            row += R;
        }
        while row < p.rows {
            block::<L, F, 1, C>(p, row, column);
            row += 1;
        }
    }
}

#[inline(always)]
unsafe fn block<L: Lanes, const F: usize, const R: usize, const C: usize>(p: &PlainProduct, row: usize, column: usize) {
    let float = const { FLOATS[F] };
    let whole = p.length / 16 * 16;
    // SAFETY: as for `of_type`.
    unsafe {
        let weights = p.weights.add(row * p.length * float.bytes());
        let floats = p.floats.add(column * p.stride);
        let mut sums = [[L::splat(0.0); C]; R];
        for i in (0..whole).step_by(16) {
            let mut b = [L::splat(0.0); C];
            for c in 0..C {
                b[c] = L::load(floats.add(c * p.stride + i));
            }
            for r in 0..R {
                let a = load::<L>(float, weights.add((r * p.length + i) * float.bytes()));
                for c in 0..C {
                    sums[r][c] = L::mul_add(a, b[c], sums[r][c]);
                }
            }
        }
        for r in 0..R {
            for c in 0..C {
                let mut sum = L::sum(sums[r][c]);
                for i in whole..p.length {
                    sum += read(float, weights.add(r * p.length * float.bytes()), i) * *floats.add(c * p.stride + i);
                }
                let to = p.to.wrapping_add((column + c) * p.to_stride + row + r);
                *to = if p.add { *to + sum } else { sum };
            }
        }
    }
}

/// 16 weights.
#[inline(always)]
unsafe fn load<L: Lanes>(float: Float, from: *const u8) -> L::V {
    // SAFETY: the caller gives 16 of them.
    unsafe {
        match float {
            Float::F32 => L::load(from.cast()),
            Float::F16 => L::load_half(from.cast()),
            Float::BF16 => L::load_bfloat(from.cast()),
        }
    }
}

/// Weight `i` of a row.
#[inline(always)]
unsafe fn read(float: Float, row: *const u8, i: usize) -> f32 {
    // SAFETY: the caller gives a row that has it, aligned to its size.
    unsafe {
        match float {
            Float::F32 => *row.cast::<f32>().add(i),
            Float::F16 => half::f16::from_bits(*row.cast::<u16>().add(i)).to_f32(),
            Float::BF16 => f32::from_bits(u32::from(*row.cast::<u16>().add(i)) << 16),
        }
    }
}
