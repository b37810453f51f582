//! Attention of a few queries to one head's cache, in one pass over it: scores of 64 positions at a time, with the softmax's maximum and sum carried
//! along and corrected (Milakov and Gimelshein, "Online normalizer calculation for softmax", 2018). So it needs no memory that grows with
//! the context.
//!
//! Keys lie in the cache as `[cell / 16, key_length, 16]`, so that one element of 16 positions is one vector; values as `[cell, value_length]`. Both
//! are f16. A cache of other types is brought into this form 64 positions at a time. A position's cell is the remainder of dividing it by the number
//! of cells, which is a multiple of 256, so that 64 positions never go over the end.

use stowage_placement::KvCacheType;

use super::cached::{self, Cached};
use super::lanes::{Lanes, exp};
use super::rows::softcap;

/// Positions of which scores are held at once.
pub const SPAN: usize = 64;

/// One head's cache, and the sizes of what lies there.
#[derive(Clone, Copy)]
pub struct Head {
    pub cached: Cached,
    /// What scores are multiplied by.
    pub scale: f32,
    /// `softcap x tanh(score / softcap)`, after scaling; 0: none.
    pub softcap: f32,
}

/// One query: where its vector lies, where the answer goes, and which positions it sees.
#[derive(Clone, Copy)]
pub struct Query {
    pub from: *const f32,
    pub to: *mut f32,
    /// The first position that it sees.
    pub first: usize,
    /// The position after the last one that it sees.
    pub end: usize,
    /// A score that takes its share of the softmax and gives no value; minus infinity: none.
    pub sink: f32,
    /// Where the softmax goes, of which the answer is then not divided by the sum; null: it is divided.
    pub partial: *mut Softmax,
}

/// What weights were computed with: `e^(score - greatest)`, and their sum.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct Softmax {
    pub greatest: f32,
    pub sum: f32,
}

/// 64 positions of one head.
#[derive(Clone, Copy)]
struct Span {
    keys: *const u16,
    values: *const u16,
    key_length: usize,
    value_length: usize,
}

/// Attends from each query. One that sees no position gets zeros, and its answer must be partial.
#[inline(always)]
pub unsafe fn attend<L: Lanes>(head: &Head, queries: &[Query]) {
    let mut rest = queries;
    // SAFETY: the caller gives vectors and a cache of the sizes in `head`, which holds the positions that the queries see, in whole 16s.
    unsafe {
        loop {
            rest = match *rest {
                [a, b, c, d, e, f, g, h, ref rest @ ..] if L::WIDE => {
                    attend_together::<L, 8>(head, [a, b, c, d, e, f, g, h]);
                    rest
                }
                [a, b, c, d, ref rest @ ..] => {
                    attend_together::<L, 4>(head, [a, b, c, d]);
                    rest
                }
                [a, b, c] => return attend_together::<L, 3>(head, [a, b, c]),
                [a, b] => return attend_together::<L, 2>(head, [a, b]),
                [a] => return attend_together::<L, 1>(head, [a]),
                [] => return,
            }
        }
    }
}

#[inline(always)]
unsafe fn attend_together<L: Lanes, const N: usize>(head: &Head, queries: [Query; N]) {
    let end = queries.iter().map(|query| query.end).max().unwrap_or(0);
    let begin = queries.iter().map(|query| query.first).min().unwrap_or(0) / SPAN * SPAN;
    let mut scores = [[0f32; SPAN]; N];
    let (mut greatest, mut sums) = (queries.map(|query| query.sink), queries.map(|query| if query.sink.is_finite() { 1f32 } else { 0.0 }));
    let mut room = cached::Room::new();
    // SAFETY: as for `attend`.
    unsafe {
        for query in &queries {
            std::ptr::write_bytes(query.to, 0, head.cached.value_length);
        }
        for first in (begin..end).step_by(SPAN) {
            let count = SPAN.min(end - first);
            let span = span(head, first, count, &mut room);
            score::<L, N>(head, &span, &queries, count, &mut scores);
            let mut corrections = [0f32; N];
            for i in 0..N {
                let seen = queries[i].first.saturating_sub(first)..queries[i].end.saturating_sub(first);
                corrections[i] = weigh::<L>(&mut scores[i], seen, count, &mut greatest[i], &mut sums[i]);
            }
            gather::<L, N>(&span, &queries, count, &scores, &corrections);
        }
        for i in 0..N {
            if !queries[i].partial.is_null() {
                *queries[i].partial = Softmax { greatest: greatest[i], sum: sums[i] };
                continue;
            }
            for d in 0..head.cached.value_length {
                *queries[i].to.add(d) /= sums[i];
            }
        }
    }
}

/// The positions from `first` on, a multiple of 64, in the form that scores are computed from.
#[inline(always)]
unsafe fn span(head: &Head, first: usize, count: usize, room: &mut cached::Room) -> Span {
    let Cached { key_length, value_length, .. } = head.cached;
    // SAFETY: as for `attend`.
    let (keys, values) = unsafe {
        match head.cached.cache_type {
            KvCacheType::F16 => head.cached.halves(first),
            _ => room.fill(&head.cached, first, count),
        }
    };
    Span { keys, values, key_length, value_length }
}

