//! One head's part of a KV cache: where each position lies, how it is written, and how 64 positions of any type are read as f16.
//!
//! In f16, keys are `[cell / 16, key_length, 16]` and values `[cell, value_length]`. In the quantised types both are `[cell, blocks]`, each block being 32
//! elements as ggml has them (`block_q8_0`, `block_q4_0`). A position's cell is the remainder of dividing it by the number of cells.

use half::f16;
use stowage_placement::KvCacheType;

use super::attention::SPAN;

/// Longest head that is read from a quantised cache.
pub const LONGEST: usize = 256;
/// Elements of a block.
const BLOCK: usize = 32;

/// Keys and values of one head of one sequence.
#[derive(Clone, Copy)]
pub struct Cached {
    pub cache_type: KvCacheType,
    pub keys: *mut u8,
    pub values: *mut u8,
    pub key_length: usize,
    pub value_length: usize,
    /// A multiple of 256.
    pub cells: usize,
}

impl Cached {
    /// Bytes of a cell's key, or value, of so many elements.
    pub fn bytes(cache_type: KvCacheType, length: usize) -> usize {
        let (elements, bytes) = cache_type.block();
        length / elements as usize * bytes.0 as usize
    }

    /// Keys and values from `position` on, a multiple of 16, of a cache in f16.
    ///
    /// # Safety
    ///
    /// The cache is in f16 and has `cells` cells.
    pub unsafe fn halves(&self, position: usize) -> (*const u16, *const u16) {
        let cell = position % self.cells;
        // SAFETY: the cell is in the cache.
        unsafe { (self.keys.cast::<u16>().add(cell * self.key_length), self.values.cast::<u16>().add(cell * self.value_length)) }
    }

    /// Remembers a token's key and value.
    ///
    /// # Safety
    ///
    /// `key` and `value` have the lengths in `self`, and no other thread uses this position.
    pub unsafe fn store(&self, position: usize, key: *const f32, value: *const f32) {
        let cell = position % self.cells;
        // SAFETY: by the contract of this function; the cell is in the cache.
        unsafe {
            if self.cache_type == KvCacheType::F16 {
                let to = self.keys.cast::<u16>().add(cell / 16 * 16 * self.key_length + cell % 16);
                for d in 0..self.key_length {
                    *to.add(d * 16) = f16::from_f32(*key.add(d)).to_bits();
                }
                let to = self.values.cast::<u16>().add(cell * self.value_length);
                for d in 0..self.value_length {
                    *to.add(d) = f16::from_f32(*value.add(d)).to_bits();
                }
                return;
            }
            for (from, to, length) in [(key, self.keys, self.key_length), (value, self.values, self.value_length)] {
                let bytes = Cached::bytes(self.cache_type, length);
                let from = std::slice::from_raw_parts(from, length);
                let to = std::slice::from_raw_parts_mut(to.add(cell * bytes), bytes);
                quantise(self.cache_type, from, to);
            }
        }
    }
}

/// Blocks of 32, as ggml makes them.
///
/// Source: `quantize_row_q8_0_ref` and `quantize_row_q4_0_ref` of ggml.
fn quantise(cache_type: KvCacheType, from: &[f32], to: &mut [u8]) {
    let block_bytes = Cached::bytes(cache_type, BLOCK);
    for (from, to) in from.chunks_exact(BLOCK).zip(to.chunks_exact_mut(block_bytes)) {
        if cache_type == KvCacheType::Q8_0 {
            let most = from.iter().fold(0f32, |most, x| most.max(x.abs()));
            let (scale, inverse) = scales(most / 127.0);
            to[..2].copy_from_slice(&scale);
            for (x, to) in from.iter().zip(&mut to[2..]) {
                *to = (x * inverse).round() as i8 as u8;
            }
        } else {
            let most = from.iter().fold(0f32, |most, x| if x.abs() > most.abs() { *x } else { most });
            let (scale, inverse) = scales(most / -8.0);
            to[..2].copy_from_slice(&scale);
            let nibble = |x: f32| ((x * inverse + 8.5) as i32).clamp(0, 15) as u8;
            for i in 0..BLOCK / 2 {
                to[2 + i] = nibble(from[i]) | nibble(from[BLOCK / 2 + i]) << 4;
            }
        }
    }
}

fn scales(scale: f32) -> ([u8; 2], f32) {
    (f16::from_f32(scale).to_le_bytes(), if scale == 0.0 { 0.0 } else { 1.0 / scale })
}

/// Room for 64 positions of one head in f16.
pub struct Room {
    keys: std::mem::MaybeUninit<[u16; SPAN * LONGEST]>,
    values: std::mem::MaybeUninit<[u16; SPAN * LONGEST]>,
}

impl Room {
    pub fn new() -> Room {
        Room { keys: std::mem::MaybeUninit::uninit(), values: std::mem::MaybeUninit::uninit() }
    }

