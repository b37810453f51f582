//! Scratch memory of the CUDA backend: as on the CPU, and beside it the hidden state, what the host tells a step, and the parts of attention that is split over
//! blocks. Activations are held in half precision where a batch is multiplied by tensor cores, and in 8 bits, which take less, where it is not.

use super::{ComputeShape, DeviceRole, floats, logit_rows, rotation_bytes, value_buffers, widest};

/// Elements that activations are filled up to.
const PADDING: u64 = 32;
/// A row's scale, in f32.
const SCALE_BYTES: u64 = 4;
/// A token's slot and position.
pub const TOKEN_BYTES: u64 = 8;
/// A run of tokens of one sequence: its slot, first row and length.
pub const SPAN_BYTES: u64 = 12;
/// Rows times splits of a step whose attention is split.
pub const SPLIT_ROWS: u64 = 128;
/// Columns that a block multiplies with a tile of a matrix.
pub const TILE_COLUMNS: u64 = 128;
/// An expert, where its columns begin, and how many of them a block takes.
const TILE_BYTES: u64 = 16;
/// An expert's number and its weight.
const CHOICE_BYTES: u64 = 8;

pub(super) fn buffers(shape: &ComputeShape, batch: u64, parallel: u32, role: DeviceRole) -> Vec<Option<u64>> {
    let gives_logits = role.output && !shape.reads_at_once();
    let mut sizes = Vec::with_capacity(32);
    if role.layers || gives_logits {
        sizes.push(floats(batch, shape.embedding));
    }
    if role.layers {
        sizes.extend(layer_buffers(shape, batch));
        if shape.experts > 0 {
            sizes.extend(expert_buffers(shape, batch));
        }
    }
    if gives_logits {
        sizes.extend(output_buffers(shape, logit_rows(parallel)));
    }
    sizes
}

/// Buffers of the blocks after the hidden state, in the order in which the engine takes them: normalised rows, query, key, value, attended, gate, up; activations
/// as they are multiplied; each token's rotations, and the frequencies that they follow from; tokens, and spans of them; and what attention's splits found.
pub fn layer_buffers(shape: &ComputeShape, batch: u64) -> [Option<u64>; 13] {
    let [normed, query, key, value, attended, gate, up] = value_buffers(shape, batch);
    // The sums of a head, the largest of its scores, and the sum of its weights.
    let split = shape.value_length.checked_add(2).and_then(|length| shape.heads.checked_mul(length));
    [
        normed,
        query,
        key,
        value,
        attended,
        gate,
        up,
        widest(shape).and_then(|widest| activation_bytes(batch, widest)),
        rotation_bytes(shape, batch),
        shape.key_length.checked_mul(shape.ropes).and_then(|pairs| floats(1, pairs / 2)),
        batch.checked_mul(TOKEN_BYTES),
        batch.checked_mul(SPAN_BYTES),
        split.and_then(|split| floats(SPLIT_ROWS, split)),
    ]
}

/// Buffers of routed experts, in the order in which the engine takes them: the router's logits, the experts chosen with their weights, each chosen expert's gate
/// and up, the gate as it is multiplied, what each chosen expert gives, how much of a shared expert each token takes, and tokens sorted by experts, in tiles.
pub fn expert_buffers(shape: &ComputeShape, batch: u64) -> [Option<u64>; 9] {
    let chosen = batch.checked_mul(shape.experts_used);
    let rows = |width: u64| chosen.and_then(|chosen| floats(chosen, width));
    [
        floats(batch, shape.experts),
        chosen.and_then(|chosen| chosen.checked_mul(CHOICE_BYTES)),
        rows(shape.expert_feed_forward),
        rows(shape.expert_feed_forward),
        chosen.and_then(|chosen| activation_bytes(chosen, shape.expert_feed_forward)),
        rows(shape.embedding),
        floats(batch, 1),
        rows(1),
        chosen.and_then(|chosen| most_tiles(chosen, shape.experts)?.checked_mul(TILE_BYTES)),
    ]
}

/// Tiles of columns that `chosen` columns of `experts` experts make at most.
pub fn most_tiles(chosen: u64, experts: u64) -> Option<u64> {
    chosen.div_ceil(TILE_COLUMNS).checked_add(experts.min(chosen))
}

/// Buffers of the output layer after the hidden state, in the order in which the engine takes them: which rows are wanted, those normalised, as they are
/// multiplied, and logits.
pub fn output_buffers(shape: &ComputeShape, rows: u64) -> [Option<u64>; 4] {
    [floats(rows, 1), floats(rows, shape.embedding), activation_bytes(rows, shape.embedding), floats(rows, shape.vocabulary)]
}

/// Bytes of `rows` rows of `width` elements as they are multiplied: two an element in half precision with a scale a row. In 8 bits, with two numbers for every 16
/// elements, they take three quarters of that.
pub fn activation_bytes(rows: u64, width: u64) -> Option<u64> {
    let row = width.checked_next_multiple_of(PADDING)?.checked_mul(2)?.checked_add(SCALE_BYTES)?;
    rows.checked_mul(row)
}

#[cfg(test)]
mod tests {
    use super::*;

    const LLAMA_8B: ComputeShape = ComputeShape {
        embedding: 4096,
        heads: 32,
        kv_heads_max: 8,
        key_length: 128,
        value_length: 128,
        feed_forward: 14336,
        vocabulary: 128_256,
        ropes: 1,
        experts: 0,
        experts_used: 0,
        expert_feed_forward: 0,
    };

    fn sum(sizes: &[Option<u64>]) -> u64 {
        sizes.iter().map(|size| size.unwrap()).sum()
    }

    #[test]
    fn a_device_of_any_role_has_room_for_the_hidden_state_once() {
        let all = |layers, output| sum(&buffers(&LLAMA_8B, 512, 1, DeviceRole { layers, output, input: false }));
        assert_eq!(all(true, true) + 512 * 4096 * 4, all(true, false) + all(false, true));
        assert_eq!(all(false, false), 0);
        assert_eq!(all(false, true), 512 * 4096 * 4 + 8 * (4 + 4096 * 4 + 4096 * 2 + 4 + 128_256 * 4));
    }

    #[test]
    fn tiles_are_enough_however_tokens_are_spread_over_experts() {
        // One expert takes all, or each of 64 one more than whole tiles.
        assert!(most_tiles(1000, 64).unwrap() >= 8);
        assert_eq!(most_tiles(64 * 129, 64), Some(65 + 64));
        assert_eq!(most_tiles(8, 128), Some(1 + 8));
    }

    #[test]
    fn activations_are_filled_up_to_whole_32_elements() {
        assert_eq!(activation_bytes(3, 33), Some(3 * (128 + 4)));
        assert_eq!(activation_bytes(u64::MAX, 33), None);
    }
}