/// Products of each query with the keys of `count` positions, computed in whole 16s.
#[inline(always)]
unsafe fn score<L: Lanes, const N: usize>(head: &Head, span: &Span, queries: &[Query; N], count: usize, scores: &mut [[f32; SPAN]; N]) {
    let blocks = count.div_ceil(16);
    // SAFETY: as for `attend`; a span has whole 16s.
    unsafe {
        let mut block = 0;
        // Few queries leave registers free: two blocks of keys at once keep the multipliers busy.
        while L::WIDE && N <= 4 && block + 2 <= blocks {
            score_blocks::<L, N, 2>(head, span, queries, block, scores);
            block += 2;
        }
        while block < blocks {
            score_blocks::<L, N, 1>(head, span, queries, block, scores);
            block += 1;
        }
        if head.softcap > 0.0 {
            for scores in scores.iter_mut() {
                softcap::<L>(scores.as_mut_ptr(), head.softcap, blocks * 16);
            }
        }
    }
}

#[inline(always)]
unsafe fn score_blocks<L: Lanes, const N: usize, const B: usize>(
    head: &Head,
    span: &Span,
    queries: &[Query; N],
    block: usize,
    scores: &mut [[f32; SPAN]; N],
) {
    // SAFETY: as for `score`.
    unsafe {
        let keys = span.keys.add(block * 16 * span.key_length);
        let mut sums = [[L::splat(0.0); B]; N];
        for d in 0..span.key_length {
            for b in 0..B {
                let key = L::load_half(keys.add((b * span.key_length + d) * 16));
                for i in 0..N {
                    sums[i][b] = L::mul_add(L::splat(*queries[i].from.add(d)), key, sums[i][b]);
                }
            }
        }
        for i in 0..N {
            for b in 0..B {
                L::store(scores[i].as_mut_ptr().add((block + b) * 16), L::mul(sums[i][b], L::splat(head.scale)));
            }
        }
    }
}

/// Turns scores into weights `e^(score - greatest)`, 0 outside of `seen`. Returns what earlier sums are to be multiplied by.
#[inline(always)]
unsafe fn weigh<L: Lanes>(scores: &mut [f32; SPAN], seen: std::ops::Range<usize>, count: usize, greatest: &mut f32, sum: &mut f32) -> f32 {
    let padded = count.next_multiple_of(16);
    let seen = seen.start.min(count)..seen.end.min(count);
    if seen.is_empty() {
        scores[..padded].fill(0.0);
        return 1.0;
    }
    scores[..seen.start].fill(f32::NEG_INFINITY);
    scores[seen.end..padded].fill(f32::NEG_INFINITY);
    // SAFETY: `padded` is at most SPAN.
    unsafe {
        let mut most = L::splat(*greatest);
        for i in (0..padded).step_by(16) {
            most = L::max(most, L::load(scores.as_ptr().add(i)));
        }
        let now = L::greatest(most);
        let correction = if *greatest == f32::NEG_INFINITY { 0.0 } else { (*greatest - now).exp() };
        let mut total = L::splat(0.0);
        for i in (0..padded).step_by(16) {
            let weights = exp::<L>(L::sub(L::load(scores.as_ptr().add(i)), L::splat(now)));
            L::store(scores.as_mut_ptr().add(i), weights);
            total = L::add(total, weights);
        }
        scores[..seen.start].fill(0.0);
        scores[seen.end..padded].fill(0.0);
        *greatest = now;
        *sum = *sum * correction + L::sum(total);
        correction
    }
}

/// Adds the weighted values to what was gathered before, corrected.
#[inline(always)]
unsafe fn gather<L: Lanes, const N: usize>(
    span: &Span,
    queries: &[Query; N],
    count: usize,
    scores: &[[f32; SPAN]; N],
    corrections: &[f32; N],
) {
    let Span { values, value_length: length, .. } = *span;
    // SAFETY: as for `attend`.
    unsafe {
        let mut d = 0;
        while L::WIDE && N < 4 && d + 64 <= length {
            gather_columns::<L, N, 4>(queries, values.add(d), length, count, d, scores, corrections);
            d += 64;
        }
        while (N < 4 || L::WIDE && N < 8) && d + 32 <= length {
            gather_columns::<L, N, 2>(queries, values.add(d), length, count, d, scores, corrections);
            d += 32;
        }
        while d + 16 <= length {
            gather_columns::<L, N, 1>(queries, values.add(d), length, count, d, scores, corrections);
            d += 16;
        }
        for d in d..length {
            for i in 0..N {
                let value = |j: usize| half::f16::from_bits(*values.add(j * length + d)).to_f32();
                let to = queries[i].to.add(d);
                *to = (0..count).fold(*to * corrections[i], |sum, j| sum + scores[i][j] * value(j));
            }
        }
    }
}

/// The same for `16 x C` elements from `d` on.
#[inline(always)]
unsafe fn gather_columns<L: Lanes, const N: usize, const C: usize>(
    queries: &[Query; N],
    values: *const u16,
    length: usize,
    count: usize,
    d: usize,
    scores: &[[f32; SPAN]; N],
    corrections: &[f32; N],
) {
    // SAFETY: as for `attend`; the elements are within `length`.
    unsafe {
        let mut sums = [[L::splat(0.0); C]; N];
        for i in 0..N {
            for c in 0..C {
                sums[i][c] = L::mul(L::load(queries[i].to.add(d + c * 16)), L::splat(corrections[i]));
            }
        }
        for j in 0..count {
            for c in 0..C {
                let value = L::load_half(values.add(j * length + c * 16));
                for i in 0..N {
                    sums[i][c] = L::mul_add(L::splat(scores[i][j]), value, sums[i][c]);
                }
            }
        }
        for i in 0..N {
            for c in 0..C {
                L::store(queries[i].to.add(d + c * 16), sums[i][c]);
            }
        }
    }
}
