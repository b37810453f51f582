//! Products with AVX-512 VNNI: `vpdpbusd` multiplies 4 unsigned weights of each of 16 rows with 4 signed activations and adds up in 32 bits.
//!
//! A block of 32 weights is spread over 8 registers, which up to 8 columns then share.

use std::arch::x86_64::*;

use super::product::{Format, TileProduct};
use super::rows::BLOCK_BYTES;
use super::tile::{Panel, ROWS};

/// How to read a format, see `tile`. All functions read within one of the tile's blocks.
trait Tile {
    /// Bytes of one of the tile's blocks, and how many blocks of 32 columns are in it.
    const BYTES: usize;
    const SUBS: usize = 1;
    /// Whether the two halves of 32 columns have scales of their own.
    const HALVES: bool = false;

    /// Weights, unsigned.
    unsafe fn weights(t: *const u8, sub: usize) -> [__m512i; 8];
    unsafe fn scales(t: *const u8, sub: usize) -> [__m512; 2];
    /// What a weight of 0 stands for.
    unsafe fn minima(t: *const u8, sub: usize, scales: [__m512; 2]) -> [__m512; 2];
}

#[inline(always)]
unsafe fn halves(t: *const u8) -> __m512 {
    // SAFETY: the caller gives 32 bytes.
    unsafe { _mm512_cvtph_ps(_mm256_loadu_si256(t.cast())) }
}

#[inline(always)]
unsafe fn nibbles(t: *const u8) -> [__m512i; 8] {
    // SAFETY: the caller gives 256 bytes.
    unsafe {
        let mask = _mm512_set1_epi8(15);
        let mut groups = [_mm512_setzero_si512(); 8];
        for j in 0..4 {
            let both = _mm512_loadu_si512(t.add(j * 64).cast());
            groups[2 * j] = _mm512_and_si512(both, mask);
            groups[2 * j + 1] = _mm512_and_si512(_mm512_srli_epi16::<4>(both), mask);
        }
        groups
    }
}

macro_rules! tile_format {
    ($name:ident: $bytes:expr, [$($constant:ident = $value:expr),*], weights($t1:ident, $sub1:ident) $weights:block scales($t2:ident, $sub2:ident) $scales:block minima($t3:ident, $sub3:ident, $scales3:ident) $minima:block) => {
        struct $name;
        impl Tile for $name {
            const BYTES: usize = $bytes;
            $(const $constant: tile_format!(@type $constant) = $value;)*
            #[inline(always)]
            unsafe fn weights($t1: *const u8, $sub1: usize) -> [__m512i; 8] {
                // SAFETY: the caller gives a whole block of this format.
                unsafe { $weights }
            }
            #[inline(always)]
            unsafe fn scales($t2: *const u8, $sub2: usize) -> [__m512; 2] {
                // SAFETY: as above.
                unsafe { $scales }
            }
            #[inline(always)]
            unsafe fn minima($t3: *const u8, $sub3: usize, $scales3: [__m512; 2]) -> [__m512; 2] {
                // SAFETY: as above.
                unsafe { $minima }
            }
        }
    };
    (@type SUBS) => { usize };
    (@type HALVES) => { bool };
}

tile_format! {
    Q4_0: 18 * ROWS, [],
    weights(t, _sub) { nibbles(t.add(32)) }
    scales(t, _sub) { [halves(t); 2] }
    minima(_t, _sub, scales) { [_mm512_mul_ps(scales[0], _mm512_set1_ps(-8.0)); 2] }
}

tile_format! {
    Q4_1: 20 * ROWS, [],
    weights(t, _sub) { nibbles(t.add(64)) }
    scales(t, _sub) { [halves(t); 2] }
    minima(t, _sub, _scales) { [halves(t.add(32)); 2] }
}

