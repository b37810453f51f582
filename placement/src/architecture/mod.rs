//! What each family of models keeps in its layers. One file a family, saying only where it differs from an ordinary transformer.

mod bert;
mod cohere;
mod deepseek2;
mod falcon_h1;
mod gemma2;
mod gemma3;
mod gemma3n;
mod gemma4;
mod glm4;
mod gpt_oss;
mod hyperparameters;
mod layer_cache;
mod llama;
mod mamba;
mod minimax_m2;
mod need;
mod olmo2;
mod particulars;
mod phi3;
mod quantization;
mod qwen2;
mod qwen3;
mod qwen3next;
mod starcoder2;
mod tensors;
#[cfg(test)]
mod testing;

pub(crate) use hyperparameters::{Hyperparameters, MAX_BLOCKS, MAX_CONTEXT};
pub(crate) use layer_cache::LayerCache;

use crate::architecture::need::Need;
use crate::architecture::tensors::TensorTable;
use crate::gguf::{GgufError, Header};
use crate::model_summary::{ModelShape, ModelSummary, SummaryError};
use crate::units::Bytes;

/// Architectures that can be sized, by the name in `general.architecture`. Whether the engine can run one is [`crate::capability`]'s to say.
pub const KNOWN: &[&str] = &[
    "bert",
    "cohere2",
    "command-r",
    "deepseek2",
    "falcon-h1",
    "gemma2",
    "gemma3",
    "gemma3n",
    "gemma4",
    "glm4",
    "glm4moe",
    "gpt-oss",
    "granite",
    "granitemoe",
    "llama",
    "mamba",
    "mamba2",
    "minimax-m2",
    "mistral3",
    "nomic-bert",
    "olmo2",
    "phi3",
    "qwen2",
    "qwen2moe",
    "qwen3",
    "qwen35",
    "qwen35moe",
    "qwen3moe",
    "qwen3next",
    "smollm3",
    "starcoder2",
];

/// Where a family differs from another.
pub(crate) struct Family {
    /// Names in `general.architecture` that share these rules.
    pub names: &'static [&'static str],
    /// Keys (what follows the architecture's name) without which nothing can be sized, beside those that every model has.
    pub required: &'static [&'static str],
    /// Tensors without which a block of this layer number is damaged.
    pub block_tensors: fn(&Hyperparameters, layer: usize) -> Vec<Need>,
    /// What this layer caches.
    pub cache: fn(&Hyperparameters, layer: usize) -> LayerCache,
    pub output: OutputLayer,
}

/// What follows the blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum OutputLayer {
    /// A norm, and a product with a matrix over the vocabulary, or with the token embeddings.
    Vocabulary,
    /// Nothing: the last block's hidden states are the answer.
    None,
}

const FAMILIES: &[&Family] = &[
    &bert::BERT,
    &bert::NOMIC_BERT,
    &cohere::COMMAND_R,
    &cohere::COHERE2,
    &deepseek2::FAMILY,
    &falcon_h1::FAMILY,
    &gemma2::FAMILY,
    &gemma3::FAMILY,
    &gemma3n::FAMILY,
    &gemma4::FAMILY,
    &glm4::DENSE,
    &glm4::EXPERTS,
    &gpt_oss::FAMILY,
    &llama::FAMILY,
    &mamba::MAMBA,
    &mamba::MAMBA2,
    &minimax_m2::FAMILY,
    &olmo2::FAMILY,
    &phi3::FAMILY,
    &qwen2::DENSE,
    &qwen2::EXPERTS,
    &qwen3::DENSE,
    &qwen3::EXPERTS,
    &qwen3next::QWEN3_NEXT,
    &qwen3next::QWEN35,
    &qwen3next::QWEN35_EXPERTS,
    &starcoder2::FAMILY,
];

pub(crate) fn summarise(header: &Header, file_size: Bytes) -> Result<ModelSummary, SummaryError> {
    let name = header.architecture()?;
    let family = family(name)?;
    let hyperparameters = Hyperparameters::read(header, name)?;
    require(header, name, family.required)?;
    let placed = tensors::place(header, name, &hyperparameters, family.output)?;
    tensors::check_blocks(&placed, name, |layer| needs(family, &hyperparameters, layer))?;
    let mut table = TensorTable::default();
    let input = table.counts(&placed.input);
    let output = table.counts(&placed.output);
    let tied_output = placed.tied.and_then(|tensor| table.counts(&[tensor]).first().map(|[kind, _]| *kind));
    let caches: Vec<LayerCache> = (0..hyperparameters.block_count as usize).map(|layer| cache(family, &hyperparameters, layer)).collect();
    require_lengths(header, name, &caches)?;
    let (layer_kinds, layers) = table.layers(&placed.blocks, &caches);
    Ok(ModelSummary {
        architecture: name.to_owned(),
        name: header.string("general.name").ok().flatten().map(shortened).unwrap_or_default(),
        parameter_count: parameter_count(header),
        quantization: quantization::name(header),
        size_bytes: file_size,
        trained_context: hyperparameters.trained_context,
        particulars: particulars::of(header, name, &hyperparameters, |layer| needs(family, &hyperparameters, layer)),
        shape: shape(&hyperparameters, &caches, placed.vocabulary),
        tensor_kinds: table.kinds,
        input,
        output,
        tied_output,
        layer_kinds,
        layers,
    })
}

