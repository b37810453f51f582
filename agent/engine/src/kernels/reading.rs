//! Tiles read into registers: the twin of `tile::unpack`, written once for all vector instructions.
//!
//! The format is a constant wherever these functions are inlined, so that each becomes a few instructions. They read within a tile's block `t`: its
//! `sub`-th 32 columns, of the rows of one side.

use std::arch::x86_64::*;

use super::format::{Format, Plane};
use super::registers::{Registers, of_side};
use super::tile::{IQ4_VALUES, MXFP4_DOUBLED, Panel, ROWS};

/// What is added to weights of MXFP4, so that none is negative: much less than fills a byte.
const MXFP4_OFFSET: i8 = 12;

/// Numbers of 6 bits of a whole block of a tile, unpacked to bytes all at once: a byte a row, of each 32 columns first and last of two. See `tile`.
#[repr(C, align(64))]
pub struct SixBits([[[u8; ROWS]; 8]; 2]);

impl SixBits {
    pub const EMPTY: SixBits = SixBits([[[0; ROWS]; 8]; 2]);

    /// Reads those of the block `t`, where the format has any.
    #[inline(always)]
    pub unsafe fn read<R: Registers>(&mut self, format: Format, t: *const u8) {
        let at = match format {
            Format::Q3K => 32,
            Format::Q4K | Format::Q5K => 64,
            _ => return,
        };
        let step = size_of::<R::Bytes>();
        for from in (0..8 * ROWS).step_by(step) {
            // The high bits of 4 times 32 columns share bytes with those of the other 4.
            let (shared, shift) = (from % (4 * ROWS), from / (4 * ROWS) * 4);
            // SAFETY: the caller gives a whole block, which has 8 rows of low bits and 4 of high ones; both numbers have 8 rows here.
            unsafe {
                let (low, high) = (R::load(t.add(at + from)), R::load(t.add(at + 8 * ROWS + shared)));
                for (which, numbers) in self.0.iter_mut().enumerate() {
                    let low = R::and(R::shift(low, -(which as i32 * 4)), R::splat(15));
                    let high = R::and(R::shift(high, -((shift + which * 2) as i32)), R::splat(3));
                    R::store(numbers.as_mut_ptr().cast::<u8>().add(from), R::or(low, R::shift(high, 4)));
                }
            }
        }
    }

    /// The first or second number of each row, of the `sub`-th 32 columns.
    #[inline(always)]
    unsafe fn of(&self, sub: usize, which: usize) -> __m128i {
        // SAFETY: 16 bytes, aligned.
        unsafe { _mm_load_si128(self.0[which][sub].as_ptr().cast()) }
    }
}

/// Asks for the bytes that are read some time after these 32 columns, if that makes reading faster.
#[inline(always)]
pub unsafe fn prefetch<R: Registers>(format: Format, t: *const u8, sub: usize) {
    let bytes = format.bytes() / format.subs();
    if let Some(ahead) = R::AHEAD {
        for line in (0..bytes).step_by(64) {
            // SAFETY: what is prefetched need not be there.
            unsafe { _mm_prefetch::<_MM_HINT_T0>(t.wrapping_add(sub * bytes + ahead + line).cast()) };
        }
    }
}

/// One plane's codes of all 8 groups of 4 columns, each moved to bit `to` of its byte.
#[inline(always)]
unsafe fn codes<R: Registers>(plane: Plane, t: *const u8, sub: usize, side: usize, to: usize) -> [R::Bytes; 8] {
    let sharing = 8 / plane.bits;
    // SAFETY: the caller gives a whole block.
    unsafe {
        let from = of_side::<R>(t.add(plane.at + sub * plane.stride), side, 4);
        let mask = R::splat((((1u16 << plane.bits) - 1) << to) as u8);
        let mut groups = [mask; 8];
        for group in 0..8 {
            let shared = R::load(from.add(group / sharing * 64));
            if sharing == 1 {
                groups[group] = shared;
            } else {
                groups[group] = R::and(R::shift(shared, to as i32 - (group % sharing * plane.bits) as i32), mask);
            }
        }
        groups
    }
}

