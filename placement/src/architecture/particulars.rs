//! What a header asks of an engine beside its family's usual graph.

use std::collections::BTreeSet;

use super::need::Need;
use super::{Hyperparameters, shortened};
use crate::gguf::{Header, Value};
use crate::model_summary::Particulars;

/// Tensors outside the blocks that every graph knows.
const USUAL: &[&str] = &["token_embd.weight", "output.weight", "output_norm.weight", "rope_freqs.weight"];

/// Enough to say what is missing; a header may have any number of them.
const MOST_NAMED: usize = 4;

pub(super) fn of(
    header: &Header,
    architecture: &str,
    hyperparameters: &Hyperparameters,
    needs: impl Fn(usize) -> Vec<Need>,
) -> Particulars {
    Particulars {
        experts: hyperparameters.experts.count,
        rope_scaling: rope_scaling(header, architecture),
        heads_by_layer: differ(&hyperparameters.heads) || differ(&hyperparameters.kv_heads),
        tokenizer: tokenizer(header),
        other_tensors: other_tensors(header, hyperparameters, needs),
    }
}

/// The scaling's type where the file names one, `linear` where it only has a factor; empty where positions are not scaled.
fn rope_scaling(header: &Header, architecture: &str) -> String {
    let key = |name: &str| format!("{architecture}.rope.{name}");
    let stated = header.string(&key("scaling.type")).ok().flatten().filter(|stated| *stated != "none");
    let factor = |name: &str| header.f64(&key(name)).ok().flatten().is_some_and(|factor| factor != 1.0);
    match stated {
        Some(stated) => shortened(stated),
        None if factor("scale_linear") => "linear".into(),
        None => String::new(),
    }
}

fn differ(numbers: &[u64]) -> bool {
    numbers.windows(2).any(|pair| pair[0] != pair[1])
}

/// `gpt2/llama-bpe`: the tokenizer's kind, and how it cuts words where the file says so.
fn tokenizer(header: &Header) -> String {
    let text = |key: &str| header.get(key).and_then(Value::as_str).map(shortened);
    match (text("tokenizer.ggml.model"), text("tokenizer.ggml.pre")) {
        (Some(kind), Some(pre)) => format!("{kind}/{pre}"),
        (Some(kind), None) => kind,
        (None, _) => String::new(),
    }
}

/// What follows `blk.N.` in names of tensors that no block of the family needs, and other tensors that no graph knows.
fn other_tensors(header: &Header, hyperparameters: &Hyperparameters, needs: impl Fn(usize) -> Vec<Need>) -> Vec<String> {
    let known: Vec<BTreeSet<String>> = (0..hyperparameters.loaded_blocks())
        .map(|layer| needs(layer).into_iter().flat_map(|need| need.ways.into_iter().flatten()).collect())
        .collect();
    let mut others = BTreeSet::new();
    for tensor in &header.tensors {
        let block = tensor.name.strip_prefix("blk.").and_then(|rest| rest.split_once('.'));
        let other = match block {
            Some((layer, suffix)) => {
                let known = layer.parse().ok().and_then(|layer: usize| known.get(layer));
                known.is_some_and(|known| !known.contains(suffix)).then_some(suffix)
            }
            None => (!USUAL.contains(&tensor.name.as_str())).then_some(tensor.name.as_str()),
        };
        others.extend(other.map(shortened));
    }
    others.into_iter().take(MOST_NAMED).collect()
}
