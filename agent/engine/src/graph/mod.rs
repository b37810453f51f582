//! What a model computes, in the operations that all families share. A family's file says only where it differs.
//!
//! Invariant: this is a description. It holds names and sizes, no tensor and no code; a backend prepares it into something that it can run, and
//! may fuse what it likes.

mod llama;

use stowage_placement::compute::ComputeShape;
use stowage_placement::gguf::{GgufError, Header};
use stowage_placement::{Reason, capability};

use crate::api::EngineError;

/// A model: embeddings, blocks, and the output layer.
#[derive(Clone, Debug)]
pub struct Graph {
    pub architecture: String,
    /// The token embeddings, `[vocabulary, embedding]`.
    pub embeddings: Weight,
    pub blocks: Vec<Block>,
    pub output: Output,
    pub rope: Rope,
    pub shape: ComputeShape,
}

/// One layer: what it caches of each token, and its operations in order. The hidden state comes in and goes out as [`Operand::Hidden`].
#[derive(Clone, Debug)]
pub struct Block {
    pub cache: CacheShape,
    pub operations: Vec<Operation>,
}

/// What one layer caches of one token: f16, `kv_heads x (key_length + value_length)`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CacheShape {
    pub kv_heads: usize,
    pub key_length: usize,
    pub value_length: usize,
}

/// The output layer: a norm, then a product over the vocabulary.
#[derive(Clone, Debug)]
pub struct Output {
    pub norm: Weight,
    pub epsilon: f32,
    pub weight: Weight,
    /// The product's weights are the embeddings.
    pub tied: bool,
}

/// A tensor of the file, and the sizes that it must have.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Weight {
    pub name: String,
    pub rows: usize,
    pub columns: usize,
}

/// Rows of f32, one row a token, that operations read and write.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Operand {
    Hidden,
    Normed,
    Query,
    Key,
    Value,
    Attended,
    Gate,
    Up,
}

/// One operation on all tokens of a batch.
#[derive(Clone, Debug)]
pub enum Operation {
    /// Root mean square norm of each row, times a weight.
    Norm { from: Operand, weight: Weight, epsilon: f32, to: Operand },
    /// Products of the same rows with several matrices.
    Linear { from: Operand, products: Vec<Product> },
    /// Rotates each head of `value` by the angles of the token's position, see [`Rope`].
    Rope { value: Operand, heads: usize },
    /// Stores Key and Value in the cache, then attends from Query to all that is cached of the token's sequence up to the token.
    Attention { heads: usize, scale: f32, to: Operand },
    /// `gate = silu(gate) x up`.
    GatedActivation { gate: Operand, up: Operand },
}

/// One product of a [`Operation::Linear`].
#[derive(Clone, Debug)]
pub struct Product {
    pub weight: Weight,
    pub to: Operand,
    /// Adds to what is there instead of replacing it.
    pub add: bool,
}

/// Rotary position embedding of neighbouring pairs: elements `2i` and `2i + 1` of a head turn by `position x frequency(i)`, with
/// `frequency(i) = base^(-2i / dimensions) / factor(i)`. Elements from `dimensions` on stay as they are.
///
/// Source: `ggml_rope_ext` of llama.cpp in mode 0, the one its llama family uses.
#[derive(Clone, Debug)]
pub struct Rope {
    pub dimensions: usize,
    pub base: f64,
    /// A tensor of `dimensions / 2` factors, where the file has one (Llama 3.1's long context).
    pub factors: Option<Weight>,
}

impl Rope {
    /// Frequencies of the pairs, `[dimensions / 2]`. `factors` is the tensor's content.
    pub fn frequencies(&self, factors: Option<&[f32]>) -> Vec<f32> {
        let frequency = |i: usize| self.base.powf(-2.0 * i as f64 / self.dimensions as f64);
        let factor = |i: usize| factors.and_then(|factors| factors.get(i)).copied().unwrap_or(1.0);
        (0..self.dimensions / 2).map(|i| (frequency(i) / f64::from(factor(i))) as f32).collect()
    }
}

impl Graph {
    /// The graph of a file's model.
    ///
    /// Errors: EngineCannotRun where the family or something that the file asks for isn't there; InvalidModelFile where the header contradicts itself.
    pub fn from_header(header: &Header) -> Result<Graph, EngineError> {
        let architecture = header.architecture().map_err(invalid)?;
        let graph = match architecture {
            "llama" => llama::graph(header)?,
            other => return Err(cannot_run(capability::architecture(other).err().unwrap_or_default())),
        };
        graph.check(header)?;
        Ok(graph)
    }

    /// Every weight of block `index`, in the order of its operations.
    pub fn block_weights(&self, index: usize) -> Vec<&Weight> {
        let mut weights = Vec::new();
        for operation in &self.blocks[index].operations {
            match operation {
                Operation::Norm { weight, .. } => weights.push(weight),
                Operation::Linear { products, .. } => weights.extend(products.iter().map(|product| &product.weight)),
                Operation::Rope { .. } | Operation::Attention { .. } | Operation::GatedActivation { .. } => {}
            }
        }
        weights
    }

    /// Every weight must be in the file with the right sizes, and everything in the file must be known: a bias that is overlooked makes answers
    /// wrong without anybody noticing.
    fn check(&self, header: &Header) -> Result<(), EngineError> {
        let blocks = (0..self.blocks.len()).flat_map(|index| self.block_weights(index));
        let others = [&self.embeddings, &self.output.norm, &self.output.weight];
        let known: Vec<&Weight> = blocks.chain(others).chain(self.rope.factors.as_ref()).collect();
        for weight in &known {
            check_size(header, weight)?;
        }
        let names: std::collections::HashSet<&str> = known.iter().map(|weight| weight.name.as_str()).collect();
        match header.tensors.iter().find(|tensor| !names.contains(tensor.name.as_str())) {
            Some(tensor) => Err(cannot_run(format!(
                "the engine does not know what to do with tensor `{}` of a {} model",
                tensor.name, self.architecture
            ))),
            None => Ok(()),
        }
    }
}

fn check_size(header: &Header, weight: &Weight) -> Result<(), EngineError> {
    let Some(tensor) = header.tensor(&weight.name) else {
        return Err(EngineError::new(Reason::InvalidModelFile, format!("the file has no tensor `{}`", weight.name)));
    };
    if (tensor.rows(), tensor.columns()) != (weight.rows as u64, weight.columns as u64) {
        return Err(EngineError::new(
            Reason::InvalidModelFile,
            format!(
                "tensor `{}` is {:?}, but by the metadata it has {} rows of {}",
                weight.name, tensor.dimensions, weight.rows, weight.columns
            ),
        ));
    }
    Ok(())
}

fn invalid(error: GgufError) -> EngineError {
    EngineError::new(Reason::InvalidModelFile, error.to_string())
}

fn cannot_run(message: String) -> EngineError {
    EngineError::new(Reason::EngineCannotRun, message)
}
