//! From rows as they lie in the file to a tile.

use super::super::format::Format;
use super::ROWS;

/// Packs up to 16 rows, given one after the other as they lie in the file, into one tile, which is zero before. Missing rows stay zeros.
pub fn pack(format: Format, rows: &[u8], row_bytes: usize, tile: &mut [u8]) {
    let block_bytes = format.bytes() / ROWS;
    for (row, data) in rows.chunks_exact(row_bytes).enumerate() {
        for (block, to) in data.chunks_exact(block_bytes).zip(tile.chunks_exact_mut(format.bytes())) {
            pack_scales(format, block, row, to);
            pack_codes(format, block, row, to);
        }
    }
}

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

fn pack_codes(format: Format, b: &[u8], row: usize, to: &mut [u8]) {
    match format {
        Format::Q4_0 | Format::Iq4Nl => set_codes(format, row, to, |_, c| nibble(&b[2..], c)),
        Format::Q4_1 => set_codes(format, row, to, |_, c| nibble(&b[4..], c)),
        Format::Mxfp4 => set_codes(format, row, to, |_, c| nibble(&b[1..], c)),
        Format::Iq4Xs => set_codes(format, row, to, |sub, c| nibble(&b[8 + sub * 16..], c)),
        Format::Q5_0 => set_codes(format, row, to, |_, c| nibble(&b[6..], c) | bit(&b[2..], c) << 4),
        Format::Q5_1 => set_codes(format, row, to, |_, c| nibble(&b[8..], c) | bit(&b[4..], c) << 4),
        Format::Q8_0 => set_codes(format, row, to, |_, c| b[2 + c]),
        Format::Q2K => set_codes(format, row, to, |sub, c| b[16 + sub / 4 * 32 + c] >> (sub % 4 * 2) & 3),
        Format::Q3K => {
            // The high bit is stored inverted: set means that 4 is not taken off, so all weights are 4 too high with it added.
            let low = |sub: usize, c: usize| b[32 + sub / 4 * 32 + c] >> (sub % 4 * 2) & 3;
            set_codes(format, row, to, |sub, c| low(sub, c) | (b[c] >> sub & 1) << 2);
        }
        Format::Q4K => set_codes(format, row, to, |sub, c| b[16 + sub / 2 * 32 + c] >> (sub % 2 * 4) & 15),
        Format::Q5K => {
            let low = |sub: usize, c: usize| b[48 + sub / 2 * 32 + c] >> (sub % 2 * 4) & 15;
            set_codes(format, row, to, |sub, c| low(sub, c) | (b[16 + c] >> sub & 1) << 4);
        }
        Format::Q6K => {
            let low = |part: usize, quarter: usize, c: usize| b[part * 64 + quarter % 2 * 32 + c] >> (quarter / 2 * 4) & 15;
            let high = |part: usize, quarter: usize, c: usize| b[128 + part * 32 + c] >> (quarter * 2) & 3;
            set_codes(format, row, to, |sub, c| low(sub / 4, sub % 4, c) | high(sub / 4, sub % 4, c) << 4);
        }
    }
}

/// Weights 0 to 15 are the low halves of 16 bytes, 16 to 31 the high ones.
fn nibble(bytes: &[u8], column: usize) -> u8 {
    if column < 16 { bytes[column] & 15 } else { bytes[column - 16] >> 4 }
}

fn bit(bytes: &[u8], column: usize) -> u8 {
    bytes[column / 8] >> (column % 8) & 1
}

/// Sets the codes of one row of a tile's block, each given its sub-block and its column there.
#[inline(always)]
fn set_codes(format: Format, row: usize, to: &mut [u8], code: impl Fn(usize, usize) -> u8) {
    let (low, high) = (format.low(), format.high());
    for sub in 0..format.subs() {
        for column in 0..32 {
            let code = code(sub, column);
            low.set(to, row, sub * 32 + column, code);
            if let Some(high) = high {
                high.set(to, row, sub * 32 + column, code >> low.bits);
            }
        }
    }
}
