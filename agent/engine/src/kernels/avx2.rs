//! Products with AVX2: `vpmaddubsw` multiplies unsigned weights with signed activations and adds up pairs in 16 bits, `vpmaddwd` pairs of those in 32.
//!
//! A tile's 16 rows are two vectors of 8; up to 4 columns share each vector of weights.

use std::arch::x86_64::*;

use super::product::{Format, TileProduct};
use super::rows::BLOCK_BYTES;
use super::tile::{Panel, ROWS};

/// How to read a format, see `tile`. All functions read within one of the tile's blocks; `side` is 0 for rows 0 to 7 and 1 for 8 to 15.
trait Tile {
    /// Bytes of one of the tile's blocks, and how many blocks of 32 columns are in it.
    const BYTES: usize;
    const SUBS: usize = 1;
    /// Whether the two halves of 32 columns have scales of their own.
    const HALVES: bool = false;
    /// Whether weights are at most 15, so that products of 8 groups add up in 16 bits (8 x 2 x 15 x 127 = 30480).
    const NARROW: bool = false;
    /// Whether weights are signed.
    const SIGNED: bool = false;

    /// Weights of groups 2j and 2j + 1.
    unsafe fn weights(t: *const u8, sub: usize, j: usize, side: usize) -> [__m256i; 2];
    unsafe fn scales(t: *const u8, sub: usize, side: usize) -> [__m256; 2];
    /// What a weight of 0 stands for.
    unsafe fn minima(t: *const u8, sub: usize, side: usize, scales: [__m256; 2]) -> [__m256; 2];
}

#[inline(always)]
unsafe fn halves(t: *const u8, side: usize) -> __m256 {
    // SAFETY: the caller gives 32 bytes.
    unsafe { _mm256_cvtph_ps(_mm_loadu_si128(t.add(side * 16).cast())) }
}

#[inline(always)]
unsafe fn nibbles(t: *const u8, j: usize, side: usize) -> [__m256i; 2] {
    // SAFETY: the caller gives 256 bytes.
    unsafe {
        let mask = _mm256_set1_epi8(15);
        let both = _mm256_loadu_si256(t.add(j * 64 + side * 32).cast());
        [_mm256_and_si256(both, mask), _mm256_and_si256(_mm256_srli_epi16::<4>(both), mask)]
    }
}

#[inline(always)]
unsafe fn plain(t: *const u8, j: usize, side: usize) -> [__m256i; 2] {
    // SAFETY: the caller gives 512 bytes.
    unsafe { [_mm256_loadu_si256(t.add(2 * j * 64 + side * 32).cast()), _mm256_loadu_si256(t.add((2 * j + 1) * 64 + side * 32).cast())] }
}

/// 8 bytes from `t` on, as floats.
#[inline(always)]
unsafe fn bytes_to_floats(bytes: __m128i) -> __m256 {
    // SAFETY: needs no more than the instructions.
    unsafe { _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(bytes)) }
}

macro_rules! tile_format {
    ($name:ident: $bytes:expr, [$($constant:ident = $value:expr),*], weights($t1:ident, $sub1:ident, $j1:ident, $side1:ident) $weights:block scales($t2:ident, $sub2:ident, $side2:ident) $scales:block minima($t3:ident, $sub3:ident, $side3:ident, $scales3:ident) $minima:block) => {
        struct $name;
        impl Tile for $name {
            const BYTES: usize = $bytes;
            $(const $constant: tile_format!(@type $constant) = $value;)*
            #[inline(always)]
            unsafe fn weights($t1: *const u8, $sub1: usize, $j1: usize, $side1: usize) -> [__m256i; 2] {
                // SAFETY: the caller gives a whole block of this format.
                unsafe { $weights }
            }
            #[inline(always)]
            unsafe fn scales($t2: *const u8, $sub2: usize, $side2: usize) -> [__m256; 2] {
                // SAFETY: as above.
                unsafe { $scales }
            }
            #[inline(always)]
            unsafe fn minima($t3: *const u8, $sub3: usize, $side3: usize, $scales3: [__m256; 2]) -> [__m256; 2] {
                // SAFETY: as above.
                unsafe { $minima }
            }
        }
    };
    (@type SUBS) => { usize };
    (@type HALVES) => { bool };
    (@type NARROW) => { bool };
    (@type SIGNED) => { bool };
}

tile_format! {
    Q4_0: 18 * ROWS, [NARROW = true],
    weights(t, _sub, j, side) { nibbles(t.add(32), j, side) }
    scales(t, _sub, side) { [halves(t, side); 2] }
    minima(_t, _sub, _side, scales) { [_mm256_mul_ps(scales[0], _mm256_set1_ps(-8.0)); 2] }
}

tile_format! {
    Q4_1: 20 * ROWS, [NARROW = true],
    weights(t, _sub, j, side) { nibbles(t.add(64), j, side) }
    scales(t, _sub, side) { [halves(t, side); 2] }
    minima(t, _sub, side, _scales) { [halves(t.add(32), side); 2] }
}

