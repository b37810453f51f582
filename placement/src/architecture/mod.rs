//! What each family of models keeps in its layers. One file a family, saying only where it differs from an ordinary transformer.

mod hyperparameters;
mod llama;
mod quantization;
mod qwen2;
mod tensors;

pub(crate) use hyperparameters::{Hyperparameters, MAX_BLOCKS};

use crate::architecture::tensors::TensorTable;
use crate::gguf::Header;
use crate::model_summary::{ModelShape, ModelSummary, SummaryError};
use crate::units::Bytes;

/// Architectures that can be sized, by the name in `general.architecture`. Whether the engine can run one is [`crate::capability`]'s to say.
pub const KNOWN: &[&str] = &["granite", "llama", "mistral3", "qwen2", "smollm3"];

/// Where a family differs from another.
pub(crate) struct Family {
    /// Names in `general.architecture` that share these rules.
    pub names: &'static [&'static str],
    /// Tensors (what follows `blk.N.`) without which a block of this layer number is damaged.
    pub block_tensors: fn(&Hyperparameters, layer: usize) -> Vec<&'static str>,
    /// What this layer caches.
    pub cache: fn(&Hyperparameters, layer: usize) -> LayerCache,
}

/// The keys and values that one layer caches for each token of a sequence.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct LayerCache {
    /// 0: nothing.
    pub kv_heads: u64,
    pub key_length: u64,
    pub value_length: u64,
}

const FAMILIES: &[&Family] = &[&llama::FAMILY, &qwen2::FAMILY];

pub(crate) fn summarise(header: &Header, file_size: Bytes) -> Result<ModelSummary, SummaryError> {
    let name = header.architecture()?;
    let family = FAMILIES.iter().find(|family| family.names.contains(&name));
    let Some(family) = family else {
        return Err(SummaryError::UnsupportedArchitecture { found: shortened(name), known: KNOWN });
    };
    let hyperparameters = Hyperparameters::read(header, name)?;
    let mut table = TensorTable::default();
    let placed = tensors::place(header, name, hyperparameters.block_count)?;
    tensors::check_blocks(&placed, name, |layer| (family.block_tensors)(&hyperparameters, layer))?;
    let input = table.counts(&placed.input);
    let output = table.counts(&placed.output);
    let tied_output = placed.tied.and_then(|tensor| table.counts(&[tensor]).first().map(|[kind, _]| *kind));
    let (layer_kinds, layers) = table.layers(&placed.blocks, |layer| (family.cache)(&hyperparameters, layer));
    Ok(ModelSummary {
        architecture: name.to_owned(),
        name: header.string("general.name").ok().flatten().map(shortened).unwrap_or_default(),
        parameter_count: parameter_count(header),
        quantization: quantization::name(header),
        size_bytes: file_size,
        trained_context: hyperparameters.trained_context,
        shape: shape(&hyperparameters, family, placed.vocabulary),
        tensor_kinds: table.kinds,
        input,
        output,
        tied_output,
        layer_kinds,
        layers,
    })
}

fn shape(hyperparameters: &Hyperparameters, family: &Family, vocabulary: u64) -> ModelShape {
    let caches = (0..hyperparameters.block_count as usize).map(|layer| (family.cache)(hyperparameters, layer));
    let largest = caches.fold(LayerCache::default(), |largest, cache| LayerCache {
        kv_heads: largest.kv_heads.max(cache.kv_heads),
        key_length: largest.key_length.max(cache.key_length),
        value_length: largest.value_length.max(cache.value_length),
    });
    ModelShape {
        embedding: hyperparameters.embedding,
        heads: hyperparameters.heads.iter().copied().max().unwrap_or(0),
        kv_heads: largest.kv_heads,
        key_length: largest.key_length,
        value_length: largest.value_length,
        feed_forward: hyperparameters.feed_forward.iter().copied().max().unwrap_or(0),
        vocabulary,
    }
}

/// A header's tensors can each claim 2^62 elements, so their sum may not fit; for display it is enough to say the most that there is.
fn parameter_count(header: &Header) -> u64 {
    header.tensors.iter().fold(0, |sum: u64, tensor| sum.saturating_add(tensor.elements())).min(i64::MAX as u64)
}

/// Names are for display, and a header could make them long.
fn shortened(text: &str) -> String {
    text.chars().filter(|c| !c.is_control()).take(128).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_known_architectures_are_those_of_the_families() {
        let mut names: Vec<&str> = FAMILIES.iter().flat_map(|family| family.names).copied().collect();
        names.sort_unstable();
        assert_eq!(names, KNOWN);
    }
}