/// Weights of all 8 groups of 4 columns: not negative, or signed where the format is and the products take it.
#[inline(always)]
pub unsafe fn weights<R: Registers>(format: Format, t: *const u8, sub: usize, side: usize) -> [R::Bytes; 8] {
    // SAFETY: the caller gives a whole block.
    unsafe {
        let mut groups = codes::<R>(format.low(), t, sub, side, 0);
        if let Some(high) = format.high() {
            let high = codes::<R>(high, t, sub, side, format.low().bits);
            for group in 0..8 {
                groups[group] = R::or(groups[group], high[group]);
            }
        }
        for group in 0..8 {
            groups[group] = match format {
                Format::Q8_0 if R::UNSIGNED => R::xor(groups[group], R::splat(128)),
                Format::Iq4Nl | Format::Iq4Xs if R::UNSIGNED => R::look_up(const { &plus(IQ4_VALUES, -128) }, groups[group]),
                Format::Iq4Nl | Format::Iq4Xs => R::look_up(&IQ4_VALUES, groups[group]),
                Format::Mxfp4 => R::look_up(const { &plus(MXFP4_DOUBLED, MXFP4_OFFSET) }, groups[group]),
                _ => groups[group],
            };
        }
        groups
    }
}

const fn plus(mut values: [i8; 16], offset: i8) -> [i8; 16] {
    let mut i = 0;
    while i < 16 {
        values[i] = values[i].wrapping_add(offset);
        i += 1;
    }
    values
}

/// The scale of one half of the columns.
#[inline(always)]
unsafe fn scale<R: Registers>(format: Format, t: *const u8, six: &SixBits, sub: usize, side: usize, half: usize) -> R::Floats {
    // SAFETY: the caller gives a whole block.
    unsafe {
        if format == Format::Mxfp4 {
            return R::powers_of_two_halved(R::of_side(row_bytes(t, 0, 0), side));
        }
        let d = R::load_halves(of_side::<R>(t, side, 2));
        let scale = match format {
            Format::Q2K => _mm_and_si128(row_bytes(t, 64, sub * 2 + half), _mm_set1_epi8(15)),
            Format::Q3K => _mm_sub_epi8(six.of(sub, half), _mm_set1_epi8(32)),
            Format::Q4K | Format::Q5K => six.of(sub, 0),
            Format::Q6K => row_bytes(t, 32, sub * 2 + half),
            Format::Iq4Xs => {
                let low = shifted_right(row_bytes(t, 32, sub % 4), sub / 4 * 4, 15);
                let high = shifted_right(row_bytes(t, 96, sub / 4), sub % 4 * 2, 3);
                _mm_sub_epi8(_mm_or_si128(low, _mm_slli_epi16::<4>(high)), _mm_set1_epi8(32))
            }
            _ => return d,
        };
        R::mul(d, R::floats(R::of_side(scale, side)))
    }
}

/// Scales of both halves of the columns.
#[inline(always)]
pub unsafe fn scales<R: Registers>(format: Format, t: *const u8, six: &SixBits, sub: usize, side: usize) -> [R::Floats; 2] {
    // SAFETY: the caller gives a whole block.
    unsafe {
        let first = scale::<R>(format, t, six, sub, side, 0);
        [first, if format.has_halves() { scale::<R>(format, t, six, sub, side, 1) } else { first }]
    }
}

