//! The KV cache of one layer: allocated once, a slot for each sequence, with cells for the whole context or, where the layer has a window, for as much
//! as a batch can look back on. `kernels::cached` says how a head's part lies in memory; it takes exactly the bytes that its elements take.
//!
//! Cells for the whole context hold every token of a sequence, so a sequence can be taken up again at any of them. A ring has written over what lies
//! further back; so copies of it are kept, in memory that was set aside for them, to which a sequence can be taken back.

use std::sync::Arc;

use stowage_placement::footprint::CHECKPOINTS;
use stowage_placement::{Bytes, KvCacheType, Request, Tokens};

use crate::arena::Region;
use crate::graph::CacheShape;
use crate::kernels::cached::Cached;

/// What is done with a copy of a ring.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Checkpoint {
    Keep,
    PutBack,
}

/// One layer's cache.
pub struct LayerCache {
    shape: CacheShape,
    cache_type: KvCacheType,
    cells: usize,
    /// That of a model that reads a text at once is all its layers'.
    region: Arc<Region>,
    /// Of a ring, its copies: those of a slot one after the other.
    checkpoints: Option<Region>,
}

/// Bytes of one layer's cache for all sequences of a request. `None`: more than 64 bits hold.
pub fn layer_bytes(shape: &CacheShape, request: &Request) -> Option<Bytes> {
    if shape.for_a_batch {
        return Some(Bytes::ZERO);
    }
    let (elements, bytes) = request.kv_cache_type.block();
    let length = (shape.kv_heads as u64).checked_mul((shape.key_length + shape.value_length) as u64)?;
    let of_one = (cells(shape, request)?.checked_mul(length)? / elements).checked_mul(bytes.0)?;
    of_one.checked_mul(request.parallel.into()).map(Bytes)
}

/// Bytes of the copies of one layer's cache; 0 where it is no ring. `None`: more than 64 bits hold.
pub fn checkpoint_bytes(shape: &CacheShape, request: &Request) -> Option<Bytes> {
    if is_ring(shape, request) { layer_bytes(shape, request)?.checked_mul(CHECKPOINTS) } else { Some(Bytes::ZERO) }
}

/// Whether cells are written over before the context is full.
fn is_ring(shape: &CacheShape, request: &Request) -> bool {
    shape.window.is_some_and(|window| (window as u64).saturating_add(request.num_batch.into()) < request.num_ctx.0)
}

/// Whether a sequence of `from` tokens can be taken up again after its first `to`: whether what the next token looks back on is still there.
pub fn can_rewind(shape: &CacheShape, request: &Request, from: usize, to: usize) -> bool {
    let (Some(window), Some(cells)) = (shape.window, cells(shape, request)) else { return true };
    let oldest_kept = from.saturating_sub(cells as usize);
    let oldest_seen = (to + 1).saturating_sub(window);
    // The first token of all looks back on nothing.
    to == 0 || to <= from && oldest_seen >= oldest_kept
}

/// Cells of each sequence: a whole batch is stored before its first token looks back.
pub fn cells(shape: &CacheShape, request: &Request) -> Option<u64> {
    if shape.for_a_batch {
        return Tokens(request.num_batch.into()).padded_to_256().map(|cells| cells.0);
    }
    let most = match shape.window {
        Some(window) => Tokens((window as u64).checked_add(request.num_batch.into())?).min(request.num_ctx),
        None => request.num_ctx,
    };
    most.padded_to_256().map(|cells| cells.0)
}

impl LayerCache {
    /// `region` has the bytes that [`layer_bytes`] says, `checkpoints` those of [`checkpoint_bytes`] where that is more than none.
    pub fn new(shape: CacheShape, request: &Request, region: Arc<Region>, checkpoints: Option<Region>) -> LayerCache {
        let cells = cells(&shape, request).map_or(0, |cells| cells as usize);
        let cache_type = if shape.for_a_batch { KvCacheType::F16 } else { request.kv_cache_type };
        LayerCache { shape, cache_type, cells, region, checkpoints }
    }

