//! From rows as they lie in the file to a tile, all 16 rows at once.

use super::super::format::{Format, by_format};
use super::ROWS;

/// Four bytes of each row.
type Word = [u32; ROWS];

/// What a row has that is missing: at least as many zeros as any type's block has bytes.
const NO_ROW: [u8; 256] = [0; 256];

/// Packs up to 16 rows, given one after the other as they lie in the file, into one tile, whatever that had. Missing rows become zeros. Whoever packs tile after
/// tile finds the next rows in the cache.
pub fn pack(format: Format, rows: &[u8], row_bytes: usize, tile: &mut [u8]) {
    by_format!(format, pack_as(rows, row_bytes, tile))
}

/// The format is a constant, so that places and masks are.
fn pack_as<const FORMAT: usize>(rows: &[u8], row_bytes: usize, tile: &mut [u8]) {
    let format = Format::ALL[FORMAT];
    let block_bytes = format.bytes() / ROWS;
    let mut blocks = Blocks::new(rows, row_bytes, block_bytes);
    for (index, to) in tile.chunks_exact_mut(format.bytes()).enumerate() {
        prefetch(rows, index * format.bytes(), format.bytes());
        pack_scales(format, &blocks, &mut to[..format.low().at]);
        pack_codes(format, &blocks, to);
        blocks.advance();
    }
}

/// A block of each row.
struct Blocks {
    /// Where it begins, and how many bytes after that the next one does.
    of_rows: [(*const u8, usize); ROWS],
    bytes: usize,
    /// How many there are of each row, from this one on.
    left: usize,
}

impl Blocks {
    #[inline(always)]
    fn new(rows: &[u8], row_bytes: usize, bytes: usize) -> Blocks {
        let mut rows = rows.chunks_exact(row_bytes);
        let of_rows = [(); ROWS].map(|()| rows.next().map_or((NO_ROW.as_ptr(), 0), |row| (row.as_ptr(), bytes)));
        Blocks { of_rows, bytes, left: row_bytes / bytes }
    }

    #[inline(always)]
    fn advance(&mut self) {
        self.left = self.left.saturating_sub(1);
        self.of_rows.iter_mut().for_each(|(block, step)| *block = block.wrapping_add(*step));
    }

    /// Some bytes of a row's block.
    #[inline(always)]
    fn read<const N: usize>(&self, row: usize, at: usize) -> [u8; N] {
        assert!(self.left > 0 && at + N <= self.bytes && self.bytes <= NO_ROW.len());
        // SAFETY: the block lies in its row, and these bytes in the block.
        unsafe { self.of_rows[row].0.add(at).cast::<[u8; N]>().read() }
    }

    /// `N` words of each row's block, from byte `at` on.
    #[inline(always)]
    fn words<const N: usize>(&self, at: usize) -> [Word; N] {
        let mut words = [[0; ROWS]; N];
        let (fours, rest) = words.as_chunks_mut::<4>();
        let mut from = at;
        for four in fours {
            for row in (0..ROWS).step_by(4) {
                let columns = turn(self.read(row, from), self.read(row + 1, from), self.read(row + 2, from), self.read(row + 3, from));
                four.iter_mut().zip(columns).for_each(|(word, column)| word[row..row + 4].copy_from_slice(&column));
            }
            from += 16;
        }
        for word in rest {
            *word = each_row(|row| u32::from_le_bytes(self.read(row, from)));
            from += 4;
        }
        words
    }
}

/// Of the rows that follow these, as many bytes. 16 rows are more streams than a core recognises.
#[inline(always)]
fn prefetch(rows: &[u8], from: usize, length: usize) {
    #[cfg(target_arch = "x86_64")]
    for line in (0..length).step_by(64) {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        // SAFETY: what is prefetched need not be there.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(rows.as_ptr().wrapping_add(rows.len() + from + line).cast()) };
    }
}

#[inline(always)]
fn pack_scales(format: Format, blocks: &Blocks, to: &mut [u8]) {
    match format {
        Format::Q4_0 | Format::Q5_0 | Format::Q8_0 | Format::Iq4Nl => pack_halves(blocks, [0], to),
        Format::Q4_1 | Format::Q5_1 => pack_halves(blocks, [0, 2], to),
        Format::Mxfp4 => to.iter_mut().enumerate().for_each(|(row, to)| [*to] = blocks.read(row, 0)),
        Format::Q2K => {
            pack_halves(blocks, [80, 82], to);
            spread(&blocks.words::<4>(0), &mut to[64..]);
        }
        Format::Q3K => {
            pack_halves(blocks, [108], to);
            pack_six_bits(scales_of_q3_k(blocks.words(96)), &mut to[32..]);
        }
        Format::Q4K | Format::Q5K => {
            pack_halves(blocks, [0, 2], to);
            pack_six_bits(scales_and_minima(blocks.words(4)), &mut to[64..]);
        }
        Format::Q6K => {
            pack_halves(blocks, [208], to);
            spread(&blocks.words::<4>(192), &mut to[32..]);
        }
        Format::Iq4Xs => {
            pack_halves(blocks, [0], to);
            to[32..].fill(0);
            (0..ROWS).for_each(|row| pack_scales_of_iq4_xs(&blocks.read(row, 0), row, to));
        }
    }
}