/// What a weight of 0 stands for in one half of the columns, whose scale is given.
#[inline(always)]
unsafe fn minimum<R: Registers>(
    format: Format,
    t: *const u8,
    six: &SixBits,
    sub: usize,
    side: usize,
    half: usize,
    scale: R::Floats,
) -> R::Floats {
    // SAFETY: the caller gives a whole block.
    unsafe {
        let offset = match format {
            Format::Q3K => -4.0,
            Format::Q4_0 => -8.0,
            Format::Mxfp4 => -f32::from(MXFP4_OFFSET),
            Format::Q5_0 => -16.0,
            Format::Q6K => -32.0,
            Format::Q8_0 | Format::Iq4Nl | Format::Iq4Xs => -128.0,
            Format::Q4_1 | Format::Q5_1 => return R::load_halves(of_side::<R>(t.add(32), side, 2)),
            Format::Q2K | Format::Q4K | Format::Q5K => {
                let minimum = match format {
                    Format::Q2K => shifted_right(row_bytes(t, 64, sub * 2 + half), 4, 15),
                    _ => six.of(sub, 1),
                };
                let d = R::load_halves(of_side::<R>(t.add(32), side, 2));
                return R::mul(R::sub(R::splat_float(0.0), d), R::floats(R::of_side(minimum, side)));
            }
        };
        R::mul(scale, R::splat_float(offset))
    }
}

/// What a weight of 0 stands for in both halves. Where weights are signed that is nothing.
#[inline(always)]
pub unsafe fn minima<R: Registers>(
    format: Format,
    t: *const u8,
    six: &SixBits,
    sub: usize,
    side: usize,
    scales: [R::Floats; 2],
) -> [R::Floats; 2] {
    // SAFETY: the caller gives a whole block.
    unsafe {
        let first = minimum::<R>(format, t, six, sub, side, 0, scales[0]);
        [first, if format.has_halves() { minimum::<R>(format, t, six, sub, side, 1, scales[1]) } else { first }]
    }
}

/// Row `index` of an array `[..][16]` of bytes that begins at byte `at`: a byte for each of the tile's rows.
#[inline(always)]
unsafe fn row_bytes(t: *const u8, at: usize, index: usize) -> __m128i {
    // SAFETY: the caller gives a whole block, and a place in it.
    unsafe { _mm_loadu_si128(t.add(at + index * ROWS).cast()) }
}

#[inline(always)]
unsafe fn shifted_right(bytes: __m128i, by: usize, mask: i8) -> __m128i {
    // SAFETY: needs no more than the instructions.
    unsafe { _mm_and_si128(_mm_srl_epi16(bytes, _mm_cvtsi32_si128(by as i32)), _mm_set1_epi8(mask)) }
}

/// Unpacks some blocks of 32 columns. The weights are those of `weights`; the first half's minimum has the second half's taken off where they differ.
#[inline(always)]
pub unsafe fn unpack<R: Registers>(format: Format, tile: *const u8, blocks: std::ops::Range<usize>, panels: &mut [Panel]) {
    let begin = blocks.start;
    let mut six = SixBits::EMPTY;
    for (block, panel) in blocks.zip(panels) {
        // SAFETY: the caller gives a tile with these blocks; a panel has room for what `Panel` says.
        unsafe {
            let (t, sub) = (tile.add(block / format.subs() * format.bytes()), block % format.subs());
            prefetch::<R>(format, t, sub);
            if sub == 0 || block == begin {
                six.read::<R>(format, t);
            }
            for side in 0..R::SIDES {
                let first = side * (ROWS / R::SIDES);
                let weights = weights::<R>(format, t, sub, side);
                for group in 0..8 {
                    R::store(panel.q.as_mut_ptr().add(group * 64 + first * 4), weights[group]);
                }
                let scales = scales::<R>(format, t, &six, sub, side);
                let mut minima = minima::<R>(format, t, &six, sub, side, scales);
                minima[0] = R::sub(minima[0], minima[1]);
                for half in 0..2 {
                    R::store_floats(panel.scale[half].as_mut_ptr().add(first), scales[half]);
                    R::store_floats(panel.minimum[half].as_mut_ptr().add(first), minima[half]);
                }
            }
        }
    }
}
