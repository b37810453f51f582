//! How quantised weights lie in memory: tiles of 16 rows. And the one scalar reading of every type, from which each faster kernel is checked.
//!
//! In the types that have kernels of their own a tile interleaves its rows in groups of 4 columns: columns 4g to 4g + 3 of row r stand at byte
//! `(16 g + r) x 4`, so that one vector holds 4 columns of 8 or 16 rows, which is what the CPU's dot-product instructions take. Of 4-bit weights, group
//! 2j has the low halves and group 2j + 1 the high halves of the same 64 bytes. No tile is larger than its 16 rows are in the file.
//!
//! | type | a tile's block, in this order |
//! |---|---|
//! | Q4_0 | 16 scales f16; 256 bytes of 4-bit weights |
//! | Q4_1 | 16 scales f16; 16 minima f16; 256 bytes of 4-bit weights |
//! | Q8_0 | 16 scales f16; 512 bytes of signed weights |
//! | Q4_K | 16 scales f16; 16 minima f16; `[8][16]` low 4 bits of each sub-block's scale and minimum; `[4][16]` their high 2 bits; 8 x 256 bytes of 4-bit weights |
//! | Q6_K | 16 scales f16; `[16][16]` scales of sub-blocks i8; 8 x 256 bytes of the weights' low 4 bits; 8 x 128 bytes of their high 2 bits, bits 2i of chunk c being group 4c + i |
//!
//! The other types keep their rows as in the file, and are read by [`unpack`] into a [`Panel`].

use std::ops::Range;

use half::f16;
use stowage_placement::gguf::GgmlType;

/// Rows of a tile.
pub const ROWS: usize = 16;

/// 32 columns of 16 rows in a form that all types can be brought into: weight = `scale x q + minimum`, with a scale and a minimum for each half of the
/// columns. Interleaved as a tile is.
#[repr(C, align(64))]
#[derive(Clone)]
pub struct Panel {
    pub q: [u8; 512],
    pub scale: [[f32; ROWS]; 2],
    pub minimum: [[f32; ROWS]; 2],
}

impl Panel {
    pub const EMPTY: Panel = Panel { q: [0; 512], scale: [[0.0; ROWS]; 2], minimum: [[0.0; ROWS]; 2] };

    /// Weight at `column` (below 32) of `row`.
    pub fn weight(&self, row: usize, column: usize) -> f32 {
        let half = column / 16;
        self.scale[half][row] * f32::from(self.q[at(row, column)]) + self.minimum[half][row]
    }

    fn set_row(&mut self, row: usize, scales: [f32; 2], minima: [f32; 2], q: impl Fn(usize) -> u8) {
        for half in 0..2 {
            self.scale[half][row] = scales[half];
            self.minimum[half][row] = minima[half];
        }
        for column in 0..32 {
            self.q[at(row, column)] = q(column);
        }
    }
}

/// Where a tile has the byte of `column` (below 32) of `row`.
const fn at(row: usize, column: usize) -> usize {
    column / 4 * 64 + row * 4 + column % 4
}

/// Whether rows of this type are interleaved when they are packed.
pub fn is_interleaved(ty: GgmlType) -> bool {
    matches!(ty, GgmlType::Q4_0 | GgmlType::Q4_1 | GgmlType::Q8_0 | GgmlType::Q4_K | GgmlType::Q6_K)
}

/// Packs up to 16 rows, given one after the other as they lie in the file, into one tile. Missing rows become zeros.
pub fn pack(ty: GgmlType, rows: &[u8], row_bytes: usize, tile: &mut [u8]) {
    if !is_interleaved(ty) {
        tile[..rows.len()].copy_from_slice(rows);
        return;
    }
    let block_bytes = ty.block_bytes() as usize;
    for (row, data) in rows.chunks_exact(row_bytes).enumerate() {
        for (block, to) in data.chunks_exact(block_bytes).zip(tile.chunks_exact_mut(block_bytes * ROWS)) {
            match ty {
                GgmlType::Q4_0 => pack_q4_0(block, row, to),
                GgmlType::Q4_1 => pack_q4_1(block, row, to),
                GgmlType::Q8_0 => pack_q8_0(block, row, to),
                GgmlType::Q4_K => pack_q4_k(block, row, to),
                _ => pack_q6_k(block, row, to),
            }
        }
    }
}