tile_format! {
    Q8_0: 34 * ROWS, [],
    weights(t, _sub) {
        let mut groups = [_mm512_setzero_si512(); 8];
        for (j, group) in groups.iter_mut().enumerate() {
            // Made unsigned by adding 128, which the minimum takes off again.
            *group = _mm512_xor_si512(_mm512_loadu_si512(t.add(32 + j * 64).cast()), _mm512_set1_epi8(-128));
        }
        groups
    }
    scales(t, _sub) { [halves(t); 2] }
    minima(_t, _sub, scales) { [_mm512_mul_ps(scales[0], _mm512_set1_ps(-128.0)); 2] }
}

tile_format! {
    Q4K: 144 * ROWS, [SUBS = 8],
    weights(t, sub) { nibbles(t.add(256 + sub * 256)) }
    scales(t, sub) {
        let low = _mm_and_si128(_mm_loadu_si128(t.add(64 + sub * 16).cast()), _mm_set1_epi8(15));
        let high = _mm_and_si128(_mm_slli_epi16::<4>(q4k_high_bits(t, sub)), _mm_set1_epi8(0x30));
        let scale = _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(_mm_or_si128(low, high)));
        [_mm512_mul_ps(halves(t), scale); 2]
    }
    minima(t, sub, _scales) {
        let low = _mm_and_si128(_mm_srli_epi16::<4>(_mm_loadu_si128(t.add(64 + sub * 16).cast())), _mm_set1_epi8(15));
        let high = _mm_and_si128(_mm_slli_epi16::<2>(q4k_high_bits(t, sub)), _mm_set1_epi8(0x30));
        let minimum = _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(_mm_or_si128(low, high)));
        [_mm512_mul_ps(_mm512_sub_ps(_mm512_setzero_ps(), halves(t.add(32))), minimum); 2]
    }
}

/// High bits of a sub-block's scales and minima, in the low 4 bits of each byte.
#[inline(always)]
unsafe fn q4k_high_bits(t: *const u8, sub: usize) -> __m128i {
    // SAFETY: the caller gives a whole block.
    unsafe {
        let both = _mm_loadu_si128(t.add(192 + sub % 4 * 16).cast());
        if sub < 4 { both } else { _mm_srli_epi16::<4>(both) }
    }
}

tile_format! {
    Q6K: 210 * ROWS, [SUBS = 8, HALVES = true],
    weights(t, sub) {
        let mut groups = nibbles(t.add(288 + sub * 256));
        let mask = _mm512_set1_epi8(0x30);
        for c in 0..2 {
            let high = _mm512_loadu_si512(t.add(2336 + sub * 128 + c * 64).cast());
            groups[4 * c] = _mm512_or_si512(groups[4 * c], _mm512_and_si512(_mm512_slli_epi16::<4>(high), mask));
            groups[4 * c + 1] = _mm512_or_si512(groups[4 * c + 1], _mm512_and_si512(_mm512_slli_epi16::<2>(high), mask));
            groups[4 * c + 2] = _mm512_or_si512(groups[4 * c + 2], _mm512_and_si512(high, mask));
            groups[4 * c + 3] = _mm512_or_si512(groups[4 * c + 3], _mm512_and_si512(_mm512_srli_epi16::<2>(high), mask));
        }
        groups
    }
    scales(t, sub) {
        let scale = |i: usize| _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(t.add(32 + (sub * 2 + i) * 16).cast())));
        [_mm512_mul_ps(halves(t), scale(0)), _mm512_mul_ps(halves(t), scale(1))]
    }
    minima(_t, _sub, scales) {
        [_mm512_mul_ps(scales[0], _mm512_set1_ps(-32.0)), _mm512_mul_ps(scales[1], _mm512_set1_ps(-32.0))]
    }
}

tile_format! {
    Panels: size_of::<Panel>(), [HALVES = true],
    weights(t, _sub) {
        let mut groups = [_mm512_setzero_si512(); 8];
        for (j, group) in groups.iter_mut().enumerate() {
            *group = _mm512_loadu_si512(t.add(j * 64).cast());
        }
        groups
    }
    scales(t, _sub) { [_mm512_loadu_ps(t.add(512).cast()), _mm512_loadu_ps(t.add(576).cast())] }
    minima(t, _sub, _scales) { [_mm512_loadu_ps(t.add(640).cast()), _mm512_loadu_ps(t.add(704).cast())] }
}

