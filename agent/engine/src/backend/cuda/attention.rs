//! Heads on their way to attention, the KV cache on a device, and attention over it.

use stowage_placement::compute::cuda::SPLIT_ROWS;
use stowage_placement::{KvCacheType, Reason, Request};

use super::arguments::{AttendArguments, Cache, HeadsArguments, SpreadArguments};
use super::buffers::Buffers;
use super::driver::{DevicePointer, Kernel};
use super::kernels::{FEW, Kernels, THREADS, WARP};
use super::pass::Pass;
use super::weights::DeviceNorm;
use crate::api::EngineError;
use crate::cache;
use crate::graph::{Attention, CacheShape, Operand, Pairing, Rope};

/// Queries that a block attends from.
const QUERIES: u32 = 8;
/// Queries of a block of `attend_tiles`, the longest keys and values for which it has room, and its shared memory: 64 keys in rows of 136 halves, and 128 elements of
/// values in rows of 72.
const TILE_QUERIES: u32 = 64;
const TILE_LENGTH: u32 = 128;
const TILE_SHARED_FLOATS: u32 = (64 * 136 + 128 * 72) / 2;
/// Positions that a block looks at together.
const POSITIONS: u32 = THREADS;
/// Positions for which another split is worth its while.
const SPLIT_POSITIONS: u64 = 256;
/// Splits of one row at most.
const MOST_SPLITS: u64 = 64;

/// What comes before attention, gathered from the operations that say so one by one.
#[derive(Clone, Copy, Default)]
pub struct Approach {
    pub query_norm: Option<DeviceNorm>,
    pub key_norm: Option<DeviceNorm>,
    pub query_rope: Option<usize>,
    pub key_rope: Option<usize>,
}

impl Approach {
    pub fn is_empty(&self) -> bool {
        self.query_norm.is_none() && self.key_norm.is_none() && self.query_rope.is_none() && self.key_rope.is_none()
    }
}

/// Attention of one block.
pub struct DeviceAttention {
    heads: HeadsArguments,
    attend: AttendArguments,
    kernel: Kernel,
}

/// One layer's cache at `data`.
pub fn device_cache(shape: &CacheShape, request: &Request, data: DevicePointer) -> Cache {
    let cache_type = match request.kv_cache_type {
        _ if shape.for_a_batch => 0,
        KvCacheType::F16 => 0,
        KvCacheType::Q8_0 => 1,
        KvCacheType::Q4_0 => 2,
    };
    Cache {
        data,
        cache_type,
        cells: cache::cells(shape, request).unwrap_or(0) as u32,
        kv_heads: shape.kv_heads as u32,
        key_length: shape.key_length as u32,
        value_length: shape.value_length as u32,
        for_a_batch: shape.for_a_batch.into(),
    }
}

impl DeviceAttention {
    pub fn new(
        attention: &Attention,
        sinks: DevicePointer,
        approach: Approach,
        (ropes, cache, window): (&[Rope], Cache, Option<usize>),
        buffers: &Buffers,
        kernels: &Kernels,
    ) -> Result<DeviceAttention, EngineError> {
        let [query, key, value, to] = [Operand::Query, Operand::Key, Operand::Value, attention.to].map(|operand| buffers.rows(operand));
        let (query, key, value, to) = (query?, key?, value?, to?);
        let rope = rope_of(&approach)?;
        let stride = buffers.rotations.stride / ropes.len().max(1) as u32;
        let norm = |norm: Option<DeviceNorm>| norm.map_or(DevicePointer::NULL, |norm| norm.weight);
        let heads = HeadsArguments {
            cache,
            query: query.at,
            key: key.at,
            value: value.at,
            tokens: buffers.tokens,
            query_norm: norm(approach.query_norm),
            key_norm: norm(approach.key_norm),
            rotations: rope.map_or(DevicePointer::NULL, |rope| buffers.rotations.at.after(rope * stride as usize * 4)),
            rotation_stride: buffers.rotations.stride,
            pairs: rope.map_or(0, |rope| ropes[rope].dimensions as u32 / 2),
            neighbours: rope.is_some_and(|rope| ropes[rope].pairing == Pairing::Neighbours).into(),
            heads: attention.heads as u32,
            query_stride: query.stride,
            key_stride: key.stride,
            value_stride: value.stride,
            epsilon: approach.query_norm.or(approach.key_norm).map_or(0.0, |norm| norm.epsilon),
        };
        let attend = AttendArguments {
            cache,
            query: query.at,
            to: to.at,
            partials: buffers.partials,
            tokens: buffers.tokens,
            spans: buffers.spans,
            sinks,
            heads: heads.heads,
            query_stride: query.stride,
            to_stride: to.stride,
            window: window.unwrap_or(0) as u32,
            causal: attention.causal.into(),
            count: 0,
            splits: 1,
            scale: attention.scale,
            softcap: attention.softcap.unwrap_or(0.0),
        };
        let size = cache.value_length.div_ceil(THREADS).next_power_of_two().ilog2() as usize;
        Ok(DeviceAttention { heads, attend, kernel: kernels.attend[size] })
    }