/// Half-precision numbers of each row, from some places of its block.
#[inline(always)]
fn pack_halves<const N: usize>(blocks: &Blocks, places: [usize; N], to: &mut [u8]) {
    for (to, from) in to.chunks_exact_mut(2 * ROWS).zip(places) {
        let (to, _) = to.as_chunks_mut::<2>();
        to.iter_mut().enumerate().for_each(|(row, to)| *to = blocks.read(row, from));
    }
}

#[inline(always)]
fn each_row(word: impl Fn(usize) -> u32) -> Word {
    std::array::from_fn(word)
}

/// The first numbers of 4 sub-blocks, and their second ones.
type Numbers = [Word; 2];

/// Scales and minima of Q4_K and Q5_K: 6 bits each, in 12 bytes (ggml's `get_scale_min_k4`).
#[inline(always)]
fn scales_and_minima([scales, minima, later]: [Word; 3]) -> [Numbers; 2] {
    let first = |word: &Word| each_row(|row| word[row] & each(63));
    let second = |low: usize, high: &Word| each_row(|row| later[row] >> low & each(15) | high[row] >> 2 & each(48));
    [[first(&scales), first(&minima)], [second(0, &scales), second(4, &minima)]]
}

/// The 16 scales of Q3_K: 6 bits, 32 too high, low 4 bits in bytes 0 to 7 and high 2 bits in bytes 8 to 11. A sub-block's two stand side by side.
#[inline(always)]
fn scales_of_q3_k([even, odd, high]: [Word; 3]) -> [Numbers; 2] {
    let scale = |word: &Word, half: usize, place: usize, row: usize| {
        word[row] >> (half * 4) & each(15) | (high[row] >> (half * 4 + place * 2) & each(3)) << 4
    };
    let numbers = |half: usize, up: usize| {
        each_row(|row| every_other(scale(&even, half, 0, row) >> up) | every_other(scale(&odd, half, 1, row) >> up) << 16)
    };
    [[numbers(0, 0), numbers(0, 8)], [numbers(1, 0), numbers(1, 8)]]
}

/// Bytes 0 and 2.
const fn every_other(four: u32) -> u32 {
    four & 0xff | four >> 8 & 0xff00
}

/// Two numbers of 6 bits for each sub-block: `[8][16]` their low 4 bits, `[4][16]` their high 2 bits.
#[inline(always)]
fn pack_six_bits(numbers: [Numbers; 2], to: &mut [u8]) {
    let low = |[first, second]: &Numbers, row: usize| first[row] & each(15) | (second[row] & each(15)) << 4;
    let high = |[first, second]: &Numbers, row: usize| first[row] >> 4 & each(3) | (second[row] >> 4 & each(3)) << 2;
    let [four, later] = &numbers;
    spread(&[each_row(|row| low(four, row)), each_row(|row| low(later, row)), each_row(|row| high(four, row) | high(later, row) << 4)], to);
}

/// Bytes of words, one after the other, each of all rows.
#[inline(always)]
fn spread(words: &[Word], to: &mut [u8]) {
    for (word, to) in words.iter().zip(to.chunks_exact_mut(4 * ROWS)) {
        for (byte, to) in to.chunks_exact_mut(ROWS).enumerate() {
            to.iter_mut().zip(word).for_each(|(to, four)| *to = (four >> (byte * 8)) as u8);
        }
    }
}

fn pack_scales_of_iq4_xs(b: &[u8; 8], row: usize, to: &mut [u8]) {
    for sub in 0..8 {
        to[32 + sub % 4 * 16 + row] |= (b[4 + sub / 2] >> (sub % 2 * 4) & 15) << (sub / 4 * 4);
        to[96 + sub / 4 * 16 + row] |= (b[2 + sub / 4] >> (sub % 4 * 2) & 3) << (sub % 4 * 2);
    }
}

