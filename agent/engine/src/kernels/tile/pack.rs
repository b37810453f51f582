//! From rows as they lie in the file to a tile.

use super::super::format::{Format, by_format};
use super::ROWS;

/// Packs up to 16 rows, given one after the other as they lie in the file, into one tile, which is zero before. Missing rows stay zeros.
pub fn pack(format: Format, rows: &[u8], row_bytes: usize, tile: &mut [u8]) {
    by_format!(format, pack_as(rows, row_bytes, tile))
}

/// The format is a constant, so that places and masks are.
fn pack_as<const FORMAT: usize>(rows: &[u8], row_bytes: usize, tile: &mut [u8]) {
    let format = Format::ALL[FORMAT];
    let block_bytes = format.bytes() / ROWS;
    for (row, data) in rows.chunks_exact(row_bytes).enumerate() {
        for (block, to) in data.chunks_exact(block_bytes).zip(tile.chunks_exact_mut(format.bytes())) {
            pack_scales(format, block, row, to);
            pack_codes(format, block, row, to);
        }
    }
}

#[inline(always)]
fn pack_scales(format: Format, b: &[u8], row: usize, to: &mut [u8]) {
    let mut halves = |places: &[usize]| {
        for (i, &from) in places.iter().enumerate() {
            to[i * 32 + row * 2..][..2].copy_from_slice(&b[from..from + 2]);
        }
    };
    match format {
        Format::Q4_0 | Format::Q5_0 | Format::Q8_0 | Format::Iq4Nl => halves(&[0]),
        Format::Q4_1 | Format::Q5_1 => halves(&[0, 2]),
        Format::Mxfp4 => to[row] = b[0],
        Format::Q2K => {
            halves(&[80, 82]);
            (0..16).for_each(|i| to[64 + i * 16 + row] = b[i]);
        }
        Format::Q3K => {
            halves(&[108]);
            (0..8).for_each(|sub| set_six_bits(&mut to[32..], sub, row, scale_q3_k(&b[96..], sub * 2), scale_q3_k(&b[96..], sub * 2 + 1)));
        }
        Format::Q4K | Format::Q5K => {
            halves(&[0, 2]);
            for sub in 0..8 {
                let (scale, minimum) = scale_and_minimum(&b[4..16], sub);
                set_six_bits(&mut to[64..], sub, row, scale, minimum);
            }
        }
        Format::Q6K => {
            halves(&[208]);
            (0..16).for_each(|i| to[32 + i * 16 + row] = b[192 + i]);
        }
        Format::Iq4Xs => {
            halves(&[0]);
            for sub in 0..8 {
                to[32 + sub % 4 * 16 + row] |= (b[4 + sub / 2] >> (sub % 2 * 4) & 15) << (sub / 4 * 4);
                to[96 + sub / 4 * 16 + row] |= (b[2 + sub / 4] >> (sub % 4 * 2) & 3) << (sub % 4 * 2);
            }
        }
    }
}

/// Two numbers of 6 bits for each sub-block: `[8][16]` their low 4 bits, `[4][16]` their high 2 bits.
fn set_six_bits(to: &mut [u8], sub: usize, row: usize, first: u8, second: u8) {
    to[sub * 16 + row] = first & 15 | second << 4;
    to[128 + sub % 4 * 16 + row] |= (first >> 4 | second >> 4 << 2) << (sub / 4 * 4);
}

/// Scale and minimum of sub-block `sub` of Q4_K and Q5_K: 6 bits each, in 12 bytes (ggml's `get_scale_min_k4`).
fn scale_and_minimum(bytes: &[u8], sub: usize) -> (u8, u8) {
    if sub < 4 {
        (bytes[sub] & 63, bytes[sub + 4] & 63)
    } else {
        (bytes[sub + 4] & 15 | bytes[sub - 4] >> 6 << 4, bytes[sub + 4] >> 4 | bytes[sub] >> 6 << 4)
    }
}

/// Scale `i` of 16 of a Q3_K block: 6 bits, 32 too high, low 4 bits in bytes 0 to 7 and high 2 bits in bytes 8 to 11.
fn scale_q3_k(bytes: &[u8], i: usize) -> u8 {
    let low = bytes[i % 8] >> (i / 8 * 4) & 15;
    let high = bytes[8 + i % 4] >> (i / 4 * 2) & 3;
    low | high << 4
}

