//! What a layer keeps of the sequences that it serves: keys and values, recurrent state, and copies of what can't be computed back.

use crate::footprint::Span;
use crate::model_summary::LayerKind;
use crate::request::Request;
use crate::units::{Bytes, Tokens};

/// Copies that are kept of a sequence's rings and states.
///
/// Keys and values of all of the context stay where they are, so that a prefix of them can be used again at any length. A ring has overwritten what
/// lies further back than its window, and a state is that of the last token alone: after them, a prefix can only be gone on from where a copy was
/// made. Two are kept, of the ends of the last two prompts: one for an answer that is asked for again, or whose thoughts the next prompt leaves
/// out, and one for a last question that is asked differently.
///
/// Models without rings and states have none.
pub const CHECKPOINTS: u64 = 2;

/// Bytes of all sequences, without weights. `None`: more than 64 bits hold.
pub(super) fn kept(kind: &LayerKind, request: &Request) -> Option<Span> {
    let sequences = u64::from(request.parallel);
    let kv_cache = kv_cache(kind, request)?.checked_mul(sequences)?;
    let state = kind.state_bytes.checked_mul(sequences)?;
    let ring = if is_ring(kind, request) { kv_cache } else { Bytes::ZERO };
    let checkpoints = ring.checked_add(state)?.checked_mul(CHECKPOINTS)?;
    Some(Span { weights: Bytes::ZERO, kv_cache, state, checkpoints })
}

/// `cells x n_kv x (k_len + v_len) x b` for one sequence; b: f16 2, q8_0 34/32, q4_0 18/32.
///
/// Checked on SmolLM2-135M (30 layers, 3 KV heads of 64): f16 at 2048 tokens 45 MiB, q8_0 23.91 MiB, as llama.cpp prints them.
fn kv_cache(kind: &LayerKind, request: &Request) -> Option<Bytes> {
    let elements = kind.key_length.checked_add(kind.value_length)?.checked_mul(kind.kv_heads)?.checked_mul(cells(kind, request)?.0)?;
    let (block_elements, block_bytes) = request.kv_cache_type.block();
    // A multiple of 256 cells is a whole number of blocks of 32 elements, whatever a head's length is.
    block_bytes.checked_mul(elements / block_elements)
}

/// Tokens that a layer has room for: `pad256(num_ctx)`, and with a window `pad256(min(num_ctx, window + num_batch))`, since a whole batch is written
/// before its first token has looked back.
///
/// Source: `llama_kv_cache_iswa` of llama.cpp. Checked on Gemma 3 270M (15 sliding layers, 1024 cells): 15 MiB in f16.
fn cells(kind: &LayerKind, request: &Request) -> Option<Tokens> {
    if kind.window == 0 {
        return request.num_ctx.padded_to_256();
    }
    request.num_ctx.min(ring_length(kind, request)?).padded_to_256()
}

/// Whether the layer's cells are written over before the context is full.
fn is_ring(kind: &LayerKind, request: &Request) -> bool {
    kind.window > 0 && ring_length(kind, request).is_some_and(|length| length < request.num_ctx)
}

fn ring_length(kind: &LayerKind, request: &Request) -> Option<Tokens> {
    kind.window.checked_add(u64::from(request.num_batch)).map(Tokens)
}
