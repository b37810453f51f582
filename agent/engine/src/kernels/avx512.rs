//! Products with AVX-512 VNNI: `vpdpbusd` multiplies 4 unsigned weights of each of 16 rows with 4 signed activations and adds up in 32 bits.
//!
//! One group of columns is multiplied with the tile as it lies in memory, which is the bound there; more share the panels that a tile is unpacked into.

use std::arch::x86_64::*;

use super::format::{Format, by_format};
use super::product::TileProduct;
use super::reading::{self, SixBits};
use super::registers::Avx512;
use super::rows::BLOCK_BYTES;
use super::tile::Panel;

/// Columns that share a panel.
const WIDTH: usize = 8;

/// Unpacks blocks of a tile, see `reading::unpack`.
///
/// # Safety
///
/// The CPU has AVX-512 with VNNI, and the tile has these blocks.
pub unsafe fn unpack(format: Format, tile: *const u8, blocks: std::ops::Range<usize>, panels: &mut [Panel]) {
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx2,fma,f16c")]
    unsafe fn of<const F: usize>(tile: *const u8, blocks: std::ops::Range<usize>, panels: &mut [Panel]) {
        // SAFETY: by the contract of `unpack`.
        unsafe { reading::unpack::<Avx512>(const { Format::ALL[F] }, tile, blocks, panels) }
    }
    // SAFETY: by the contract of this function.
    unsafe { by_format!(format, of(tile, blocks, panels)) }
}

/// A tile as it lies in memory times one group of 1, 4 or 8 columns.
///
/// # Safety
///
/// The CPU has AVX-512 with VNNI, and the pointers have what `TileProduct` says.
pub unsafe fn tile_product(format: Format, p: &TileProduct) {
    unsafe fn of<const F: usize>(p: &TileProduct) {
        // SAFETY: by the contract of `tile_product`.
        unsafe {
            match p.width {
                1 => tile::<F, 1>(p),
                4 => tile::<F, 4>(p),
                _ => tile::<F, WIDTH>(p),
            }
        }
    }
    // SAFETY: by the contract of this function.
    unsafe { by_format!(format, of(p)) }
}

#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx2,fma,f16c")]
unsafe fn tile<const F: usize, const W: usize>(p: &TileProduct) {
    let format = const { Format::ALL[F] };
    // SAFETY: by the contract of `tile_product`.
    unsafe {
        let mut results = begin::<W>(p);
        let mut six = SixBits::EMPTY;
        for block in 0..p.blocks {
            let (t, sub) = (p.tile.add(block / format.subs() * format.bytes()), block % format.subs());
            let group = p.group.add(block * W * BLOCK_BYTES).cast::<i32>();
            if sub == 0 {
                six.read::<Avx512>(format, t);
            }
            let weights = reading::weights::<Avx512>(format, t, sub, 0);
            let mut halves = [[_mm512_setzero_si512(); W]; 2];
            for g in 0..8 {
                // Of one column, the two sums are each in half as long a row of instructions that wait for each other.
                let half = if format.has_halves() || W == 1 { g / 4 } else { 0 };
                for c in 0..W {
                    halves[half][c] = _mm512_dpbusd_epi32(halves[half][c], weights[g], _mm512_set1_epi32(*group.add(g * W + c)));
                }
            }
            let scales = reading::scales::<Avx512>(format, t, &six, sub, 0);
            let minima = reading::minima::<Avx512>(format, t, &six, sub, 0, scales);
            let numbers = group.add(8 * W).cast::<f32>();
            // In the same order as `panels`, so that a column's results don't depend on how many others there are.
            for c in 0..W {
                let scale = _mm512_set1_ps(*numbers.add(c));
                if format.has_halves() {
                    let first = _mm512_mul_ps(_mm512_cvtepi32_ps(halves[0][c]), scales[0]);
                    let part = _mm512_fmadd_ps(_mm512_cvtepi32_ps(halves[1][c]), scales[1], first);
                    results[c] = _mm512_fmadd_ps(part, scale, results[c]);
                    let difference = _mm512_sub_ps(minima[0], minima[1]);
                    results[c] = _mm512_fmadd_ps(difference, _mm512_set1_ps(*numbers.add(2 * W + c)), results[c]);
                } else {
                    let products = _mm512_cvtepi32_ps(_mm512_add_epi32(halves[0][c], halves[1][c]));
                    results[c] = _mm512_fmadd_ps(products, _mm512_mul_ps(scales[0], scale), results[c]);
                }
                results[c] = _mm512_fmadd_ps(minima[1], _mm512_set1_ps(*numbers.add(W + c)), results[c]);
            }
        }
        for (column, result) in results.into_iter().enumerate().take(p.columns) {
            finish(p, column, result);
        }
    }
}