fn family(name: &str) -> Result<&'static Family, SummaryError> {
    let found = FAMILIES.iter().find(|family| family.names.contains(&name)).copied();
    found.ok_or_else(|| SummaryError::UnsupportedArchitecture { found: shortened(name), known: KNOWN })
}

fn require(header: &Header, architecture: &str, names: &[&str]) -> Result<(), SummaryError> {
    let keys = names.iter().map(|name| format!("{architecture}.{name}"));
    match keys.into_iter().find(|key| header.get(key).is_none()) {
        Some(key) => Err(GgufError::MissingKey { key }.into()),
        None => Ok(()),
    }
}

/// A layer that caches keys needs their length, which a file without heads to divide the embedding by has to state.
fn require_lengths(header: &Header, architecture: &str, caches: &[LayerCache]) -> Result<(), SummaryError> {
    let unknown = caches.iter().any(|cache| cache.kv_heads > 0 && cache.key_length == 0);
    if unknown { require(header, architecture, &["attention.key_length"]) } else { Ok(()) }
}

/// Blocks that predict further tokens are not loaded, so nothing is missing in them.
fn needs(family: &Family, hyperparameters: &Hyperparameters, layer: usize) -> Vec<Need> {
    if layer < hyperparameters.loaded_blocks() { (family.block_tensors)(hyperparameters, layer) } else { Vec::new() }
}

fn cache(family: &Family, hyperparameters: &Hyperparameters, layer: usize) -> LayerCache {
    if layer < hyperparameters.loaded_blocks() { (family.cache)(hyperparameters, layer) } else { LayerCache::default() }
}

/// The sizes that scratch memory follows from. Where the engine has no graph for a family yet, they are those of its widest rows, what a recurrent
/// layer's projections give among them.
fn shape(hyperparameters: &Hyperparameters, caches: &[LayerCache], vocabulary: u64) -> ModelShape {
    let experts = &hyperparameters.experts;
    let dense = hyperparameters.feed_forward.iter().copied().max().unwrap_or(0);
    let shared = experts.shared_feed_forward.max(experts.shared.saturating_mul(experts.feed_forward));
    let recurrence = &hyperparameters.recurrence;
    let recurrent = recurrence.inner.saturating_mul(2).saturating_add(recurrence.groups.saturating_mul(recurrence.state).saturating_mul(2));
    ModelShape {
        embedding: hyperparameters.embedding,
        heads: hyperparameters.heads.iter().copied().max().unwrap_or(0),
        kv_heads: kv_heads(hyperparameters, caches, vocabulary),
        key_length: hyperparameters.key_length.max(hyperparameters.sliding_key_length),
        value_length: hyperparameters.value_length.max(hyperparameters.sliding_value_length),
        feed_forward: dense.max(shared).max(recurrent),
        vocabulary,
        ropes: ropes(caches),
        experts: experts.count,
        experts_used: experts.used,
        expert_feed_forward: if experts.count == 0 || experts.feed_forward > 0 { experts.feed_forward } else { dense },
    }
}

/// Those that are cached; of a model that reads a text at once and caches nothing, those that are kept for as long as that takes.
fn kv_heads(hyperparameters: &Hyperparameters, caches: &[LayerCache], vocabulary: u64) -> u64 {
    let cached = caches.iter().map(|cache| cache.kv_heads).max().unwrap_or(0);
    if cached == 0 && vocabulary == 0 { hyperparameters.kv_heads.iter().copied().max().unwrap_or(0) } else { cached }
}

/// Layers with a window may turn positions by a base of their own, and where there are others too, both are computed.
fn ropes(caches: &[LayerCache]) -> u64 {
    let slides = |cache: &&LayerCache| cache.window > 0;
    let attending = || caches.iter().filter(|cache| cache.kv_heads > 0);
    if attending().any(|cache| slides(&cache)) && attending().any(|cache| !slides(&cache)) { 2 } else { 1 }
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
