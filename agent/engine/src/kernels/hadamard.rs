//! The Walsh-Hadamard transform of a head, by which outliers are spread over all elements before they are quantised with few bits.
//!
//! It is orthonormal and its own inverse: products of transformed queries with transformed keys are those of the queries with the keys, and a sum of transformed
//! values is the sum's transform. Caches of llama.cpp do the same (`ggml_gen_hadamard` in its `llama-kv-cache.cpp`).

use super::lanes::Lanes;

/// Transforms each run of `row` that is as long as the largest power of two in `length`. `length` is a multiple of 32.
#[inline(always)]
pub unsafe fn hadamard<L: Lanes>(row: *mut f32, length: usize) {
    let run = 1 << length.trailing_zeros();
    let scale = 1.0 / (run as f32).sqrt();
    // SAFETY: the caller gives `length` floats.
    unsafe {
        for start in (0..length).step_by(run) {
            let row = row.add(start);
            for distance in [1, 2, 4, 8] {
                near(row, run, distance);
            }
            let mut distance = 16;
            while distance < run {
                far::<L>(row, run, distance);
                distance *= 2;
            }
            for i in (0..run).step_by(16) {
                L::store(row.add(i), L::mul(L::load(row.add(i)), L::splat(scale)));
            }
        }
    }
}

/// Sums and differences of elements so far apart, which are neighbours in one vector.
#[inline(always)]
unsafe fn near(row: *mut f32, length: usize, distance: usize) {
    for i in (0..length).step_by(2 * distance) {
        for j in i..i + distance {
            // SAFETY: both are below `length`.
            unsafe {
                let (a, b) = (*row.add(j), *row.add(j + distance));
                *row.add(j) = a + b;
                *row.add(j + distance) = a - b;
            }
        }
    }
}

/// The same of whole vectors.
#[inline(always)]
unsafe fn far<L: Lanes>(row: *mut f32, length: usize, distance: usize) {
    for i in (0..length).step_by(2 * distance) {
        for j in (i..i + distance).step_by(16) {
            // SAFETY: both vectors end at `length` at the latest, being multiples of 16.
            unsafe {
                let (a, b) = (L::load(row.add(j)), L::load(row.add(j + distance)));
                L::store(row.add(j), L::add(a, b));
                L::store(row.add(j + distance), L::sub(a, b));
            }
        }
    }
}
