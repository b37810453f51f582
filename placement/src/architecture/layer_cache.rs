//! What a layer keeps of a sequence, and the rules that several families share.

use crate::architecture::hyperparameters::{Hyperparameters, SlidingPattern};
use crate::units::Bytes;

/// What one layer keeps of each sequence. The default: nothing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct LayerCache {
    /// 0: it caches no keys and values.
    pub kv_heads: u64,
    /// Elements that one head caches of a token as its key.
    pub key_length: u64,
    pub value_length: u64,
    /// Tokens that the layer looks back; 0: all of the context.
    pub window: u64,
    /// Recurrent state.
    pub state: Bytes,
}

/// Full attention in every layer that has KV heads.
pub(crate) fn full_attention(hyperparameters: &Hyperparameters, layer: usize) -> LayerCache {
    match hyperparameters.kv_heads[layer] {
        0 => LayerCache::default(),
        kv_heads => LayerCache {
            kv_heads,
            key_length: hyperparameters.key_length,
            value_length: hyperparameters.value_length,
            ..LayerCache::default()
        },
    }
}

/// The same within a window.
pub(crate) fn sliding_attention(hyperparameters: &Hyperparameters, layer: usize, window: u64) -> LayerCache {
    match hyperparameters.kv_heads[layer] {
        0 => LayerCache::default(),
        kv_heads => LayerCache {
            kv_heads,
            key_length: hyperparameters.sliding_key_length,
            value_length: hyperparameters.sliding_value_length,
            window,
            state: Bytes::ZERO,
        },
    }
}

/// Sliding attention in the layers that the file names. Where it names none, the last of every `period` layers has the whole context; 0: none has.
///
/// Source: `llama_hparams::set_swa_pattern` and `llama_model_base::load_swa_pattern` of llama.cpp.
pub(crate) fn interleaved_attention(hyperparameters: &Hyperparameters, layer: usize, window: u64, period: u64) -> LayerCache {
    let slides_by = |period: u64| period == 0 || !(layer as u64 + 1).is_multiple_of(period);
    let slides = match &hyperparameters.sliding {
        SlidingPattern::Unsaid => slides_by(period),
        SlidingPattern::Period(period) => slides_by(*period),
        SlidingPattern::Layers(layers) => layers[layer],
    };
    if slides && window > 0 { sliding_attention(hyperparameters, layer, window) } else { full_attention(hyperparameters, layer) }
}

/// The state of a recurrent layer, in f32: the last `convolution - 1` inputs of the convolution, over the inner channels and, for each group, over
/// the two projections of the state's size; and `inner x state` of the state itself.
///
/// Source: `llama_hparams::n_embd_r` and `n_embd_s` of llama.cpp, which `llama_memory_recurrent` allocates in f32. Gated delta net goes by the
/// same two. Checked on Qwen3.6-35B-A3B: `3 x (4096 + 2 x 16 x 128) x 4 + 4096 x 128 x 4` bytes in each of 30 layers are 62.81 MiB.
pub(crate) fn recurrent_state(hyperparameters: &Hyperparameters) -> Bytes {
    let recurrence = &hyperparameters.recurrence;
    let channels = recurrence.inner.saturating_add(recurrence.groups.saturating_mul(recurrence.state).saturating_mul(2));
    let convolution = recurrence.convolution.saturating_sub(1).saturating_mul(channels);
    let elements = convolution.saturating_add(recurrence.inner.saturating_mul(recurrence.state));
    Bytes(elements.saturating_mul(4))
}

/// Full attention in the last of every so many layers, gated delta net in the others.
///
/// Source: `load_arch_hparams` in `src/models/qwen3next.cpp` of llama.cpp, which takes four where the file says nothing.
pub(crate) fn attention_every_so_many_layers(hyperparameters: &Hyperparameters, layer: usize) -> LayerCache {
    if is_recurrent(hyperparameters, layer) {
        LayerCache { state: recurrent_state(hyperparameters), ..LayerCache::default() }
    } else {
        full_attention(hyperparameters, layer)
    }
}

/// Whether a layer is recurrent in a model that has attention in every so many layers.
pub(crate) fn is_recurrent(hyperparameters: &Hyperparameters, layer: usize) -> bool {
    const INTERVAL: u64 = 4;
    let recurrence = &hyperparameters.recurrence;
    match (&recurrence.layers, recurrence.full_attention_interval) {
        (Some(layers), _) => layers[layer],
        (None, 0) => !(layer as u64 + 1).is_multiple_of(INTERVAL),
        (None, interval) => !(layer as u64 + 1).is_multiple_of(interval),
    }
}

/// Nothing: the model reads a text at once, both ways.
pub(crate) fn none(_: &Hyperparameters, _: usize) -> LayerCache {
    LayerCache::default()
}