fn set_half(to: &mut [u8], row: usize, from: &[u8]) {
    to[row * 2..row * 2 + 2].copy_from_slice(&from[..2]);
}

/// Weights 0 to 15 are the low halves of 16 bytes, 16 to 31 the high ones.
fn pack_nibbles_of_32(bytes: &[u8], row: usize, to: &mut [u8]) {
    for (j, chunk) in to.chunks_exact_mut(64).take(4).enumerate() {
        for i in 0..4 {
            let weight = |column: usize| if column < 16 { bytes[column] & 15 } else { bytes[column - 16] >> 4 };
            chunk[row * 4 + i] = weight(8 * j + i) | weight(8 * j + 4 + i) << 4;
        }
    }
}

fn pack_q4_0(block: &[u8], row: usize, to: &mut [u8]) {
    set_half(to, row, block);
    pack_nibbles_of_32(&block[2..], row, &mut to[32..]);
}

fn pack_q4_1(block: &[u8], row: usize, to: &mut [u8]) {
    set_half(to, row, block);
    set_half(&mut to[32..], row, &block[2..]);
    pack_nibbles_of_32(&block[4..], row, &mut to[64..]);
}

fn pack_q8_0(block: &[u8], row: usize, to: &mut [u8]) {
    set_half(to, row, block);
    for (group, four) in block[2..34].chunks_exact(4).enumerate() {
        to[32 + group * 64 + row * 4..][..4].copy_from_slice(four);
    }
}

fn pack_q4_k(block: &[u8], row: usize, to: &mut [u8]) {
    set_half(to, row, block);
    set_half(&mut to[32..], row, &block[2..]);
    for sub in 0..8 {
        let (scale, minimum) = scale_and_minimum(&block[4..16], sub);
        to[64 + sub * 16 + row] = scale & 15 | minimum << 4;
        to[192 + sub % 4 * 16 + row] |= (scale >> 4 | minimum >> 4 << 2) << (sub / 4 * 4);
        let bytes = &block[16 + sub / 2 * 32..][..32];
        let weight = |column: usize| bytes[column] >> (sub % 2 * 4) & 15;
        pack_nibbles(row, &mut to[256 + sub * 256..], weight);
    }
}

fn pack_q6_k(block: &[u8], row: usize, to: &mut [u8]) {
    set_half(to, row, &block[208..]);
    for sub in 0..16 {
        to[32 + sub * 16 + row] = block[192 + sub];
    }
    for sub in 0..8 {
        pack_nibbles(row, &mut to[288 + sub * 256..], |column| weight_q6_k(block, sub * 32 + column) & 15);
        for column in 0..32 {
            let group = column / 4;
            let high = weight_q6_k(block, sub * 32 + column) >> 4;
            to[2336 + sub * 128 + group / 4 * 64 + row * 4 + column % 4] |= high << (group % 4 * 2);
        }
    }
}

/// 32 weights of 4 bits into the 256 bytes of a tile.
fn pack_nibbles(row: usize, to: &mut [u8], weight: impl Fn(usize) -> u8) {
    for (j, chunk) in to.chunks_exact_mut(64).take(4).enumerate() {
        for i in 0..4 {
            chunk[row * 4 + i] = weight(8 * j + i) | weight(8 * j + 4 + i) << 4;
        }
    }
}

/// Scale and minimum of sub-block `sub` of Q4_K and Q5_K: 6 bits each, in 12 bytes (ggml's `get_scale_min_k4`).
fn scale_and_minimum(bytes: &[u8], sub: usize) -> (u8, u8) {
    if sub < 4 {
        (bytes[sub] & 63, bytes[sub + 4] & 63)
    } else {
        (bytes[sub + 4] & 15 | bytes[sub - 4] >> 6 << 4, bytes[sub + 4] >> 4 | bytes[sub] >> 6 << 4)
    }
}

/// The weight at `i` of a Q6_K block as it lies in the file, from 0 to 63.
fn weight_q6_k(block: &[u8], i: usize) -> u8 {
    let (part, quarter, l) = (i / 128, i % 128 / 32, i % 32);
    let low = block[part * 64 + quarter % 2 * 32 + l] >> (quarter / 2 * 4) & 15;
    low | (block[128 + part * 32 + l] >> (quarter * 2) & 3) << 4
}

