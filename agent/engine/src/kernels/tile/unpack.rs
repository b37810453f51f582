//! From a tile to panels, in plain Rust.

use std::ops::Range;

use half::f16;

use super::super::format::Format;
use super::Panel;

/// Columns `32 block` to `32 block + 31` of a tile, with the scales of some of its rows.
pub fn unpack(format: Format, tile: &[u8], block: usize, rows: Range<usize>, panel: &mut Panel) {
    let (index, sub) = (block / format.subs(), block % format.subs());
    let t = &tile[index * format.bytes()..][..format.bytes()];
    unpack_codes(format, t, sub, &mut panel.q);
    for row in rows {
        let (scales, minima) = scales(format, t, sub, row);
        for half in 0..2 {
            panel.scale[half][row] = scales[half];
            panel.minimum[half][row] = minima[half];
        }
    }
}

/// What codes stand for, with 128 added where that is signed.
fn unpack_codes(format: Format, t: &[u8], sub: usize, q: &mut [u8; 512]) {
    let (low, high) = (format.low(), format.high());
    for (group, q) in q.as_chunks_mut::<64>().0.iter_mut().enumerate() {
        low.add_group(t, sub, group, 0, q);
        if let Some(high) = high {
            high.add_group(t, sub, group, low.bits, q);
        }
    }
    let stands_for = |values: [i8; 16], q: &mut [u8; 512]| q.iter_mut().for_each(|q| *q = values[usize::from(*q & 15)] as u8 ^ 0x80);
    match format {
        Format::Q8_0 => q.iter_mut().for_each(|q| *q ^= 0x80),
        Format::Iq4Nl | Format::Iq4Xs => stands_for(IQ4_VALUES, q),
        Format::Mxfp4 => stands_for(MXFP4_DOUBLED, q),
        _ => (),
    }
}

/// Scale and minimum of each half of a sub-block's columns.
fn scales(format: Format, t: &[u8], sub: usize, row: usize) -> ([f32; 2], [f32; 2]) {
    let d = || half(t, row);
    let offset = |scales: [f32; 2], by: f32| (scales, scales.map(|scale| scale * by));
    match format {
        Format::Q4_0 => offset([d(); 2], -8.0),
        Format::Q5_0 => offset([d(); 2], -16.0),
        Format::Q4_1 | Format::Q5_1 => ([d(); 2], [half(t, 16 + row); 2]),
        Format::Q8_0 | Format::Iq4Nl => offset([d(); 2], -128.0),
        Format::Mxfp4 => offset([power_of_two_halved(t[row]); 2], -128.0),
        Format::Q2K => {
            let both = [0, 1].map(|i| t[64 + (sub * 2 + i) * 16 + row]);
            (both.map(|both| d() * f32::from(both & 15)), both.map(|both| -half(t, 16 + row) * f32::from(both >> 4)))
        }
        Format::Q3K => offset(six_bits(&t[32..], sub, row).map(|scale| d() * (f32::from(scale) - 32.0)), -4.0),
        Format::Q4K | Format::Q5K => {
            let [scale, minimum] = six_bits(&t[64..], sub, row).map(f32::from);
            ([d() * scale; 2], [-half(t, 16 + row) * minimum; 2])
        }
        Format::Q6K => offset([0, 1].map(|i| d() * f32::from(t[32 + (sub * 2 + i) * 16 + row] as i8)), -32.0),
        Format::Iq4Xs => {
            let low = t[32 + sub % 4 * 16 + row] >> (sub / 4 * 4) & 15;
            let high = t[96 + sub / 4 * 16 + row] >> (sub % 4 * 2) & 3;
            offset([d() * (f32::from(low | high << 4) - 32.0); 2], -128.0)
        }
    }
}

/// See `pack::set_six_bits`.
fn six_bits(t: &[u8], sub: usize, row: usize) -> [u8; 2] {
    let (low, high) = (t[sub * 16 + row], t[128 + sub % 4 * 16 + row] >> (sub / 4 * 4));
    [low & 15 | (high & 3) << 4, low >> 4 | (high >> 2 & 3) << 4]
}

fn half(bytes: &[u8], index: usize) -> f32 {
    f16::from_le_bytes([bytes[index * 2], bytes[index * 2 + 1]]).to_f32()
}

/// What the 16 codes of IQ4_NL and IQ4_XS stand for.
///
/// Source: `kvalues_iq4nl` of ggml.
pub const IQ4_VALUES: [i8; 16] = [-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113];

/// Twice what the 16 codes of MXFP4 (E2M1) stand for.
///
/// Source: `kvalues_mxfp4` of ggml, and the Open Compute Project's "OCP Microscaling Formats (MX) Specification" 1.0.
pub const MXFP4_DOUBLED: [i8; 16] = [0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12];

/// `2^(exponent - 128)`: half of what an E8M0 scale stands for.
fn power_of_two_halved(exponent: u8) -> f32 {
    // Below 2^-126 it is a denormal number.
    f32::from_bits(if exponent < 2 { 0x0020_0000 << exponent } else { (u32::from(exponent) - 1) << 23 })
}
