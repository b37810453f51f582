//! Products with AVX2: `vpmaddubsw` multiplies unsigned weights with signed activations and adds up pairs in 16 bits, `vpmaddwd` pairs of those in 32.
//!
//! A tile's 16 rows are two vectors of 8. One group of columns is multiplied with the tile as it lies in memory, which is the bound there. More share
//! the panels that a tile is unpacked into, 4 at a time: 8 sums in registers, and as many registers left for operands.

use std::arch::asm;
use std::arch::x86_64::*;

use super::format::{Format, by_format};
use super::product::TileProduct;
use super::reading::{self, SixBits};
use super::registers::Avx2;
use super::rows::BLOCK_BYTES;
use super::tile::{Panel, ROWS};

/// Columns that share a panel.
const WIDTH: usize = 4;

/// How many products of groups add up in 16 bits, each being two of a weight and an activation of at most 127.
const fn run(format: Format) -> usize {
    match format {
        // At most 2 x 128 x 127.
        Format::Q8_0 | Format::Iq4Nl | Format::Iq4Xs => 1,
        // At most 63.
        Format::Q6K => 2,
        // At most 31; or less, and a half has no more groups.
        Format::Q5_0 | Format::Q5_1 | Format::Q5K | Format::Mxfp4 | Format::Q2K | Format::Q3K => 4,
        // At most 15.
        Format::Q4_0 | Format::Q4_1 | Format::Q4K => 8,
    }
}

/// Pairs of products, in 16 bits.
#[inline(always)]
unsafe fn pairs<const SIGNED: bool>(weights: __m256i, activations: __m256i) -> __m256i {
    // SAFETY: needs no more than the instructions.
    unsafe {
        match SIGNED {
            // Signs move to the activations.
            true => _mm256_maddubs_epi16(_mm256_abs_epi8(weights), _mm256_sign_epi8(activations, weights)),
            false => _mm256_maddubs_epi16(weights, activations),
        }
    }
}

#[inline(always)]
unsafe fn widened(sums: __m256i) -> __m256i {
    // SAFETY: needs no more than the instructions.
    unsafe { _mm256_madd_epi16(sums, _mm256_set1_epi16(1)) }
}

/// Unpacks blocks of a tile, see `reading::unpack`.
///
/// # Safety
///
/// The CPU has AVX2, FMA and F16C, and the tile has these blocks.
pub unsafe fn unpack(format: Format, tile: *const u8, blocks: std::ops::Range<usize>, panels: &mut [Panel]) {
    #[target_feature(enable = "avx2,fma,f16c")]
    unsafe fn of<const F: usize>(tile: *const u8, blocks: std::ops::Range<usize>, panels: &mut [Panel]) {
        // SAFETY: by the contract of `unpack`.
        unsafe { reading::unpack::<Avx2>(const { Format::ALL[F] }, tile, blocks, panels) }
    }
    // SAFETY: by the contract of this function.
    unsafe { by_format!(format, of(tile, blocks, panels)) }
}

/// A tile as it lies in memory times one group of 1 or 4 columns.
///
/// # Safety
///
/// The CPU has AVX2, FMA and F16C, and the pointers have what `TileProduct` says.
pub unsafe fn tile_product(format: Format, p: &TileProduct) {
    unsafe fn of<const F: usize>(p: &TileProduct) {
        // SAFETY: by the contract of `tile_product`.
        unsafe { if p.width == 1 { tile::<F, 1>(p) } else { tile::<F, WIDTH>(p) } }
    }
    // SAFETY: by the contract of this function.
    unsafe { by_format!(format, of(p)) }
}

#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn tile<const F: usize, const W: usize>(p: &TileProduct) {
    let format = const { Format::ALL[F] };
    // SAFETY: by the contract of `tile_product`.
    unsafe {
        let mut sums = [[_mm256_setzero_ps(); W]; 2];
        for column in 0..p.columns {
            let before = p.begin(column);
            for side in 0..2 {
                sums[side][column] = row_floats(&before, side);
            }
        }
        let mut six = SixBits::EMPTY;
        for block in 0..p.blocks {
            let (t, sub) = (p.tile.add(block / format.subs() * format.bytes()), block % format.subs());
            reading::prefetch::<Avx2>(format, t, sub);
            if sub == 0 {
                six.read::<Avx2>(format, t);
            }
            let group = p.group.add(block * W * BLOCK_BYTES).cast::<i32>();
            for (side, sums) in sums.iter_mut().enumerate() {
                add_block::<F, W>(t, &six, sub, side, group, sums);
            }
        }
        for column in 0..p.columns {
            let mut results = [0f32; ROWS];
            _mm256_storeu_ps(results.as_mut_ptr(), sums[0][column]);
            _mm256_storeu_ps(results.as_mut_ptr().add(8), sums[1][column]);
            p.finish(column, &results);
        }
    }
}