    /// Keeps a copy of a slot's ring, or puts it back.
    pub fn checkpoint(&mut self, slot: usize, index: usize, copy: Checkpoint) {
        let length = self.slot_bytes();
        let Some(checkpoints) = &mut self.checkpoints else { return };
        let cells = &self.region.bytes()[slot * length..][..length];
        let copied = &mut checkpoints.bytes_mut()[(slot * CHECKPOINTS as usize + index) * length..][..length];
        match copy {
            Checkpoint::Keep => copied.copy_from_slice(cells),
            // SAFETY: the slot's cells lie in the region, as was just looked at, and with `self` borrowed mutably nobody else has them.
            Checkpoint::PutBack => unsafe {
                std::ptr::copy_nonoverlapping(copied.as_ptr(), self.region.as_ptr().add(slot * length), length);
            },
        }
    }

    fn slot_bytes(&self) -> usize {
        let CacheShape { kv_heads, key_length, value_length, window: _, for_a_batch: _ } = self.shape;
        kv_heads * [key_length, value_length].map(|length| Cached::bytes(self.cache_type, self.cells * length)).iter().sum::<usize>()
    }

    pub fn is_quantised(&self) -> bool {
        self.cache_type != KvCacheType::F16
    }

    pub fn shape(&self) -> CacheShape {
        self.shape
    }

    /// Keys and values of one head of one slot.
    pub fn head(&self, slot: usize, head: usize) -> Cached {
        let CacheShape { kv_heads, key_length, value_length, window: _, for_a_batch } = self.shape;
        // A batch is one text, whichever slot it is read for.
        let slot = if for_a_batch { 0 } else { slot };
        let [key, value] = [key_length, value_length].map(|length| self.cells * length);
        let bytes = |elements: usize| Cached::bytes(self.cache_type, elements);
        let length = bytes(key) + bytes(value);
        let start = (slot * kv_heads + head) * length;
        assert!(start + length <= self.region.len(), "slot {slot} and head {head} are in the cache");
        // SAFETY: the head lies in the region, as was just checked.
        let (keys, values) = unsafe { (self.region.as_ptr().add(start), self.region.as_ptr().add(start + bytes(key))) };
        Cached { cache_type: self.cache_type, keys, values, key_length, value_length, cells: self.cells }
    }

    /// Stores what one token's heads are to be remembered by.
    ///
    /// # Safety
    ///
    /// `key` and `value` have one row of all heads; no other thread uses this position.
    pub unsafe fn store(&self, slot: usize, position: usize, key: *const f32, value: *const f32) {
        let CacheShape { kv_heads, key_length, value_length, window, for_a_batch: _ } = self.shape;
        assert!(window.is_some() || position < self.cells, "position {position} of {} cells", self.cells);
        for head in 0..kv_heads {
            // SAFETY: by the contract of this function.
            unsafe { self.head(slot, head).store(position, key.add(head * key_length), value.add(head * value_length)) };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(num_ctx: u64, num_batch: u32) -> Request {
        Request { num_ctx: Tokens(num_ctx), num_batch, ..Request::default() }
    }

    #[test]
    fn a_ring_takes_what_a_batch_looks_back_on_and_its_copies_as_much_each() {
        let (shape, ring) = (CacheShape { kv_heads: 2, key_length: 64, value_length: 32, window: None, for_a_batch: false }, Some(200));
        let ring = CacheShape { window: ring, ..shape };
        let cell = 2 * (64 + 32) * 2;
        assert_eq!(layer_bytes(&shape, &request(4000, 100)), Some(Bytes(4096 * cell)));
        assert_eq!(checkpoint_bytes(&shape, &request(4000, 100)), Some(Bytes::ZERO));
        assert_eq!(layer_bytes(&ring, &request(4000, 100)), Some(Bytes(512 * cell)));
        assert_eq!(checkpoint_bytes(&ring, &request(4000, 100)), Some(Bytes(2 * 512 * cell)));
        assert_eq!(checkpoint_bytes(&ring, &request(300, 100)), Some(Bytes::ZERO), "it holds the whole context");
    }

    #[test]
    fn a_ring_can_be_taken_up_as_far_back_as_its_window_is_whole() {
        let shape = CacheShape { kv_heads: 1, key_length: 32, value_length: 32, window: Some(200), for_a_batch: false };
        let can = |from, to| can_rewind(&shape, &request(4000, 100), from, to);
        // 512 cells.
        assert!(can(512, 0) && can(512, 300) && can(700, 700));
        assert!(can(600, 287) && !can(600, 286), "88 of its tokens are written over, and the next would look back on 200");
        assert!(!can(700, 100) && !can(10, 11) && can(700, 0));
        assert!(can_rewind(&CacheShape { window: None, ..shape }, &request(4000, 100), 3000, 1));
    }
}