tile_format! {
    Q8_0: 34 * ROWS, [SIGNED = true],
    weights(t, _sub, j, side) { plain(t.add(32), j, side) }
    scales(t, _sub, side) { [halves(t, side); 2] }
    minima(_t, _sub, _side, _scales) { [_mm256_setzero_ps(); 2] }
}

tile_format! {
    Q4K: 144 * ROWS, [SUBS = 8, NARROW = true],
    weights(t, sub, j, side) { nibbles(t.add(256 + sub * 256), j, side) }
    scales(t, sub, side) {
        let low = _mm_and_si128(_mm_loadl_epi64(t.add(64 + sub * 16 + side * 8).cast()), _mm_set1_epi8(15));
        let high = _mm_and_si128(_mm_slli_epi16::<4>(q4k_high_bits(t, sub, side)), _mm_set1_epi8(0x30));
        [_mm256_mul_ps(halves(t, side), bytes_to_floats(_mm_or_si128(low, high))); 2]
    }
    minima(t, sub, side, _scales) {
        let low = _mm_and_si128(_mm_srli_epi16::<4>(_mm_loadl_epi64(t.add(64 + sub * 16 + side * 8).cast())), _mm_set1_epi8(15));
        let high = _mm_and_si128(_mm_slli_epi16::<2>(q4k_high_bits(t, sub, side)), _mm_set1_epi8(0x30));
        let minimum = bytes_to_floats(_mm_or_si128(low, high));
        [_mm256_mul_ps(_mm256_sub_ps(_mm256_setzero_ps(), halves(t.add(32), side)), minimum); 2]
    }
}

/// High bits of a sub-block's scales and minima, in the low 4 bits of each byte.
#[inline(always)]
unsafe fn q4k_high_bits(t: *const u8, sub: usize, side: usize) -> __m128i {
    // SAFETY: the caller gives a whole block.
    unsafe {
        let both = _mm_loadl_epi64(t.add(192 + sub % 4 * 16 + side * 8).cast());
        if sub < 4 { both } else { _mm_srli_epi16::<4>(both) }
    }
}

tile_format! {
    Q6K: 210 * ROWS, [SUBS = 8, HALVES = true],
    weights(t, sub, j, side) {
        let [low, high] = nibbles(t.add(288 + sub * 256), j, side);
        let bits = _mm256_loadu_si256(t.add(2336 + sub * 128 + j / 2 * 64 + side * 32).cast());
        let mask = _mm256_set1_epi8(0x30);
        let (first, second) = if j.is_multiple_of(2) {
            (_mm256_slli_epi16::<4>(bits), _mm256_slli_epi16::<2>(bits))
        } else {
            (bits, _mm256_srli_epi16::<2>(bits))
        };
        [_mm256_or_si256(low, _mm256_and_si256(first, mask)), _mm256_or_si256(high, _mm256_and_si256(second, mask))]
    }
    scales(t, sub, side) {
        let scale = |i: usize| bytes_to_floats(_mm_loadl_epi64(t.add(32 + (sub * 2 + i) * 16 + side * 8).cast()));
        [_mm256_mul_ps(halves(t, side), scale(0)), _mm256_mul_ps(halves(t, side), scale(1))]
    }
    minima(_t, _sub, _side, scales) {
        [_mm256_mul_ps(scales[0], _mm256_set1_ps(-32.0)), _mm256_mul_ps(scales[1], _mm256_set1_ps(-32.0))]
    }
}

tile_format! {
    Panels: size_of::<Panel>(), [HALVES = true],
    weights(t, _sub, j, side) { plain(t, j, side) }
    scales(t, _sub, side) { [_mm256_loadu_ps(t.add(512 + side * 32).cast()), _mm256_loadu_ps(t.add(576 + side * 32).cast())] }
    minima(t, _sub, side, _scales) { [_mm256_loadu_ps(t.add(640 + side * 32).cast()), _mm256_loadu_ps(t.add(704 + side * 32).cast())] }
}

tile_format! {
    WidePanels: size_of::<Panel>(), [HALVES = true, SIGNED = true],
    weights(t, _sub, j, side) { plain(t, j, side).map(|weights| _mm256_xor_si256(weights, _mm256_set1_epi8(-128))) }
    scales(t, _sub, side) { [_mm256_loadu_ps(t.add(512 + side * 32).cast()), _mm256_loadu_ps(t.add(576 + side * 32).cast())] }
    minima(_t, _sub, _side, _scales) { [_mm256_setzero_ps(); 2] }
}

