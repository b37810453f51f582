//! Attention of a batch's tokens, and how it is shared out among threads: by sequence, by head of the cache, and by positions where there are few of these.
//!
//! Parts of one token's positions are attended as if the others were not there ("Flash-Decoding for long-context inference", Dao and others, 2023). What they give
//! lies in the rows of Attended behind the batch's, and the maximum and the sum of each softmax where those rows have their queries; then they are merged.

use super::Step;
use crate::backend::cpu::program::Attend;
use crate::batch::TokenAt;
use crate::cache::LayerCache;
use crate::graph::{CacheShape, Operand};
use crate::kernels::{Head, Query, Softmax};
use crate::pool::Worker;

/// Tokens of one sequence whose attention is one piece of work.
const SPAN_TOKENS: usize = 8;
/// Pieces of work from which on positions are not divided. The number of threads is left out of it, so that an answer doesn't depend on that.
const ENOUGH_PIECES: usize = 64;
/// Positions of a part at least.
const PART_POSITIONS: usize = 256;
const MOST_PARTS: usize = 16;

/// Neighbouring tokens of one sequence.
#[derive(Clone, Copy)]
pub(super) struct Span {
    slot: usize,
    first: usize,
    count: usize,
}

/// Puts the spans of a batch in place of what is there.
pub(super) fn spans(tokens: &[TokenAt], spans: &mut Vec<Span>) {
    spans.clear();
    for (index, token) in tokens.iter().enumerate() {
        match spans.last_mut() {
            Some(span) if span.slot == token.slot as usize && span.count < SPAN_TOKENS => span.count += 1,
            _ => spans.push(Span { slot: token.slot as usize, first: index, count: 1 }),
        }
    }
}

/// Positions in parts of one length, a multiple of 64.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Parts {
    begin: usize,
    length: usize,
    count: usize,
}

impl Parts {
    /// At most `most` parts of the positions from `begin` to `end`.
    fn of(begin: usize, end: usize, most: usize) -> Parts {
        let begin = begin / PART_POSITIONS * PART_POSITIONS;
        let positions = end - begin;
        let least = positions.div_ceil(most.max(1)).next_multiple_of(PART_POSITIONS);
        Parts { begin, length: least, count: positions.div_ceil(least) }
    }

    /// What a query of positions `first` to `end` sees of a part.
    fn seen(&self, part: usize, first: usize, end: usize) -> std::ops::Range<usize> {
        let from = self.begin + part * self.length;
        first.max(from)..end.min(from + self.length)
    }
}

