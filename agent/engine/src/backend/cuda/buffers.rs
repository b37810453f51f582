//! Scratch memory of a device, in the order in which `placement::compute::cuda` counts it.

use stowage_placement::compute::{ComputeShape, cuda};
use stowage_placement::layout::Backend as Layout;
use stowage_placement::{Reason, Request};

use super::driver::DevicePointer;
use super::memory::{DeviceArena, Region};
use crate::api::EngineError;
use crate::arena::Purpose;
use crate::graph::Operand;

/// Rows of f32, so many elements apart.
#[derive(Clone, Copy, Debug)]
pub struct Rows {
    pub at: DevicePointer,
    pub stride: u32,
}

/// Buffers of the blocks.
pub struct Buffers {
    hidden: Rows,
    /// Normed, Query, Key, Value, Attended, Gate, Up.
    values: [Rows; 7],
    /// Rows as they are multiplied.
    pub activations: DevicePointer,
    /// Of each token and rope, `key_length` floats: cosines, then sines.
    pub rotations: Rows,
    /// Of each rope, `key_length / 2` floats.
    pub frequencies: DevicePointer,
    pub tokens: DevicePointer,
    pub spans: DevicePointer,
    pub partials: DevicePointer,
    pub experts: Option<ExpertBuffers>,
}

/// Buffers of routed experts.
#[derive(Clone, Copy)]
pub struct ExpertBuffers {
    pub router: Rows,
    pub choices: DevicePointer,
    pub gate: Rows,
    pub up: Rows,
    pub activations: DevicePointer,
    /// What each chosen expert gives.
    pub given: Rows,
    pub share: Rows,
    pub sorted_pairs: DevicePointer,
    pub tiles: DevicePointer,
}

/// Buffers of the output layer.
pub struct OutputBuffers {
    pub wanted: DevicePointer,
    pub normed: Rows,
    pub activations: DevicePointer,
    pub logits: Rows,
}

impl Buffers {
    pub fn new(arena: &DeviceArena, hidden: Rows, shape: &ComputeShape, request: &Request) -> Result<Buffers, EngineError> {
        let batch = u64::from(request.num_batch);
        let regions = take(arena, cuda::layer_buffers(shape, batch))?;
        let [normed, query, key, value, attended, gate, up, activations, rotations, frequencies, tokens, spans, partials] = regions;
        let queries = shape.heads * shape.key_length;
        let values = [
            rows(normed, shape.embedding),
            rows(query, queries),
            rows(key, shape.kv_heads_max * shape.key_length),
            rows(value, shape.kv_heads_max * shape.value_length),
            rows(attended, shape.heads * shape.value_length),
            rows(gate, shape.feed_forward),
            rows(up, shape.feed_forward),
        ];
        Ok(Buffers {
            hidden,
            values,
            activations: activations.start,
            rotations: rows(rotations, shape.key_length * shape.ropes),
            frequencies: frequencies.start,
            tokens: tokens.start,
            spans: spans.start,
            partials: partials.start,
            experts: if shape.experts > 0 { Some(ExpertBuffers::new(arena, shape, batch)?) } else { None },
        })
    }

    /// The rows of a value. Errors: EngineCannotRun where the model has no such value.
    pub fn rows(&self, operand: Operand) -> Result<Rows, EngineError> {
        let [normed, query, key, value, attended, gate, up] = self.values;
        Ok(match operand {
            Operand::Hidden => self.hidden,
            Operand::Normed => normed,
            Operand::Query => query,
            Operand::Key => key,
            Operand::Value => value,
            Operand::Attended => attended,
            Operand::Gate => gate,
            Operand::Up => up,
            Operand::Share => self.experts()?.share,
        })
    }

    pub fn experts(&self) -> Result<ExpertBuffers, EngineError> {
        let missing = || EngineError::new(Reason::EngineCannotRun, "a model without experts was to route tokens to them");
        self.experts.ok_or_else(missing)
    }
}

impl ExpertBuffers {
    fn new(arena: &DeviceArena, shape: &ComputeShape, batch: u64) -> Result<ExpertBuffers, EngineError> {
        let [router, choices, gate, up, activations, given, share, sorted_pairs, tiles] = take(arena, cuda::expert_buffers(shape, batch))?;
        Ok(ExpertBuffers {
            router: rows(router, shape.experts),
            choices: choices.start,
            gate: rows(gate, shape.expert_feed_forward),
            up: rows(up, shape.expert_feed_forward),
            activations: activations.start,
            given: rows(given, shape.embedding),
            share: rows(share, 1),
            sorted_pairs: sorted_pairs.start,
            tiles: tiles.start,
        })
    }
}

impl OutputBuffers {
    pub fn new(arena: &DeviceArena, shape: &ComputeShape, count: u64) -> Result<OutputBuffers, EngineError> {
        let [wanted, normed, activations, logits] = take(arena, cuda::output_buffers(shape, count))?;
        Ok(OutputBuffers {
            wanted: wanted.start,
            normed: rows(normed, shape.embedding),
            activations: activations.start,
            logits: rows(logits, shape.vocabulary),
        })
    }
}

/// The hidden state of a batch.
pub fn hidden(arena: &DeviceArena, shape: &ComputeShape, batch: u64) -> Result<Rows, EngineError> {
    let [hidden] = take(arena, [batch.checked_mul(shape.embedding).and_then(|floats| floats.checked_mul(4))])?;
    Ok(rows(hidden, shape.embedding))
}

fn rows(region: Region, width: u64) -> Rows {
    Rows { at: region.start, stride: width as u32 }
}

/// Buffers of these sizes.
pub fn take<const N: usize>(arena: &DeviceArena, sizes: [Option<u64>; N]) -> Result<[Region; N], EngineError> {
    let too_large = || EngineError::new(Reason::InvalidRequest, "scratch memory needs more bytes than 64 bits can count");
    let take = |size: Option<u64>| arena.take(Purpose::Compute, size.and_then(|size| Layout::Cuda.aligned(size)).ok_or_else(too_large)?);
    let regions = sizes.into_iter().map(take).collect::<Result<Vec<Region>, EngineError>>()?;
    regions.try_into().map_err(|_| too_large())
}
