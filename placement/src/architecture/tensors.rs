//! Which tensor belongs to which layer, and the table of their kinds.

use std::collections::{BTreeMap, HashMap, HashSet};

use super::need::Need;
use super::{Hyperparameters, LayerCache, OutputLayer};
use crate::gguf::{Header, TensorInfo};
use crate::model_summary::{LayerKind, LayerRun, SummaryError, TensorCount, TensorKind};

const TOKEN_EMBEDDINGS: &str = "token_embd.weight";
const OUTPUT: &str = "output.weight";
const OUTPUT_NORM: &str = "output_norm.weight";

/// How names of the output layer's tensors begin: its matrix and norm, Gemma 3n's AltUp, and heads of classifiers and of sentence embeddings.
///
/// Source: `LLM_TENSOR_LAYER_OUTPUT` in `src/llama-arch.cpp` of llama.cpp.
const OF_OUTPUT: &[&str] = &["output", "altup_", "cls", "dense_"];

/// The tensors of a header by the layer that they belong to.
pub(super) struct Placed<'a> {
    pub input: Vec<&'a TensorInfo>,
    pub blocks: Vec<Vec<&'a TensorInfo>>,
    pub output: Vec<&'a TensorInfo>,
    /// The output layer's own matrix is missing: it multiplies with this one.
    pub tied: Option<&'a TensorInfo>,
    /// Rows of the token embeddings; 0 where no logits are computed.
    pub vocabulary: u64,
}

/// `blk.N.*` is block N, and is left out where that block is not loaded. All that is neither a block's nor the output layer's (embeddings of tokens,
/// of positions and of layers, RoPE factors) is the input layer's, on the host.
pub(super) fn place<'a>(
    header: &'a Header,
    architecture: &str,
    hyperparameters: &Hyperparameters,
    layer: OutputLayer,
) -> Result<Placed<'a>, SummaryError> {
    let blocks = vec![Vec::new(); hyperparameters.block_count as usize];
    let mut placed = Placed { input: Vec::new(), blocks, output: Vec::new(), tied: None, vocabulary: 0 };
    for tensor in &header.tensors {
        if let Some(layer) = block_of(&tensor.name) {
            place_in_block(&mut placed, architecture, layer, tensor)?;
        } else if OF_OUTPUT.iter().any(|begin| tensor.name.starts_with(begin)) {
            placed.output.push(tensor);
        } else {
            placed.input.push(tensor);
        }
    }
    placed.blocks[hyperparameters.loaded_blocks()..].fill(Vec::new());
    let missing = |tensor: &str| SummaryError::MissingTensor { architecture: architecture.into(), tensor: tensor.into() };
    let embeddings = placed.input.iter().copied().find(|tensor| tensor.name == TOKEN_EMBEDDINGS);
    let embeddings = embeddings.ok_or_else(|| missing(TOKEN_EMBEDDINGS))?;
    if layer == OutputLayer::Vocabulary {
        let has = |name: &str| placed.output.iter().any(|tensor| tensor.name == name);
        if !has(OUTPUT_NORM) {
            return Err(missing(OUTPUT_NORM));
        }
        placed.tied = (!has(OUTPUT)).then_some(embeddings);
        placed.vocabulary = embeddings.rows();
    }
    Ok(placed)
}

fn place_in_block<'a>(placed: &mut Placed<'a>, architecture: &str, layer: u64, tensor: &'a TensorInfo) -> Result<(), SummaryError> {
    let blocks = placed.blocks.len() as u32;
    let block = usize::try_from(layer).ok().and_then(|layer| placed.blocks.get_mut(layer));
    let beyond = || SummaryError::LayerBeyondCount { architecture: architecture.into(), tensor: tensor.name.clone(), layer, blocks };
    block.ok_or_else(beyond)?.push(tensor);
    Ok(())
}

/// `7` of `blk.7.attn_q.weight`.
fn block_of(name: &str) -> Option<u64> {
    name.strip_prefix("blk.")?.split_once('.')?.0.parse().ok()
}

/// `blk.7.ffn_gate_exps.weight` and its like, which hold all experts of a block. Routers, and experts that every token goes to, are not among them.
///
/// Source: `LLM_FFN_EXPS_REGEX` in `common/common.h` of llama.cpp, by which its `--n-cpu-moe` chooses.
fn experts<'a>(block: &[&'a TensorInfo]) -> Vec<&'a TensorInfo> {
    const PARTS: [&str; 4] = ["ffn_gate_exps", "ffn_up_exps", "ffn_down_exps", "ffn_gate_up_exps"];
    let part = |tensor: &TensorInfo| tensor.name.split('.').nth(2).is_some_and(|part| PARTS.contains(&part));
    block.iter().copied().filter(|tensor| part(tensor)).collect()
}

/// Each block has the tensors that its family needs.
pub(super) fn check_blocks(placed: &Placed<'_>, architecture: &str, needs: impl Fn(usize) -> Vec<Need>) -> Result<(), SummaryError> {
    for (layer, block) in placed.blocks.iter().enumerate() {
        let prefix = format!("blk.{layer}.");
        let found: HashSet<&str> = block.iter().filter_map(|tensor| tensor.name.strip_prefix(&prefix)).collect();
        if let Some(suffix) = needs(layer).iter().find_map(|need| missing(need, &found)) {
            return Err(SummaryError::MissingTensor { architecture: architecture.into(), tensor: format!("{prefix}{suffix}") });
        }
    }
    Ok(())
}

/// What is missing of the usual way, where no way is complete.
fn missing<'a>(need: &'a Need, found: &HashSet<&str>) -> Option<&'a String> {
    let lacking = |tensors: &'a Vec<String>| tensors.iter().find(|tensor| !found.contains(tensor.as_str()));
    if need.ways.iter().any(|tensors| lacking(tensors).is_none()) { None } else { need.ways.first().and_then(lacking) }
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
    pub fn layers(&mut self, blocks: &[Vec<&TensorInfo>], caches: &[LayerCache]) -> (Vec<LayerKind>, Vec<LayerRun>) {
        let mut kinds: Vec<LayerKind> = Vec::new();
        let mut index: HashMap<LayerKind, u32> = HashMap::new();
        let mut runs: Vec<LayerRun> = Vec::new();
        for (block, cache) in blocks.iter().zip(caches) {
            let LayerCache { kv_heads, key_length, value_length, window, state } = *cache;
            let (tensors, experts) = (self.counts(block), self.counts(&experts(block)));
            let kind = LayerKind { tensors, experts, kv_heads, key_length, value_length, window, state_bytes: state };
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gguf::GgmlType;

    #[test]
    fn experts_are_the_tensors_that_hold_all_of_them_and_their_biases() {
        let names = [
            "blk.7.attn_q.weight",
            "blk.7.ffn_gate_inp.weight",
            "blk.7.ffn_gate_exps.weight",
            "blk.7.ffn_gate_up_exps.weight",
            "blk.7.ffn_down_exps.bias",
            "blk.7.ffn_up_shexp.weight",
            "blk.7.ffn_up.3.weight",
        ];
        let tensor = |name: &str| TensorInfo { name: name.into(), dimensions: vec![32, 32, 4], ggml_type: GgmlType::F32, offset: 0 };
        let block: Vec<TensorInfo> = names.iter().map(|name| tensor(name)).collect();
        let found = experts(&block.iter().collect::<Vec<_>>());
        assert_eq!(found.iter().map(|tensor| tensor.name.as_str()).collect::<Vec<_>>(), names[2..5]);
    }
}