impl Step<'_> {
    pub(super) unsafe fn attend(&self, attend: &Attend, cache: &LayerCache, worker: &Worker<'_>) {
        let kv_heads = cache.shape().kv_heads;
        let mut before = 0;
        for span in self.spans {
            let parts = self.parts(attend, cache.shape(), span);
            let pieces = kv_heads * parts.count;
            let first = (worker.index + worker.count - before % worker.count) % worker.count;
            for piece in (first..pieces).step_by(worker.count) {
                // SAFETY: passed on to the caller; the piece is this thread's.
                unsafe { self.attend_piece(attend, cache, span, piece % kv_heads, &parts, piece / kv_heads) };
            }
            before += pieces;
        }
    }

    /// The parts of what a span's tokens see. What is not causal is one text, seen whole.
    fn parts(&self, attend: &Attend, shape: CacheShape, span: &Span) -> Parts {
        let (first, last) = (self.seen(attend, shape, span.first), self.seen(attend, shape, span.first + span.count - 1));
        Parts::of(first.start, last.end, self.most_parts(shape))
    }

    /// As many as keep threads busy and as there is room for behind the batch; below 2, nothing is divided.
    fn most_parts(&self, shape: CacheShape) -> usize {
        let pieces = self.spans.len() * shape.kv_heads;
        let room = self.num_batch / self.tokens.len() - 1;
        ENOUGH_PIECES.div_ceil(pieces).min(room).min(MOST_PARTS)
    }

    /// The positions that a token sees.
    fn seen(&self, attend: &Attend, shape: CacheShape, row: usize) -> std::ops::Range<usize> {
        let end = if attend.causal { self.tokens[row].position as usize + 1 } else { self.tokens.len() };
        shape.window.map_or(0, |window| end.saturating_sub(window))..end
    }

    /// The row behind the batch's in which a part of a token's attention lies.
    fn part_row(&self, row: usize, part: usize) -> usize {
        self.tokens.len() * (part + 1) + row
    }

    /// Attention of one span's tokens to a part of one head of the cache.
    unsafe fn attend_piece(&self, attend: &Attend, cache: &LayerCache, span: &Span, kv_head: usize, parts: &Parts, part: usize) {
        let Attend { heads, scale, softcap, sinks, to, .. } = attend;
        let shape = cache.shape();
        let head = Head { cached: cache.head(span.slot, kv_head), scale: *scale, softcap: *softcap };
        let sharing = heads / shape.kv_heads;
        let query = |index: usize| {
            let (row, of_heads) = (span.first + index / sharing, kv_head * sharing + index % sharing);
            let seen = self.seen(attend, shape, row);
            let seen = parts.seen(part, seen.start, seen.end);
            let sink = sinks.as_ref().filter(|_| part == 0).map_or(f32::NEG_INFINITY, |sinks| sinks.floats()[of_heads]);
            let (row_to, partial) = match parts.count {
                1 => (row, std::ptr::null_mut()),
                // SAFETY: the row is behind the batch's and within the buffer, as `parts` has seen to.
                _ => (self.part_row(row, part), unsafe { self.softmax(self.part_row(row, part), of_heads, shape) }),
            };
            // SAFETY: rows of the buffers, and one of their heads.
            unsafe {
                let from = self.row(Operand::Query, row).add(of_heads * shape.key_length);
                Query {
                    from,
                    to: self.row(*to, row_to).add(of_heads * shape.value_length),
                    first: seen.start,
                    end: seen.end,
                    sink,
                    partial,
                }
            }
        };
        for first in (0..span.count * sharing).step_by(8) {
            let count = (span.count * sharing - first).min(8);
            let queries: [Query; 8] = std::array::from_fn(|i| query(first + i.min(count - 1)));
            // SAFETY: all that the queries see was stored before this phase, and each part of each head of each row is one query's alone.
            unsafe {
                self.isa.attend(&head, &queries[..count]);
                if cache.is_quantised() && parts.count == 1 {
                    queries[..count].iter().for_each(|query| self.isa.hadamard(query.to, shape.value_length));
                }
            }
        }
    }

    /// Where the softmax of a part is kept.
    unsafe fn softmax(&self, part_row: usize, head: usize, shape: CacheShape) -> *mut Softmax {
        // SAFETY: the caller gives a row of the buffer and one of its heads, which are of two floats at least.
        unsafe { self.row(Operand::Query, part_row).add(head * shape.key_length).cast() }
    }

    /// One token's attention from its parts.
    pub(super) unsafe fn merge(&self, attend: &Attend, row: usize, cache: &LayerCache) {
        let shape = cache.shape();
        if self.most_parts(shape) < 2 {
            return;
        }
        let Some(span) = self.spans.iter().find(|span| (span.first..span.first + span.count).contains(&row)) else { return };
        let parts = self.parts(attend, shape, span).count;
        if parts == 1 {
            return;
        }
        for head in 0..attend.heads {
            // SAFETY: `attend` wrote what is read here in the phase before, and the row is this thread's.
            unsafe {
                let softmax = |part: usize| *self.softmax(self.part_row(row, part), head, shape);
                let greatest = (0..parts).fold(f32::NEG_INFINITY, |most, part| most.max(softmax(part).greatest));
                let weight = |part: usize| (softmax(part).greatest - greatest).exp();
                let sum: f32 = (0..parts).map(|part| weight(part) * softmax(part).sum).sum();
                let at = |row: usize| self.row(attend.to, row).add(head * shape.value_length);
                std::ptr::write_bytes(at(row), 0, shape.value_length);
                for part in 0..parts {
                    self.isa.add_scaled(at(row), at(self.part_row(row, part)), weight(part) / sum, shape.value_length);
                }
                if cache.is_quantised() {
                    self.isa.hadamard(at(row), shape.value_length);
                }
            }
        }
    }

    /// Transforms a token's heads, so that few bits hold them well. What is attended is transformed back.
    pub(super) unsafe fn spread_outliers(&self, row: usize, heads: usize, cache: &LayerCache) {
        let CacheShape { kv_heads, key_length, value_length, .. } = cache.shape();
        let rows = [(Operand::Query, heads, key_length), (Operand::Key, kv_heads, key_length), (Operand::Value, kv_heads, value_length)];
        for (value, heads, length) in rows {
            for head in 0..heads {
                // SAFETY: passed on to the caller; a row has so many heads.
                unsafe { self.isa.hadamard(self.row(value, row).add(head * length), length) };
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Parts;

    #[test]
    fn parts_cover_all_positions_once() {
        for (begin, end, most) in [(0, 1, 16), (0, 256, 16), (0, 257, 16), (300, 5000, 16), (0, 131_072, 8), (4000, 4100, 0), (1, 9000, 3)]
        {
            let parts = Parts::of(begin, end, most);
            assert!(parts.count <= most.max(1) && parts.length.is_multiple_of(64), "{parts:?}");
            let seen: Vec<usize> = (0..parts.count).flat_map(|part| parts.seen(part, begin, end)).collect();
            assert_eq!(seen, (begin..end).collect::<Vec<_>>(), "{parts:?}");
        }
        assert_eq!(Parts::of(0, 4096, 16).count, 16);
        assert_eq!(Parts::of(0, 1000, 1).count, 1);
    }
}