/// Panels times a group of 8 columns.
///
/// # Safety
///
/// The CPU has AVX-512 with VNNI, the pointers have what `TileProduct` says, and the panels were unpacked from this format.
pub unsafe fn panel_product(format: Format, p: &TileProduct) {
    // SAFETY: by the contract of this function.
    unsafe { if format.has_halves() { panels::<2>(p) } else { panels::<1>(p) } }
}

#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx2,fma,f16c")]
unsafe fn panels<const HALVES: usize>(p: &TileProduct) {
    const W: usize = WIDTH;
    // SAFETY: by the contract of `panel_product`.
    unsafe {
        let mut results = begin::<W>(p);
        for block in 0..p.blocks {
            let panel = &*p.tile.cast::<Panel>().add(block);
            let group = p.group.add(block * W * BLOCK_BYTES).cast::<i32>();
            let numbers = group.add(8 * W).cast::<f32>();
            let mut parts = [_mm512_setzero_ps(); W];
            for half in 0..HALVES {
                let mut sums = [_mm512_setzero_si512(); W];
                for g in half * (8 / HALVES)..(half + 1) * (8 / HALVES) {
                    let weights = _mm512_load_si512(panel.q.as_ptr().add(g * 64).cast());
                    for c in 0..W {
                        sums[c] = _mm512_dpbusd_epi32(sums[c], weights, _mm512_set1_epi32(*group.add(g * W + c)));
                    }
                }
                let scales = _mm512_load_ps(panel.scale[half].as_ptr());
                for c in 0..W {
                    let (products, scale) = (_mm512_cvtepi32_ps(sums[c]), _mm512_set1_ps(*numbers.add(c)));
                    if HALVES == 1 {
                        results[c] = _mm512_fmadd_ps(products, _mm512_mul_ps(scales, scale), results[c]);
                    } else if half == 0 {
                        parts[c] = _mm512_mul_ps(products, scales);
                    } else {
                        results[c] = _mm512_fmadd_ps(_mm512_fmadd_ps(products, scales, parts[c]), scale, results[c]);
                    }
                }
            }
            for c in 0..W {
                if HALVES == 2 {
                    let difference = _mm512_load_ps(panel.minimum[0].as_ptr());
                    results[c] = _mm512_fmadd_ps(difference, _mm512_set1_ps(*numbers.add(2 * W + c)), results[c]);
                }
                let minimum = _mm512_load_ps(panel.minimum[1].as_ptr());
                results[c] = _mm512_fmadd_ps(minimum, _mm512_set1_ps(*numbers.add(W + c)), results[c]);
            }
        }
        for (column, result) in results.into_iter().enumerate().take(p.columns) {
            finish(p, column, result);
        }
    }
}

/// What the results are added to, of each column.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx2,fma,f16c")]
unsafe fn begin<const W: usize>(p: &TileProduct) -> [__m512; W] {
    let mut results = [_mm512_setzero_ps(); W];
    if p.add {
        for column in 0..p.columns {
            // SAFETY: the caller gives results of these columns.
            results[column] = unsafe { _mm512_maskz_loadu_ps(rows(p), p.to.add(column * p.stride)) };
        }
    }
    results
}

/// The rows whose results are wanted.
#[inline(always)]
fn rows(p: &TileProduct) -> __mmask16 {
    ((1u32 << p.rows) - 1) as __mmask16
}

/// Writes the results of one column.
#[inline(always)]
unsafe fn finish(p: &TileProduct, column: usize, result: __m512) {
    // SAFETY: the caller gives a column for which there is room.
    unsafe { _mm512_mask_storeu_ps(p.to.add(column * p.stride), rows(p), result) };
}