    pub fn run(&self, kernels: &Kernels, pass: &Pass) -> Result<(), EngineError> {
        let Cache { cache_type, kv_heads, key_length, value_length, .. } = self.attend.cache;
        let heads = self.attend.heads;
        let longest = key_length.max(value_length);
        kernels.launch(kernels.heads, [pass.rows, heads + 2 * kv_heads, 1], longest + THREADS / WARP, &self.heads)?;
        let arguments = AttendArguments { count: pass.rows, splits: pass.splits, ..self.attend };
        let is_tiled = pass.rows > FEW && longest <= TILE_LENGTH;
        let (kernel, queries, shared) = match is_tiled {
            true => (kernels.attend_tiles, TILE_QUERIES, TILE_SHARED_FLOATS),
            false => (self.kernel, QUERIES, shared_floats(key_length)),
        };
        let groups = (pass.longest_span * (heads / kv_heads)).div_ceil(queries);
        kernels.launch(kernel, [pass.spans, kv_heads * groups, pass.splits], shared, &arguments)?;
        if pass.splits > 1 {
            kernels.launch(kernels.attend_combine, [pass.rows, heads, 1], 0, &arguments)?;
        }
        if cache_type != 0 {
            let spread = SpreadArguments { rows: self.attend.to, stride: self.attend.to_stride, length: value_length };
            kernels.launch(kernels.spread_heads, [pass.rows, heads, 1], value_length, &spread)?;
        }
        Ok(())
    }
}

/// Over how many blocks a head's positions are split: more where few rows look back far, a power of two, so that few steps differ.
pub fn splits(rows: u32, longest: u64) -> u32 {
    if rows > FEW {
        return 1;
    }
    let most = (SPLIT_ROWS / u64::from(rows)).min(MOST_SPLITS);
    let wanted = longest.div_ceil(SPLIT_POSITIONS).next_power_of_two();
    // The largest power of two in `most`.
    wanted.min(1 << most.ilog2()) as u32
}

/// Shared memory of attention: queries, weights of positions, and what warps tell each other.
fn shared_floats(key_length: u32) -> u32 {
    QUERIES * key_length.next_multiple_of(8) + QUERIES * POSITIONS + QUERIES * (THREADS / WARP)
}

/// The rope by which queries and keys are turned alike.
fn rope_of(approach: &Approach) -> Result<Option<usize>, EngineError> {
    let epsilons = [approach.query_norm, approach.key_norm].map(|norm| norm.map(|norm| norm.epsilon));
    if approach.query_rope != approach.key_rope || matches!(epsilons, [Some(a), Some(b)] if a != b) {
        let message = "the cuda backend turns and norms queries as it does keys, and this model's differ";
        return Err(EngineError::new(Reason::EngineCannotRun, message));
    }
    Ok(approach.query_rope)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attention_is_split_where_few_rows_look_back_far_and_never_beyond_its_buffer() {
        assert_eq!([splits(1, 1), splits(1, 256), splits(1, 257), splits(1, 5000), splits(1, 1 << 17)], [1, 1, 2, 32, 64]);
        assert_eq!([splits(3, 1 << 17), splits(8, 1 << 17), splits(9, 1 << 17)], [32, 16, 1]);
        assert!((1..=8).all(|rows| u64::from(rows * splits(rows, u64::from(u32::MAX))) <= SPLIT_ROWS));
    }
}