fn half(bytes: &[u8], index: usize) -> f32 {
    f16::from_le_bytes([bytes[index * 2], bytes[index * 2 + 1]]).to_f32()
}

/// Columns `32 block` to `32 block + 31` of some of a tile's rows; the others' places in the panel stay as they are. `row_bytes` is what one row takes in
/// the file.
pub fn unpack(ty: GgmlType, tile: &[u8], row_bytes: usize, block: usize, rows: Range<usize>, panel: &mut Panel) {
    let per_block = ty.block_elements() as usize / 32;
    let bytes = ty.block_bytes() as usize;
    let (index, sub) = (block / per_block, block % per_block);
    let interleaved = || &tile[index * bytes * ROWS..][..bytes * ROWS];
    match ty {
        GgmlType::Q4_0 => unpack_interleaved(interleaved(), 32, rows, panel, |t, row| {
            let d = half(t, row);
            ([d; 2], [-8.0 * d; 2])
        }),
        GgmlType::Q4_1 => unpack_interleaved(interleaved(), 64, rows, panel, |t, row| ([half(t, row); 2], [half(t, 16 + row); 2])),
        GgmlType::Q8_0 => unpack_q8_0(interleaved(), rows, panel),
        GgmlType::Q4_K => unpack_interleaved(interleaved(), 256 + sub * 256, rows, panel, |t, row| {
            let high = t[192 + sub % 4 * 16 + row] >> (sub / 4 * 4);
            let low = t[64 + sub * 16 + row];
            let (scale, minimum) = (low & 15 | (high & 3) << 4, low >> 4 | (high >> 2 & 3) << 4);
            ([half(t, row) * f32::from(scale); 2], [-half(t, 16 + row) * f32::from(minimum); 2])
        }),
        GgmlType::Q6_K => unpack_q6_k(interleaved(), sub, rows, panel),
        _ => {
            for row in rows {
                unpack_row(ty, &tile[row * row_bytes + index * bytes..][..bytes], sub, row, panel);
            }
        }
    }
}

type Scales = ([f32; 2], [f32; 2]);

fn unpack_interleaved(tile: &[u8], weights: usize, rows: Range<usize>, panel: &mut Panel, scales: impl Fn(&[u8], usize) -> Scales) {
    for row in rows {
        let (scale, minimum) = scales(tile, row);
        panel.set_row(row, scale, minimum, |column| {
            let byte = tile[weights + column / 8 * 64 + row * 4 + column % 4];
            byte >> (column / 4 % 2 * 4) & 15
        });
    }
}

fn unpack_q8_0(tile: &[u8], rows: Range<usize>, panel: &mut Panel) {
    for row in rows {
        let d = half(tile, row);
        panel.set_row(row, [d; 2], [-128.0 * d; 2], |column| tile[32 + at(row, column)] ^ 0x80);
    }
}

fn unpack_q6_k(tile: &[u8], sub: usize, rows: Range<usize>, panel: &mut Panel) {
    unpack_interleaved(tile, 288 + sub * 256, rows.clone(), panel, |t, row| {
        let scale = |i: usize| half(t, row) * f32::from(t[32 + (sub * 2 + i) * 16 + row] as i8);
        ([scale(0), scale(1)], [-32.0 * scale(0), -32.0 * scale(1)])
    });
    for row in rows {
        for column in 0..32 {
            let group = column / 4;
            let high = tile[2336 + sub * 128 + group / 4 * 64 + row * 4 + column % 4] >> (group % 4 * 2) & 3;
            panel.q[at(row, column)] |= high << 4;
        }
    }
}