/// Adds the products of 8 rows with one block of W columns.
#[inline(always)]
unsafe fn add_block<const F: usize, const W: usize>(
    t: *const u8,
    six: &SixBits,
    sub: usize,
    side: usize,
    group: *const i32,
    sums: &mut [__m256; W],
) {
    let format = const { Format::ALL[F] };
    // SAFETY: the caller gives a block of the tile and one of the columns.
    unsafe {
        let weights = reading::weights::<Avx2>(format, t, sub, side);
        let scales = reading::scales::<Avx2>(format, t, six, sub, side);
        let minima = reading::minima::<Avx2>(format, t, six, sub, side, scales);
        let numbers = group.add(8 * W).cast::<f32>();
        for c in 0..W {
            let [a, b] = match const { Format::ALL[F].is_signed() } {
                true => block_halves::<F, W, true>(&weights, group.add(c)),
                false => block_halves::<F, W, false>(&weights, group.add(c)),
            };
            // In the same order as for panels, so that a column's results don't depend on how many others there are.
            let scale = _mm256_set1_ps(*numbers.add(c));
            if format.has_halves() {
                let first = _mm256_mul_ps(_mm256_cvtepi32_ps(a), scales[0]);
                sums[c] = _mm256_fmadd_ps(_mm256_fmadd_ps(_mm256_cvtepi32_ps(b), scales[1], first), scale, sums[c]);
                sums[c] = _mm256_fmadd_ps(_mm256_sub_ps(minima[0], minima[1]), _mm256_set1_ps(*numbers.add(2 * W + c)), sums[c]);
            } else {
                sums[c] = _mm256_fmadd_ps(_mm256_cvtepi32_ps(_mm256_add_epi32(a, b)), _mm256_mul_ps(scales[0], scale), sums[c]);
            }
            if !format.is_signed() {
                sums[c] = _mm256_fmadd_ps(minima[1], _mm256_set1_ps(*numbers.add(W + c)), sums[c]);
            }
        }
    }
}

/// Sums of the products of each half of a block; of all in the first, where those add up in 16 bits.
#[inline(always)]
unsafe fn block_halves<const F: usize, const W: usize, const SIGNED: bool>(weights: &[__m256i; 8], group: *const i32) -> [__m256i; 2] {
    let run = const { run(Format::ALL[F]) };
    // SAFETY: the caller gives one column of a block.
    unsafe {
        let mut halves = [_mm256_setzero_si256(); 2];
        for start in (0..8).step_by(run) {
            let mut sum = pairs::<SIGNED>(weights[start], _mm256_set1_epi32(*group.add(start * W)));
            for i in start + 1..start + run {
                sum = _mm256_add_epi16(sum, pairs::<SIGNED>(weights[i], _mm256_set1_epi32(*group.add(i * W))));
            }
            halves[start / 4] = _mm256_add_epi32(halves[start / 4], widened(sum));
        }
        halves
    }
}

/// Panels times a group of 4 columns.
///
/// # Safety
///
/// The CPU has AVX2, FMA and F16C, the pointers have what `TileProduct` says, and the panels were unpacked from this format.
pub unsafe fn panel_product(format: Format, p: &TileProduct) {
    // SAFETY: by the contract of this function.
    unsafe {
        match (run(format), format.has_halves()) {
            (8, _) => panels::<8, 1>(p),
            (4, false) => panels::<4, 1>(p),
            (4, true) => panels::<4, 2>(p),
            (2, _) => panels::<2, 2>(p),
            _ => panels::<1, 1>(p),
        }
    }
}

#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn panels<const RUN: usize, const HALVES: usize>(p: &TileProduct) {
    let mut results = [[0f32; ROWS]; WIDTH];
    // SAFETY: by the contract of `panel_product`.
    unsafe {
        for (column, results) in results.iter_mut().enumerate().take(p.columns) {
            *results = p.begin(column);
        }
        for block in 0..p.blocks {
            let panel = &*p.tile.cast::<Panel>().add(block);
            let group = p.group.add(block * WIDTH * BLOCK_BYTES).cast::<i32>();
            add_products::<RUN, HALVES>(panel, group, &mut results);
        }
        for (column, results) in results.iter().enumerate().take(p.columns) {
            p.finish(column, results);
        }
    }
}

type Sums = [[__m256i; 2]; WIDTH];

/// Makes the sums exist in registers here, and nothing be loaded sooner. Left to itself the compiler makes one piece of the loops over groups and
/// columns, computes column by column, and spills the weights: two to three times slower.
macro_rules! pin {
    ($sums:expr) => {
        for column in $sums.iter_mut() {
            // SAFETY: no instruction at all.
            asm!("/* {0} {1} */", inout(ymm_reg) column[0], inout(ymm_reg) column[1], options(nostack, preserves_flags));
        }
    };
}