/// One tile times W columns.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx2,fma,f16c")]
unsafe fn product<T: Tile, const W: usize>(p: &TileProduct) {
    /// How far ahead of its use a tile is asked for, where one column alone makes memory the bound.
    const AHEAD: usize = 4096;
    // SAFETY: by the contract of `tile_product`: blocks, groups and results are where `p` says. What is prefetched need not be there.
    unsafe {
        let mut sums = [_mm512_setzero_ps(); W];
        for block in 0..p.blocks {
            let (t, sub) = (p.tile.add(block / T::SUBS * T::BYTES), block % T::SUBS);
            let group = p.group.add(block * W * BLOCK_BYTES).cast::<i32>();
            let numbers = group.add(8 * W).cast::<f32>();
            if W == 1 {
                let next = t.wrapping_add(sub * (T::BYTES / T::SUBS) + AHEAD);
                for line in (0..T::BYTES / T::SUBS).step_by(64) {
                    _mm_prefetch::<_MM_HINT_T0>(next.wrapping_add(line).cast());
                }
            }
            let weights = T::weights(t, sub);
            let scales = T::scales(t, sub);
            for (half, range) in if T::HALVES { [(0, 0..4), (1, 4..8)] } else { [(0, 0..8), (1, 0..0)] } {
                if range.is_empty() {
                    continue;
                }
                let mut integers = [_mm512_setzero_si512(); W];
                for g in range {
                    for c in 0..W {
                        integers[c] = _mm512_dpbusd_epi32(integers[c], weights[g], _mm512_set1_epi32(*group.add(g * W + c)));
                    }
                }
                for c in 0..W {
                    let scale = _mm512_mul_ps(scales[half], _mm512_set1_ps(*numbers.add(c)));
                    sums[c] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(integers[c]), scale, sums[c]);
                }
            }
            {
                let minima = T::minima(t, sub, scales);
                for c in 0..W {
                    sums[c] = _mm512_fmadd_ps(minima[1], _mm512_set1_ps(*numbers.add(W + c)), sums[c]);
                    if T::HALVES {
                        let difference = _mm512_sub_ps(minima[0], minima[1]);
                        sums[c] = _mm512_fmadd_ps(difference, _mm512_set1_ps(*numbers.add(2 * W + c)), sums[c]);
                    }
                }
            }
        }
        for (c, sum) in sums.iter().enumerate().take(p.columns) {
            let to = p.to.add(c * p.stride);
            let rows = ((1u32 << p.rows) - 1) as __mmask16;
            let before = if p.add { _mm512_maskz_loadu_ps(rows, to) } else { _mm512_setzero_ps() };
            _mm512_mask_storeu_ps(to, rows, _mm512_add_ps(before, *sum));
        }
    }
}

/// One tile times one group of 1, 4 or 8 columns.
///
/// # Safety
///
/// The CPU has AVX-512 with VNNI, and the pointers have what `TileProduct` says.
pub unsafe fn tile_product(format: Format, p: &TileProduct) {
    /// # Safety
    ///
    /// As for `tile_product`.
    unsafe fn of<T: Tile>(p: &TileProduct) {
        // SAFETY: by the contract of `tile_product`.
        unsafe {
            match p.width {
                1 => product::<T, 1>(p),
                4 => product::<T, 4>(p),
                _ => product::<T, 8>(p),
            }
        }
    }
    // SAFETY: by the contract of this function.
    unsafe {
        match format {
            Format::Q4_0 => of::<Q4_0>(p),
            Format::Q4_1 => of::<Q4_1>(p),
            Format::Q8_0 => of::<Q8_0>(p),
            Format::Q4K => of::<Q4K>(p),
            Format::Q6K => of::<Q6K>(p),
            Format::Panel | Format::WidePanel => of::<Panels>(p),
        }
    }
}