#[inline(always)]
fn pack_codes(format: Format, b: &[u8], row: usize, to: &mut [u8]) {
    match format {
        Format::Q4_0 | Format::Iq4Nl => set_codes(format, row, to, |_, g| nibbles(&b[2..], g)),
        Format::Q4_1 => set_codes(format, row, to, |_, g| nibbles(&b[4..], g)),
        Format::Mxfp4 => set_codes(format, row, to, |_, g| nibbles(&b[1..], g)),
        Format::Iq4Xs => set_codes(format, row, to, |sub, g| nibbles(&b[8 + sub * 16..], g)),
        Format::Q5_0 => set_codes(format, row, to, |_, g| nibbles(&b[6..], g) | bits(&b[2..], g) << 4),
        Format::Q5_1 => set_codes(format, row, to, |_, g| nibbles(&b[8..], g) | bits(&b[4..], g) << 4),
        Format::Q8_0 => set_codes(format, row, to, |_, g| four(&b[2..], g)),
        Format::Q2K => set_codes(format, row, to, |sub, g| four(&b[16 + sub / 4 * 32..], g) >> (sub % 4 * 2) & each(3)),
        Format::Q3K => {
            // The high bit is stored inverted: set means that 4 is not taken off, so all weights are 4 too high with it added.
            let low = |sub: usize, g: usize| four(&b[32 + sub / 4 * 32..], g) >> (sub % 4 * 2) & each(3);
            set_codes(format, row, to, |sub, g| low(sub, g) | (four(b, g) >> sub & each(1)) << 2);
        }
        Format::Q4K => set_codes(format, row, to, |sub, g| four(&b[16 + sub / 2 * 32..], g) >> (sub % 2 * 4) & each(15)),
        Format::Q5K => {
            let low = |sub: usize, g: usize| four(&b[48 + sub / 2 * 32..], g) >> (sub % 2 * 4) & each(15);
            set_codes(format, row, to, |sub, g| low(sub, g) | (four(&b[16..], g) >> sub & each(1)) << 4);
        }
        Format::Q6K => {
            let low = |part: usize, quarter: usize, g: usize| four(&b[part * 64 + quarter % 2 * 32..], g) >> (quarter / 2 * 4) & each(15);
            let high = |part: usize, quarter: usize, g: usize| four(&b[128 + part * 32..], g) >> (quarter * 2) & each(3);
            set_codes(format, row, to, |sub, g| low(sub / 4, sub % 4, g) | high(sub / 4, sub % 4, g) << 4);
        }
    }
}

/// The `group`-th four of some bytes, the first in the lowest bits.
#[inline(always)]
fn four(bytes: &[u8], group: usize) -> u32 {
    let at = group * 4;
    u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

/// The same number in four bytes.
const fn each(byte: u32) -> u32 {
    byte * 0x0101_0101
}

/// Four of 32 codes: 0 to 15 are the low halves of 16 bytes, 16 to 31 the high ones.
#[inline(always)]
fn nibbles(bytes: &[u8], group: usize) -> u32 {
    four(bytes, group % 4) >> (group / 4 * 4) & each(15)
}

/// Four of 32 bits, each in a byte.
#[inline(always)]
fn bits(bytes: &[u8], group: usize) -> u32 {
    let together = u32::from(bytes[group / 2] >> (group % 2 * 4) & 15);
    // Four copies, 7 bits apart: each bit comes to stand once where a byte begins.
    (together * 0x0020_4081) & each(1)
}

/// Sets the codes of one row of a tile's block, four at a time, each four given their sub-block and their group there.
#[inline(always)]
fn set_codes(format: Format, row: usize, to: &mut [u8], codes: impl Fn(usize, usize) -> u32) {
    let (low, high) = (format.low(), format.high());
    for sub in 0..format.subs() {
        for group in 0..8 {
            let codes = codes(sub, group);
            low.set(to, row, sub, group, codes);
            if let Some(high) = high {
                high.set(to, row, sub, group, codes >> low.bits);
            }
        }
    }
}
