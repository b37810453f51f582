//! Scratch memory that a backend preallocates for one step, independent of the context length and of the number of threads. The engine takes
//! its buffers out of exactly this many bytes.

pub mod cuda;

use crate::layout::Backend;
use crate::units::Bytes;

/// The sizes that scratch memory follows from, the largest of any layer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ComputeShape {
    pub embedding: u64,
    pub heads: u64,
    pub kv_heads_max: u64,
    /// Elements of one head's key, and of its query.
    pub key_length: u64,
    pub value_length: u64,
    pub feed_forward: u64,
    pub vocabulary: u64,
    /// Ways in which positions become angles: layers with a window may have one of their own.
    pub ropes: u64,
    /// Experts that tokens are routed to; 0: none.
    pub experts: u64,
    /// Experts that one token goes to.
    pub experts_used: u64,
    pub expert_feed_forward: u64,
}

impl ComputeShape {
    /// Whether the model reads a whole text at once, both ways, and gives no logits.
    pub fn reads_at_once(&self) -> bool {
        self.vocabulary == 0
    }
}

/// What a device does for the model; each part brings its buffers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DeviceRole {
    /// It holds at least one block, or the experts of one: a host that holds experts alone takes the buffers of a whole block all the same, and so does
    /// the GPU that holds the rest of it.
    pub layers: bool,
    /// It holds the output layer.
    pub output: bool,
    /// It is the host, which looks up embeddings and hands hidden states from device to device.
    pub input: bool,
}

/// Tokens are quantised in groups of this many, the columns that a kernel multiplies at once.
pub const COLUMN_BLOCK: u64 = 8;
/// Activations are quantised to 8 bits in blocks of this many elements.
pub const ACTIVATION_BLOCK: u64 = 32;
/// A choice is an expert's number and its weight, four bytes each.
const CHOICE_FLOATS: u64 = 2;
/// Bytes of such a block: the elements, their scale, and scale times their sum, of the whole block and of its first half.
pub const ACTIVATION_BLOCK_BYTES: u64 = ACTIVATION_BLOCK + 3 * 4;

/// Rows of logits that one step of the output layer can give: one a sequence, and never fewer than 8.
pub fn logit_rows(parallel: u32) -> u64 {
    u64::from(parallel).max(COLUMN_BLOCK)
}

/// Scratch memory of one device. `None`: more than 64 bits hold.
pub fn scratch_bytes(shape: &ComputeShape, num_batch: u32, parallel: u32, backend: Backend, role: DeviceRole) -> Option<Bytes> {
    let batch = u64::from(num_batch);
    let mut sizes =
        if backend == Backend::Cuda { cuda::buffers(shape, batch, parallel, role) } else { cpu_buffers(shape, batch, parallel, role) };
    if role.input {
        sizes.push(floats(batch, shape.embedding));
    }
    if role.layers && shape.reads_at_once() {
        sizes.push(batch_cache_bytes(shape, batch));
    }
    let mut total = Bytes::ZERO;
    for size in sizes {
        total = total.checked_add(backend.aligned(size?)?)?;
    }
    Some(total)
}

fn cpu_buffers(shape: &ComputeShape, batch: u64, parallel: u32, role: DeviceRole) -> Vec<Option<u64>> {
    let mut sizes = Vec::with_capacity(20);
    if role.layers {
        sizes.extend(layer_buffers(shape, batch));
        if shape.experts > 0 {
            sizes.extend(expert_buffers(shape, batch));
        }
    }
    if role.output && !shape.reads_at_once() {
        sizes.extend(output_buffers(shape, logit_rows(parallel)));
    }
    sizes
}

/// Buffers of the blocks, in the order in which the engine takes them: normalised rows, query, key, value, attended, gate, up, quantised
/// activations, and the rotations of each token's position.
pub fn layer_buffers(shape: &ComputeShape, batch: u64) -> [Option<u64>; 9] {
    let [normed, query, key, value, attended, gate, up] = value_buffers(shape, batch);
    let activations = widest(shape).and_then(|widest| activation_bytes(batch, widest));
    [normed, query, key, value, attended, gate, up, activations, rotation_bytes(shape, batch)]
}

/// What every backend holds of a batch in f32: normalised rows, query, key, value, attended, gate, up.
fn value_buffers(shape: &ComputeShape, batch: u64) -> [Option<u64>; 7] {
    let rows = |width: Option<u64>| width.and_then(|width| floats(batch, width));
    [
        rows(Some(shape.embedding)),
        rows(shape.heads.checked_mul(shape.key_length)),
        rows(shape.kv_heads_max.checked_mul(shape.key_length)),
        rows(shape.kv_heads_max.checked_mul(shape.value_length)),
        rows(shape.heads.checked_mul(shape.value_length)),
        rows(Some(shape.feed_forward)),
        rows(Some(shape.feed_forward)),
    ]
}