/// Adds the products of a panel with a group of columns.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn add_products<const RUN: usize, const HALVES: usize>(panel: &Panel, group: *const i32, results: &mut [[f32; ROWS]; WIDTH]) {
    // SAFETY: the caller gives a block of 4 columns.
    unsafe {
        let mut firsts = [[_mm256_setzero_ps(); 2]; WIDTH];
        if HALVES == 2 {
            let totals = totals::<RUN, 2>(panel.q.as_ptr(), group);
            for c in 0..WIDTH {
                for side in 0..2 {
                    firsts[c][side] = _mm256_mul_ps(_mm256_cvtepi32_ps(totals[c][side]), row_floats(&panel.scale[0], side));
                }
            }
        }
        let before = (HALVES - 1) * 4;
        let totals = totals::<RUN, HALVES>(panel.q.as_ptr().add(before * 64), group.add(before * WIDTH));
        let numbers = group.add(8 * WIDTH).cast::<f32>();
        for c in 0..WIDTH {
            let (scale, sum) = (_mm256_set1_ps(*numbers.add(c)), _mm256_set1_ps(*numbers.add(WIDTH + c)));
            for side in 0..2 {
                let to = results[c].as_mut_ptr().add(side * 8);
                let (products, scales) = (_mm256_cvtepi32_ps(totals[c][side]), row_floats(&panel.scale[HALVES - 1], side));
                let mut result = _mm256_loadu_ps(to);
                if HALVES == 2 {
                    let first = _mm256_set1_ps(*numbers.add(2 * WIDTH + c));
                    result = _mm256_fmadd_ps(_mm256_fmadd_ps(products, scales, firsts[c][side]), scale, result);
                    result = _mm256_fmadd_ps(row_floats(&panel.minimum[0], side), first, result);
                } else {
                    result = _mm256_fmadd_ps(products, _mm256_mul_ps(scales, scale), result);
                }
                // Signed weights have no minima.
                if RUN > 1 {
                    result = _mm256_fmadd_ps(row_floats(&panel.minimum[1], side), sum, result);
                }
                _mm256_storeu_ps(to, result);
            }
            // SAFETY: no instruction at all.
            asm!("", options(nostack, preserves_flags));
        }
    }
}

#[inline(always)]
unsafe fn row_floats(floats: &[f32; ROWS], side: usize) -> __m256 {
    // SAFETY: of 16 floats a side has 8.
    unsafe { _mm256_loadu_ps(floats.as_ptr().add(side * 8)) }
}

/// Sums in 32 bits of the products of all groups of a panel, or of a half of them.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn totals<const RUN: usize, const HALVES: usize>(weights: *const u8, activations: *const i32) -> Sums {
    // SAFETY: the caller gives as many groups of weights and of 4 columns.
    unsafe {
        if RUN == 1 {
            return signed_products(weights, activations);
        }
        let mut totals: Sums = [[_mm256_setzero_si256(); 2]; WIDTH];
        for start in (0..8 / HALVES).step_by(RUN) {
            let sums = products::<RUN>(weights.add(start * 64), activations.add(start * WIDTH));
            for c in 0..WIDTH {
                for side in 0..2 {
                    let wide = widened(sums[c][side]);
                    totals[c][side] = if start == 0 { wide } else { _mm256_add_epi32(totals[c][side], wide) };
                }
            }
        }
        totals
    }
}

/// Sums in 16 bits of the products of a run of groups.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn products<const RUN: usize>(weights: *const u8, activations: *const i32) -> Sums {
    // SAFETY: the caller gives as many groups of weights and of 4 columns.
    unsafe {
        let mut sums: Sums = [[_mm256_setzero_si256(); 2]; WIDTH];
        for i in 0..RUN {
            let low = _mm256_load_si256(weights.add(i * 64).cast());
            let high = _mm256_load_si256(weights.add(i * 64 + 32).cast());
            for c in 0..WIDTH {
                let four = _mm256_set1_epi32(*activations.add(i * WIDTH + c));
                let (a, b) = (_mm256_maddubs_epi16(low, four), _mm256_maddubs_epi16(high, four));
                sums[c] = if i == 0 { [a, b] } else { [_mm256_add_epi16(sums[c][0], a), _mm256_add_epi16(sums[c][1], b)] };
            }
            pin!(sums);
        }
        sums
    }
}

/// Sums in 32 bits of the products of all 8 groups of signed weights.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn signed_products(weights: *const u8, activations: *const i32) -> Sums {
    // SAFETY: as for `products`.
    unsafe {
        let mut sums: Sums = [[_mm256_setzero_si256(); 2]; WIDTH];
        for i in 0..8 {
            let weights = [0, 32].map(|side| _mm256_load_si256(weights.add(i * 64 + side).cast()));
            let sizes = weights.map(|weights| _mm256_abs_epi8(weights));
            for c in 0..WIDTH {
                let four = _mm256_set1_epi32(*activations.add(i * WIDTH + c));
                for side in 0..2 {
                    let pairs = _mm256_maddubs_epi16(sizes[side], _mm256_sign_epi8(four, weights[side]));
                    sums[c][side] = _mm256_add_epi32(sums[c][side], widened(pairs));
                }
            }
            pin!(sums);
        }
        sums
    }
}