    /// Reads `count` positions from `first` on, a multiple of 64, into the form that a cache in f16 has. What fills up the last 16 are zeros.
    ///
    /// # Safety
    ///
    /// The cache is quantised and holds these positions; keys and values have at most [`LONGEST`] elements.
    pub unsafe fn fill(&mut self, cached: &Cached, first: usize, count: usize) -> (*const u16, *const u16) {
        let (keys, values): (*mut u16, *mut u16) = (self.keys.as_mut_ptr().cast(), self.values.as_mut_ptr().cast());
        let cell = first % cached.cells;
        let padded = count.next_multiple_of(16);
        // SAFETY: by the contract of this function; 64 positions do not go over the cache's end, and fit in the room.
        unsafe {
            std::ptr::write_bytes(keys, 0, padded * cached.key_length);
            for i in 0..count {
                let (block, lane) = (i / 16 * 16 * cached.key_length, i % 16);
                let bytes = Cached::bytes(cached.cache_type, cached.key_length);
                dequantise(cached.cache_type, cached.keys.add((cell + i) * bytes), cached.key_length, |d, x| {
                    *keys.add(block + d * 16 + lane) = x
                });
                let bytes = Cached::bytes(cached.cache_type, cached.value_length);
                let row = i * cached.value_length;
                dequantise(cached.cache_type, cached.values.add((cell + i) * bytes), cached.value_length, |d, x| *values.add(row + d) = x);
            }
        }
        (keys, values)
    }
}

/// Gives each element as the bits of an f16.
///
/// # Safety
///
/// `from` has whole blocks of `length` elements.
#[inline(always)]
unsafe fn dequantise(cache_type: KvCacheType, from: *const u8, length: usize, mut to: impl FnMut(usize, u16)) {
    let block_bytes = Cached::bytes(cache_type, BLOCK);
    for block in 0..length / BLOCK {
        // SAFETY: by the contract of this function.
        let bytes = unsafe { std::slice::from_raw_parts(from.add(block * block_bytes), block_bytes) };
        let scale = f16::from_le_bytes([bytes[0], bytes[1]]).to_f32();
        let q = |i: usize| match cache_type {
            KvCacheType::Q8_0 => f32::from(bytes[2 + i] as i8),
            _ if i < BLOCK / 2 => f32::from(bytes[2 + i] & 15) - 8.0,
            _ => f32::from(bytes[2 + i - BLOCK / 2] >> 4) - 8.0,
        };
        for i in 0..BLOCK {
            to(block * BLOCK + i, f16::from_f32(scale * q(i)).to_bits());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A cache of 256 cells, and what 300 tokens were stored as; later ones lie where the first were.
    fn stored(cache_type: KvCacheType) -> (Vec<u8>, Cached, Vec<Vec<f32>>) {
        let (key_length, value_length, cells) = (64, 32, 256);
        let key_bytes = cells * Cached::bytes(cache_type, key_length);
        let mut memory = vec![0u8; key_bytes + cells * Cached::bytes(cache_type, value_length)];
        let keys = memory.as_mut_ptr();
        // SAFETY: values follow keys.
        let values = unsafe { keys.add(key_bytes) };
        let cached = Cached { cache_type, keys, values, key_length, value_length, cells };
        let token = |position: usize| (0..key_length).map(|i| ((position * 31 + i * 7) as f32 * 0.37).sin()).collect::<Vec<f32>>();
        let tokens: Vec<Vec<f32>> = (0..300).map(token).collect();
        for (position, token) in tokens.iter().enumerate() {
            // SAFETY: the key is as long as keys are, and its first half as values are.
            unsafe { cached.store(position, token.as_ptr(), token.as_ptr()) };
        }
        (memory, cached, tokens)
    }

    #[test]
    fn quantised_keys_and_values_come_back_to_within_half_a_step() {
        for (cache_type, step) in [(KvCacheType::Q8_0, 1.0 / 127.0), (KvCacheType::Q4_0, 1.0 / 8.0)] {
            let (_memory, cached, tokens) = stored(cache_type);
            let mut room = Room::new();
            // SAFETY: positions 256 to 299 are in the cache.
            let (keys, values) = unsafe { room.fill(&cached, 256, 44) };
            let mut worst = 0f32;
            for i in 0..44 {
                for d in 0..64 {
                    // SAFETY: within the positions that were read.
                    let key = unsafe { f16::from_bits(*keys.add(i / 16 * 16 * 64 + d * 16 + i % 16)) };
                    worst = worst.max((key.to_f32() - tokens[256 + i][d]).abs());
                    if d < 32 {
                        // SAFETY: as above.
                        let value = unsafe { f16::from_bits(*values.add(i * 32 + d)) };
                        worst = worst.max((value.to_f32() - tokens[256 + i][d]).abs());
                    }
                }
            }
            // q4_0 has one value more on the side of the largest, and half a step less on the other.
            assert!(worst > 0.0 && worst <= step * 1.01, "{cache_type}: {worst}");
        }
    }

    #[test]
    fn a_cell_is_written_over_by_the_position_that_comes_round() {
        let (_memory, cached, tokens) = stored(KvCacheType::F16);
        // SAFETY: the cache is in f16.
        let (keys, values) = unsafe { cached.halves(256) };
        // SAFETY: the first cells.
        let (key, value) = unsafe { (f16::from_bits(*keys.add(3)), f16::from_bits(*values.add(3 * 32))) };
        assert_eq!([key, value], [f16::from_f32(tokens[259][0]); 2]);
    }
}
