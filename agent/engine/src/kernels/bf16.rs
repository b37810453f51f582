//! Products of bfloat16 weights with AVX-512 BF16: `vdpbf16ps` multiplies pairs of bfloat16 and adds up in f32. Activations are rounded to bfloat16, by
//! half of 2^-8, which is less than what their rounding for quantised weights takes from most.

use std::arch::x86_64::*;

use super::plain::PlainProduct;

/// Elements of a register.
const LANES: usize = 32;

/// Rows of bfloat16 times columns.
///
/// # Safety
///
/// The CPU has AVX-512 with BF16, and the pointers have what `PlainProduct` says.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512bf16,avx2,fma,f16c")]
pub unsafe fn product(p: &PlainProduct) {
    let mut column = 0;
    // SAFETY: by the contract of this function; columns stay within theirs.
    unsafe {
        while column + 3 <= p.columns {
            rows::<8, 3>(p, column);
            column += 3;
        }
        while column < p.columns {
            rows::<1, 1>(p, column);
            column += 1;
        }
    }
}

/// All rows, R at once, times C columns.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512bf16,avx2,fma,f16c")]
unsafe fn rows<const R: usize, const C: usize>(p: &PlainProduct, column: usize) {
    let mut row = 0;
    // SAFETY: as for `product`; rows stay within theirs.
    unsafe {
        while row + R <= p.rows {
            block::<R, C>(p, row, column);
            row += R;
        }
        while row < p.rows {
            block::<1, C>(p, row, column);
            row += 1;
        }
    }
}

/// R rows times C columns: 24 sums are in registers at most, and each register of activations is rounded once for 8 rows.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512bf16,avx2,fma,f16c")]
unsafe fn block<const R: usize, const C: usize>(p: &PlainProduct, row: usize, column: usize) {
    let whole = p.length / LANES * LANES;
    // SAFETY: as for `product`. Of the last elements, only those are read that there are.
    unsafe {
        let weights = p.weights.cast::<u16>().add(row * p.length);
        let floats = p.floats.add(column * p.stride);
        let mut sums = [[_mm512_setzero_ps(); C]; R];
        for i in (0..whole).step_by(LANES) {
            add_products(p, weights.add(i), floats.add(i), u32::MAX, &mut sums);
        }
        if whole < p.length {
            let there = u32::MAX >> (LANES - (p.length - whole));
            add_products(p, weights.add(whole), floats.add(whole), there, &mut sums);
        }
        for r in 0..R {
            for c in 0..C {
                let to = p.to.wrapping_add((column + c) * p.to_stride + row + r);
                let sum = _mm512_reduce_add_ps(sums[r][c]);
                *to = if p.add { *to + sum } else { sum };
            }
        }
    }
}

/// Adds products of 32 elements, of which those are there whose bit is set.
#[inline(always)]
unsafe fn add_products<const R: usize, const C: usize>(
    p: &PlainProduct,
    weights: *const u16,
    floats: *const f32,
    there: u32,
    sums: &mut [[__m512; C]; R],
) {
    // SAFETY: the caller gives elements of R rows and C columns; bits of a register are those of any other.
    unsafe {
        let mut activations = [_mm512_setzero_si512(); C];
        for c in 0..C {
            let from = floats.add(c * p.stride);
            let low = _mm512_maskz_loadu_ps(there as __mmask16, from);
            let high = _mm512_maskz_loadu_ps((there >> 16) as __mmask16, from.wrapping_add(16));
            activations[c] = std::mem::transmute::<__m512bh, __m512i>(_mm512_cvtne2ps_pbh(high, low));
        }
        for r in 0..R {
            let row = _mm512_maskz_loadu_epi16(there, weights.add(r * p.length).cast());
            let row = std::mem::transmute::<__m512i, __m512bh>(row);
            for c in 0..C {
                let column = std::mem::transmute::<__m512i, __m512bh>(activations[c]);
                sums[r][c] = _mm512_dpbf16_ps(sums[r][c], row, column);
            }
        }
    }
}