#[inline(always)]
fn pack_codes(format: Format, blocks: &Blocks, to: &mut [u8]) {
    match format {
        Format::Q4_0 | Format::Iq4Nl => pack_nibbles::<2>(format, blocks, to),
        Format::Q4_1 => pack_nibbles::<4>(format, blocks, to),
        Format::Mxfp4 => pack_nibbles::<1>(format, blocks, to),
        Format::Q5_0 => pack_nibbles_and_bits::<2>(format, blocks, to),
        Format::Q5_1 => pack_nibbles_and_bits::<4>(format, blocks, to),
        Format::Iq4Xs => {
            let w = blocks.words::<32>(8);
            set_codes(format, to, |sub, g, row| nibbles(&w[sub * 4..], g, row));
        }
        Format::Q8_0 => {
            let w = blocks.words::<8>(2);
            set_codes(format, to, |_, g, row| w[g][row]);
        }
        Format::Q2K => {
            let w = blocks.words::<16>(16);
            set_codes(format, to, |sub, g, row| w[sub / 4 * 8 + g][row] >> (sub % 4 * 2) & each(3));
        }
        Format::Q3K => {
            // The high bit is stored inverted: set means that 4 is not taken off, so all weights are 4 too high with it added.
            let w = blocks.words::<24>(0);
            let low = |sub: usize, g: usize, row: usize| w[8 + sub / 4 * 8 + g][row] >> (sub % 4 * 2) & each(3);
            set_codes(format, to, |sub, g, row| low(sub, g, row) | (w[g][row] >> sub & each(1)) << 2);
        }
        Format::Q4K => {
            let w = blocks.words::<32>(16);
            set_codes(format, to, |sub, g, row| w[sub / 2 * 8 + g][row] >> (sub % 2 * 4) & each(15));
        }
        Format::Q5K => {
            let w = blocks.words::<40>(16);
            let low = |sub: usize, g: usize, row: usize| w[8 + sub / 2 * 8 + g][row] >> (sub % 2 * 4) & each(15);
            set_codes(format, to, |sub, g, row| low(sub, g, row) | (w[g][row] >> sub & each(1)) << 4);
        }
        Format::Q6K => {
            let w = blocks.words::<48>(0);
            let low =
                |part: usize, quarter: usize, g: usize, row: usize| w[part * 16 + quarter % 2 * 8 + g][row] >> (quarter / 2 * 4) & each(15);
            let high = |part: usize, quarter: usize, g: usize, row: usize| w[32 + part * 8 + g][row] >> (quarter * 2) & each(3);
            set_codes(format, to, |sub, g, row| low(sub / 4, sub % 4, g, row) | high(sub / 4, sub % 4, g, row) << 4);
        }
    }
}

/// Of blocks whose codes of 4 bits begin at byte `AT`.
#[inline(always)]
fn pack_nibbles<const AT: usize>(format: Format, blocks: &Blocks, to: &mut [u8]) {
    let w = blocks.words::<4>(AT);
    set_codes(format, to, |_, g, row| nibbles(&w, g, row));
}

/// Of blocks whose highest bits, 32 of them, begin at byte `AT`, and are followed by the low ones.
#[inline(always)]
fn pack_nibbles_and_bits<const AT: usize>(format: Format, blocks: &Blocks, to: &mut [u8]) {
    let w = blocks.words::<5>(AT);
    set_codes(format, to, |_, g, row| nibbles(&w[1..], g, row) | bits(w[0][row], g) << 4);
}

/// Rows of 4 words become columns.
#[inline(always)]
fn turn(a: [u8; 16], b: [u8; 16], c: [u8; 16], d: [u8; 16]) -> [[u32; 4]; 4] {
    #[cfg(target_arch = "x86_64")]
    {
        use std::arch::x86_64::{__m128i, _mm_unpackhi_epi32, _mm_unpackhi_epi64, _mm_unpacklo_epi32, _mm_unpacklo_epi64};
        use std::mem::transmute;
        // SAFETY: 16 bytes are 16 bytes, and 64 are 64. Every x86-64 has these instructions.
        unsafe {
            let register = |row: [u8; 16]| transmute::<[u8; 16], __m128i>(row);
            let (a, b, c, d) = (register(a), register(b), register(c), register(d));
            let (ab, cd) = (_mm_unpacklo_epi32(a, b), _mm_unpacklo_epi32(c, d));
            let (ab_high, cd_high) = (_mm_unpackhi_epi32(a, b), _mm_unpackhi_epi32(c, d));
            let low = [_mm_unpacklo_epi64(ab, cd), _mm_unpackhi_epi64(ab, cd)];
            let high = [_mm_unpacklo_epi64(ab_high, cd_high), _mm_unpackhi_epi64(ab_high, cd_high)];
            transmute::<[[__m128i; 2]; 2], [[u32; 4]; 4]>([low, high])
        }
    }
    #[cfg(not(target_arch = "x86_64"))]
    [0, 1, 2, 3].map(|column| [a, b, c, d].map(|row| u32::from_le_bytes(row.as_chunks::<4>().0[column])))
}

/// The same number in four bytes.
const fn each(byte: u32) -> u32 {
    byte * 0x0101_0101
}

/// Four of 32 codes: 0 to 15 are the low halves of 16 bytes, 16 to 31 the high ones.
#[inline(always)]
fn nibbles(words: &[Word], group: usize, row: usize) -> u32 {
    words[group % 4][row] >> (group / 4 * 4) & each(15)
}

/// Four of 32 bits, each in a byte.
#[inline(always)]
fn bits(bits: u32, group: usize) -> u32 {
    // Four copies, 7 bits apart: each bit comes to stand once where a byte begins.
    ((bits >> (group * 4) & 15) * 0x0020_4081) & each(1)
}

/// Sets all codes of a tile's block, four at a time, each four given their sub-block, their group there and their row.
#[inline(always)]
fn set_codes(format: Format, to: &mut [u8], codes: impl Fn(usize, usize, usize) -> u32) {
    let (low, high) = (format.low(), format.high());
    for sub in 0..format.subs() {
        low.set(to, sub, |group, row| codes(sub, group, row));
        if let Some(high) = high {
            high.set(to, sub, |group, row| codes(sub, group, row) >> low.bits);
        }
    }
}