/// Elements of the longest row that is multiplied.
fn widest(shape: &ComputeShape) -> Option<u64> {
    let attended = shape.heads.checked_mul(shape.value_length)?;
    Some(attended.max(shape.embedding).max(shape.feed_forward))
}

/// Rotations of each token's position, in f32.
fn rotation_bytes(shape: &ComputeShape, batch: u64) -> Option<u64> {
    floats(batch, shape.key_length.checked_mul(shape.ropes)?)
}

/// Keys and values, in f16, of a model that reads a text at once: they are kept while a layer is computed, in whole 256 cells.
pub fn batch_cache_bytes(shape: &ComputeShape, batch: u64) -> Option<u64> {
    let elements = shape.kv_heads_max.checked_mul(shape.key_length.checked_add(shape.value_length)?)?;
    batch.checked_next_multiple_of(256)?.checked_mul(elements)?.checked_mul(2)
}

/// Buffers of routed experts, in the order in which the engine takes them: the router's logits, the experts chosen with their weights, each chosen
/// expert's gate and up, the gate's quantised form, and how much of a shared expert each token takes.
pub fn expert_buffers(shape: &ComputeShape, batch: u64) -> [Option<u64>; 6] {
    let chosen = batch.checked_mul(shape.experts_used);
    let rows = |width: u64| chosen.and_then(|chosen| floats(chosen, width));
    let quantised = chosen.and_then(|chosen| activation_bytes(chosen, shape.expert_feed_forward));
    [
        floats(batch, shape.experts),
        rows(CHOICE_FLOATS),
        rows(shape.expert_feed_forward),
        rows(shape.expert_feed_forward),
        quantised,
        floats(batch, 1),
    ]
}

/// Buffers of the output layer, in the order in which the engine takes them: normalised rows, their quantised form, logits.
pub fn output_buffers(shape: &ComputeShape, rows: u64) -> [Option<u64>; 3] {
    [floats(rows, shape.embedding), activation_bytes(rows, shape.embedding), floats(rows, shape.vocabulary)]
}

fn floats(rows: u64, width: u64) -> Option<u64> {
    rows.checked_mul(width)?.checked_mul(4)
}

/// Bytes of `rows` rows of `width` elements, quantised: rows in whole groups, elements in whole blocks.
pub fn activation_bytes(rows: u64, width: u64) -> Option<u64> {
    let blocks = width.div_ceil(ACTIVATION_BLOCK);
    rows.checked_next_multiple_of(COLUMN_BLOCK)?.checked_mul(blocks)?.checked_mul(ACTIVATION_BLOCK_BYTES)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SMOLLM2: ComputeShape = ComputeShape {
        embedding: 576,
        heads: 9,
        kv_heads_max: 3,
        key_length: 64,
        value_length: 64,
        feed_forward: 1536,
        vocabulary: 49152,
        ropes: 1,
        experts: 0,
        experts_used: 0,
        expert_feed_forward: 0,
    };

    #[test]
    fn each_part_brings_its_own_buffers() {
        let bytes = |layers, output, input| scratch_bytes(&SMOLLM2, 512, 1, Backend::Cpu, DeviceRole { layers, output, input });
        let (layers, output, input) = (bytes(true, false, false), bytes(false, true, false), bytes(false, false, true));
        assert_eq!(input, Some(Bytes(512 * 576 * 4)));
        assert_eq!(output, Some(Bytes(8 * (576 * 4 + 18 * 44 + 49152 * 4))));
        let all = layers.and_then(|l| l.checked_add(output?)).and_then(|sum| sum.checked_add(input?));
        assert_eq!(bytes(true, true, true), all);
        assert_eq!(bytes(false, false, false), Some(Bytes::ZERO));
    }

    #[test]
    fn experts_bring_buffers_of_their_own_to_devices_with_layers() {
        let shape = ComputeShape { experts: 64, experts_used: 4, expert_feed_forward: 96, ..SMOLLM2 };
        let bytes = |shape| scratch_bytes(shape, 32, 1, Backend::Cpu, DeviceRole { layers: true, output: false, input: false }).unwrap();
        let own = 32 * 64 * 4 + 32 * 4 * 8 + 2 * (32 * 4 * 96 * 4) + 32 * 4 * 3 * 44 + 32 * 4;
        assert_eq!(bytes(&shape).0 - bytes(&SMOLLM2).0, own);
    }

    #[test]
    fn overflow_is_seen() {
        let shape = ComputeShape { feed_forward: u64::MAX / 2, ..SMOLLM2 };
        assert_eq!(scratch_bytes(&shape, 512, 1, Backend::Cpu, DeviceRole { layers: true, output: false, input: false }), None);
    }
}
