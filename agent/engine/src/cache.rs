//! The KV cache of one layer: f16, allocated once, a slot for each sequence.
//!
//! A slot holds, for each head, its keys as `[cells / 16, key_length, 16]` and then its values as `[cells, value_length]`, as the attention kernel reads
//! them. That is exactly `cells x kv_heads x (key_length + value_length) x 2` bytes, with no padding.

use half::f16;
use stowage_placement::{Bytes, Tokens};

use crate::arena::Region;
use crate::graph::CacheShape;

/// One layer's cache.
pub struct LayerCache {
    shape: CacheShape,
    cells: usize,
    region: Region,
}

/// Bytes of one layer's cache for `slots` sequences of `num_ctx` tokens. `None`: more than 64 bits hold.
pub fn layer_bytes(shape: &CacheShape, num_ctx: Tokens, slots: u32) -> Option<Bytes> {
    let cells = num_ctx.padded_to_256()?.0;
    let elements = (shape.kv_heads as u64).checked_mul((shape.key_length + shape.value_length) as u64)?;
    cells.checked_mul(elements)?.checked_mul(2)?.checked_mul(slots.into()).map(Bytes)
}

impl LayerCache {
    /// `region` has the bytes that [`layer_bytes`] says.
    pub fn new(shape: CacheShape, num_ctx: Tokens, region: Region) -> LayerCache {
        let cells = num_ctx.padded_to_256().map_or(0, |cells| cells.0 as usize);
        LayerCache { shape, cells, region }
    }

    pub fn shape(&self) -> CacheShape {
        self.shape
    }

    /// Keys and values of one head of one slot.
    pub fn head(&self, slot: usize, head: usize) -> (*mut u16, *mut u16) {
        let CacheShape { kv_heads, key_length, value_length } = self.shape;
        let length = self.cells * (key_length + value_length);
        let start = (slot * kv_heads + head) * length;
        assert!((start + length) * 2 <= self.region.len(), "slot {slot} and head {head} are in the cache");
        // SAFETY: the head lies in the region, as was just checked.
        unsafe {
            let keys = self.region.as_ptr().cast::<u16>().add(start);
            (keys, keys.add(self.cells * key_length))
        }
    }

    /// Stores what one token's heads are to be remembered by.
    ///
    /// # Safety
    ///
    /// `key` and `value` have one row of all heads; no other thread uses this position.
    pub unsafe fn store(&self, slot: usize, position: usize, key: *const f32, value: *const f32) {
        let CacheShape { kv_heads, key_length, value_length } = self.shape;
        assert!(position < self.cells, "position {position} of {} cells", self.cells);
        for head in 0..kv_heads {
            let (keys, values) = self.head(slot, head);
            // SAFETY: by the contract of this function; the position is within the cells.
            unsafe {
                let to = keys.add(position / 16 * 16 * key_length + position % 16);
                for d in 0..key_length {
                    *to.add(d * 16) = f16::from_f32(*key.add(head * key_length + d)).to_bits();
                }
                let to = values.add(position * value_length);
                for d in 0..value_length {
                    *to.add(d) = f16::from_f32(*value.add(head * value_length + d)).to_bits();
                }
            }
        }
    }
}
