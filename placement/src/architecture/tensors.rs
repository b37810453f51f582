//! Which tensor belongs to which layer, and the table of their kinds.

use std::collections::{BTreeMap, HashMap};

use super::LayerCache;
use crate::gguf::{Header, TensorInfo};
use crate::model_summary::{LayerKind, LayerRun, SummaryError, TensorCount, TensorKind};

const TOKEN_EMBEDDINGS: &str = "token_embd.weight";
const OUTPUT: &str = "output.weight";

/// The tensors of a header by the layer that they belong to.
pub(super) struct Placed<'a> {
    pub input: Vec<&'a TensorInfo>,
    pub blocks: Vec<Vec<&'a TensorInfo>>,
    pub output: Vec<&'a TensorInfo>,
    /// The output layer's own matrix is missing: it multiplies with this one.
    pub tied: Option<&'a TensorInfo>,
    /// Rows of the token embeddings.
    pub vocabulary: u64,
}

/// `blk.N.*` is block N. `output*` is the output layer, which multiplies with the token embeddings where it has no matrix of its own. All
/// else (embeddings, RoPE factors) is the input layer's, on the host.
pub(super) fn place<'a>(header: &'a Header, architecture: &str, block_count: u32) -> Result<Placed<'a>, SummaryError> {
    let missing = |tensor: &str| SummaryError::MissingTensor { architecture: architecture.into(), tensor: tensor.into() };
    let mut placed =
        Placed { input: Vec::new(), blocks: vec![Vec::new(); block_count as usize], output: Vec::new(), tied: None, vocabulary: 0 };
    let mut embeddings = None;
    let mut has_output = false;
    for tensor in &header.tensors {
        if let Some(layer) = block_of(&tensor.name) {
            let block = usize::try_from(layer).ok().and_then(|layer| placed.blocks.get_mut(layer));
            let block = block.ok_or_else(|| SummaryError::LayerBeyondCount {
                architecture: architecture.into(),
                tensor: tensor.name.clone(),
                layer,
                blocks: block_count,
            })?;
            block.push(tensor);
        } else if tensor.name.starts_with("output") {
            has_output |= tensor.name == OUTPUT;
            placed.output.push(tensor);
        } else {
            if tensor.name == TOKEN_EMBEDDINGS {
                embeddings = Some(tensor);
            }
            placed.input.push(tensor);
        }
    }
    let embeddings = embeddings.ok_or_else(|| missing(TOKEN_EMBEDDINGS))?;
    placed.vocabulary = embeddings.rows();
    if !placed.output.iter().any(|tensor| tensor.name == "output_norm.weight") {
        return Err(missing("output_norm.weight"));
    }
    placed.tied = (!has_output).then_some(embeddings);
    Ok(placed)
}

/// `7` of `blk.7.attn_q.weight`.
fn block_of(name: &str) -> Option<u64> {
    name.strip_prefix("blk.")?.split_once('.')?.0.parse().ok()
}

/// Each block has the tensors that its family needs.
pub(super) fn check_blocks(
    placed: &Placed<'_>,
    architecture: &str,
    needed: impl Fn(usize) -> Vec<&'static str>,
) -> Result<(), SummaryError> {
    for (layer, block) in placed.blocks.iter().enumerate() {
        for suffix in needed(layer) {
            let tensor = format!("blk.{layer}.{suffix}");
            if !block.iter().any(|found| found.name == tensor) {
                return Err(SummaryError::MissingTensor { architecture: architecture.into(), tensor });
            }
        }
    }
    Ok(())
}

/// Kinds of tensors, each once, in the order in which they were first seen.
#[derive(Default)]
pub(super) struct TensorTable {
    pub kinds: Vec<TensorKind>,
    index: HashMap<TensorKind, u32>,
}

impl TensorTable {
    /// How many of each kind there are, in the order in which the kinds were first seen.
    pub fn counts(&mut self, tensors: &[&TensorInfo]) -> Vec<TensorCount> {
        let mut counts: BTreeMap<u32, u32> = BTreeMap::new();
        for tensor in tensors {
            let kind = TensorKind { ggml_type: tensor.ggml_type, rows: tensor.rows(), columns: tensor.columns() };
            let next = self.kinds.len() as u32;
            let index = *self.index.entry(kind).or_insert(next);
            if index == next {
                self.kinds.push(kind);
            }
            *counts.entry(index).or_default() += 1;
        }
        counts.into_iter().map(|(kind, count)| [kind, count]).collect()
    }

    /// The kinds of layers and, run-length coded, which layer is of which.
    pub fn layers(&mut self, blocks: &[Vec<&TensorInfo>], cache: impl Fn(usize) -> LayerCache) -> (Vec<LayerKind>, Vec<LayerRun>) {
        let mut kinds: Vec<LayerKind> = Vec::new();
        let mut index: HashMap<LayerKind, u32> = HashMap::new();
        let mut runs: Vec<LayerRun> = Vec::new();
        for (layer, block) in blocks.iter().enumerate() {
            let LayerCache { kv_heads, key_length, value_length } = cache(layer);
            let kind = LayerKind { tensors: self.counts(block), kv_heads, key_length, value_length };
            let next = kinds.len() as u32;
            let found = *index.entry(kind.clone()).or_insert(next);
            if found == next {
                kinds.push(kind);
            }
            match runs.last_mut() {
                Some([last, count]) if *last == found => *count += 1,
                _ => runs.push([found, 1]),
            }
        }
        (kinds, runs)
    }
}