/// Adds products of one group of weights with 4 activations of one column. In 16 bits where `T::NARROW`, else in 32.
#[inline(always)]
unsafe fn add_group<T: Tile>(sum: __m256i, weights: __m256i, activations: i32) -> __m256i {
    // SAFETY: needs no more than the instructions.
    unsafe {
        let activations = _mm256_set1_epi32(activations);
        let pairs = if T::SIGNED {
            // Signs move to the activations; 2 x 128 x 127 fits in 16 bits.
            _mm256_maddubs_epi16(_mm256_abs_epi8(weights), _mm256_sign_epi8(activations, weights))
        } else {
            _mm256_maddubs_epi16(weights, activations)
        };
        if T::NARROW { _mm256_add_epi16(sum, pairs) } else { _mm256_add_epi32(sum, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1))) }
    }
}

/// Products of 8 rows with W columns of one block, added to `sums`.
#[inline(always)]
unsafe fn add_block<T: Tile, const W: usize>(t: *const u8, sub: usize, side: usize, group: *const i32, sums: &mut [__m256; W]) {
    // SAFETY: the caller gives a block and a group of W columns.
    unsafe {
        let numbers = group.add(8 * W).cast::<f32>();
        let scales = T::scales(t, sub, side);
        for (half, range) in if T::HALVES { [(0, 0..2), (1, 2..4)] } else { [(0, 0..4), (1, 0..0)] } {
            if range.is_empty() {
                continue;
            }
            let mut integers = [_mm256_setzero_si256(); W];
            for j in range {
                let weights = T::weights(t, sub, j, side);
                for i in 0..2 {
                    for c in 0..W {
                        integers[c] = add_group::<T>(integers[c], weights[i], *group.add((2 * j + i) * W + c));
                    }
                }
            }
            for c in 0..W {
                let integers = if T::NARROW { _mm256_madd_epi16(integers[c], _mm256_set1_epi16(1)) } else { integers[c] };
                let scale = _mm256_mul_ps(scales[half], _mm256_set1_ps(*numbers.add(c)));
                sums[c] = _mm256_fmadd_ps(_mm256_cvtepi32_ps(integers), scale, sums[c]);
            }
        }
        if T::SIGNED {
            return;
        }
        let minima = T::minima(t, sub, side, scales);
        for c in 0..W {
            sums[c] = _mm256_fmadd_ps(minima[1], _mm256_set1_ps(*numbers.add(W + c)), sums[c]);
            if T::HALVES {
                sums[c] = _mm256_fmadd_ps(_mm256_sub_ps(minima[0], minima[1]), _mm256_set1_ps(*numbers.add(2 * W + c)), sums[c]);
            }
        }
    }
}

/// One tile times W columns.
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn product<T: Tile, const W: usize>(p: &TileProduct) {
    /// How far ahead of its use a tile is asked for, where one column alone makes memory the bound.
    const AHEAD: usize = 2560;
    // SAFETY: by the contract of `tile_product`: blocks, groups and results are where `p` says. What is prefetched need not be there.
    unsafe {
        let mut sums = [[_mm256_setzero_ps(); W]; 2];
        for block in 0..p.blocks {
            let (t, sub) = (p.tile.add(block / T::SUBS * T::BYTES), block % T::SUBS);
            let group = p.group.add(block * W * BLOCK_BYTES).cast::<i32>();
            if W == 1 {
                let next = t.wrapping_add(sub * (T::BYTES / T::SUBS) + AHEAD);
                for line in (0..T::BYTES / T::SUBS).step_by(64) {
                    _mm_prefetch::<_MM_HINT_T0>(next.wrapping_add(line).cast());
                }
            }
            for (side, sums) in sums.iter_mut().enumerate() {
                add_block::<T, W>(t, sub, side, group, sums);
            }
        }
        for c in 0..p.columns {
            let mut results = [0f32; ROWS];
            _mm256_storeu_ps(results.as_mut_ptr(), sums[0][c]);
            _mm256_storeu_ps(results.as_mut_ptr().add(8), sums[1][c]);
            p.finish(c, &results);
        }
    }
}

/// One tile times one group of 1 or 4 columns.
///
/// # Safety
///
/// The CPU has AVX2, FMA and F16C, and the pointers have what `TileProduct` says.
pub unsafe fn tile_product(format: Format, p: &TileProduct) {
    /// # Safety
    ///
    /// As for `tile_product`.
    unsafe fn of<T: Tile>(p: &TileProduct) {
        // SAFETY: by the contract of `tile_product`.
        unsafe { if p.width == 1 { product::<T, 1>(p) } else { product::<T, 4>(p) } }
    }
    // SAFETY: by the contract of this function.
    unsafe {
        match format {
            Format::Q4_0 => of::<Q4_0>(p),
            Format::Q4_1 => of::<Q4_1>(p),
            Format::Q8_0 => of::<Q8_0>(p),
            Format::Q4K => of::<Q4K>(p),
            Format::Q6K => of::<Q6K>(p),
            Format::Panel => of::<Panels>(p),
            Format::WidePanel => of::<WidePanels>(p),
        }
    }
}