/// Columns `32 sub` to `32 sub + 31` of one row's block as it lies in the file.
fn unpack_row(ty: GgmlType, b: &[u8], sub: usize, row: usize, panel: &mut Panel) {
    let nibble = |bytes: &[u8], column: usize| if column < 16 { bytes[column] & 15 } else { bytes[column - 16] >> 4 };
    let bit = |bytes: &[u8], column: usize| bytes[column / 8] >> (column % 8) & 1;
    match ty {
        GgmlType::Q5_0 => {
            let d = half(b, 0);
            panel.set_row(row, [d; 2], [-16.0 * d; 2], |c| nibble(&b[6..], c) | bit(&b[2..6], c) << 4);
        }
        GgmlType::Q5_1 => panel.set_row(row, [half(b, 0); 2], [half(b, 1); 2], |c| nibble(&b[8..], c) | bit(&b[4..8], c) << 4),
        GgmlType::Q2_K => {
            let (d, m) = (half(&b[80..], 0), half(&b[82..], 0));
            let scales = [b[sub * 2], b[sub * 2 + 1]];
            let q = |c: usize| b[16 + sub / 4 * 32 + c] >> (sub % 4 * 2) & 3;
            panel.set_row(row, scales.map(|s| d * f32::from(s & 15)), scales.map(|s| -m * f32::from(s >> 4)), q);
        }
        GgmlType::Q3_K => {
            let d = half(&b[108..], 0);
            let scales = [scale_q3_k(&b[96..108], sub * 2), scale_q3_k(&b[96..108], sub * 2 + 1)].map(|s| d * f32::from(s));
            // The high bit is stored inverted: set means that 4 is not taken off, so all weights are 4 too high with it added.
            let q = |c: usize| (b[32 + sub / 4 * 32 + c] >> (sub % 4 * 2) & 3) | (b[c] >> sub & 1) << 2;
            panel.set_row(row, scales, scales.map(|s| -4.0 * s), q);
        }
        GgmlType::Q5_K => {
            let (scale, minimum) = scale_and_minimum(&b[4..16], sub);
            let q = |c: usize| (b[48 + sub / 2 * 32 + c] >> (sub % 2 * 4) & 15) | (b[16 + c] >> sub & 1) << 4;
            panel.set_row(row, [half(b, 0) * f32::from(scale); 2], [-half(b, 1) * f32::from(minimum); 2], q);
        }
        GgmlType::IQ4_NL => {
            let d = half(b, 0);
            panel.set_row(row, [d; 2], [-128.0 * d; 2], |c| IQ4_VALUES[usize::from(nibble(&b[2..], c))] ^ 0x80);
        }
        GgmlType::IQ4_XS => {
            let (low, high) = (b[4 + sub / 2] >> (sub % 2 * 4) & 15, u16::from_le_bytes([b[2], b[3]]) >> (sub * 2) & 3);
            let scale = low | (high as u8) << 4;
            let d = half(b, 0) * (f32::from(scale) - 32.0);
            panel.set_row(row, [d; 2], [-128.0 * d; 2], |c| IQ4_VALUES[usize::from(nibble(&b[8 + sub * 16..], c))] ^ 0x80);
        }
        GgmlType::MXFP4 => {
            let d = power_of_two_halved(b[0]);
            panel.set_row(row, [d; 2], [-128.0 * d; 2], |c| MXFP4_DOUBLED[usize::from(nibble(&b[1..], c))] ^ 0x80);
        }
        // Loading refuses every other type (`placement::capability`).
        _ => unreachable!("{ty} has no tile"),
    }
}

/// What the 16 codes of IQ4_NL and IQ4_XS stand for, as bytes of i8.
///
/// Source: `kvalues_iq4nl` of ggml.
const IQ4_VALUES: [u8; 16] = signed([-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113]);

/// Twice what the 16 codes of MXFP4 (E2M1) stand for.
///
/// Source: `kvalues_mxfp4` of ggml, and the Open Compute Project's "OCP Microscaling Formats (MX) Specification" 1.0.
const MXFP4_DOUBLED: [u8; 16] = signed([0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12]);

const fn signed(values: [i8; 16]) -> [u8; 16] {
    let mut bytes = [0; 16];
    let mut i = 0;
    while i < 16 {
        bytes[i] = values[i] as u8;
        i += 1;
    }
    bytes
}

/// `2^(exponent - 128)`: half of what an E8M0 scale stands for.
fn power_of_two_halved(exponent: u8) -> f32 {
    // Below 2^-126 it is a denormal number.
    f32::from_bits(if exponent < 2 { 0x0020_0000 << exponent } else { (u32::from(exponent) - 1) << 23 })
}

/// Scale `i` of 16 of a Q3_K block: 6 bits, 32 too high, low 4 bits in bytes 0 to 7 and high 2 bits in bytes 8 to 11.
fn scale_q3_k(bytes: &[u8], i: usize) -> i8 {
    let low = bytes[i % 8] >> (i / 8 * 4) & 15;
    let high = bytes[8 + i % 4] >> (i / 4 * 2) & 3;
    (low | high << 4) as i8 - 32
}
