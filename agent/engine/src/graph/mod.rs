//! What a model computes, in the operations that all families share. A family's file says only where it differs.
//!
//! Invariant: this is a description. It holds names and sizes, no tensor and no code; a backend prepares it into something that it can run, and
//! may fuse what it likes.

mod bert;
mod decoder;
mod experts;
mod gemma;
mod glm4;
mod gpt_oss;
mod keys;
mod llama;
mod phi3;
mod qwen;
mod rope;

pub use experts::{ExpertMatrix, Experts, Gating, Groups};
pub use rope::{Pairing, Rope, Scaling};

use std::collections::HashSet;

use stowage_placement::compute::ComputeShape;
use stowage_placement::gguf::{GgufError, Header};
use stowage_placement::{Bytes, ModelSummary, Reason, Tokens, capability};

use self::keys::Keys;
use crate::api::EngineError;

/// A model: embeddings, blocks, and the output layer.
#[derive(Clone, Debug)]
pub struct Graph {
    pub architecture: String,
    pub input: Input,
    pub blocks: Vec<Block>,
    /// `None`: the last block's hidden states are the answer.
    pub output: Option<Output>,
    /// How hidden states become one vector for a text.
    pub pooling: Pooling,
    /// The ways in which layers turn positions into angles; layers name theirs by index.
    pub ropes: Vec<Rope>,
    pub shape: ComputeShape,
}

/// Looks up a token's embedding.
#[derive(Clone, Debug)]
pub struct Input {
    /// `[vocabulary, embedding]`
    pub embeddings: Weight,
    /// What embeddings are multiplied by.
    pub scale: f32,
    /// Vectors that lie with the input layer and are read when a backend is prepared: factors of rotations.
    pub vectors: Vec<Weight>,
    /// Tables of which a row is added: the first of the token's types, and that of its position.
    pub types: Option<Weight>,
    pub positions: Option<Weight>,
    pub norm: Option<Norm>,
}

impl Input {
    pub fn weights(&self) -> Vec<&Weight> {
        let mut weights = vec![&self.embeddings];
        weights.extend(&self.vectors);
        weights.extend(self.types.iter().chain(&self.positions));
        weights.extend(self.norm.iter().flat_map(Norm::weights));
        weights
    }
}

/// How the hidden states of a text's tokens become one vector.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pooling {
    Mean,
    /// The first token's, which is there for that.
    First,
}

/// One layer: what it caches of each token, and its operations in order. The hidden state comes in and goes out as [`Operand::Hidden`].
#[derive(Clone, Debug)]
pub struct Block {
    pub cache: CacheShape,
    pub operations: Vec<Operation>,
}

/// What one layer caches of one token: `kv_heads x (key_length + value_length)` elements.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CacheShape {
    pub kv_heads: usize,
    pub key_length: usize,
    pub value_length: usize,
    /// Tokens that the layer looks back, itself among them; `None`: all.
    pub window: Option<usize>,
    /// Kept for one batch, which is a whole text, and only while the layer is computed.
    pub for_a_batch: bool,
}

/// The output layer: a norm, then a product over the vocabulary, scaled and capped.
#[derive(Clone, Debug)]
pub struct Output {
    pub norm: Norm,
    pub weight: Weight,
    /// The product's weights are the embeddings.
    pub tied: bool,
    /// What logits are multiplied by.
    pub scale: f32,
    /// `softcap x tanh(logit / softcap)`, after scaling.
    pub softcap: Option<f32>,
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
    /// As wide as the hidden state: what a norm gives, and what a block adds to it after a further norm.
    Normed,
    Query,
    Key,
    Value,
    Attended,
    Gate,
    Up,
    /// One number a token: how much of the shared expert it takes.
    Share,
}

/// Root mean square norm, `x / sqrt(mean(x^2) + epsilon) x weight`; with a bias, layer norm: the same of `x - mean(x)`, plus the bias.
#[derive(Clone, Debug)]
pub struct Norm {
    pub weight: Weight,
    pub bias: Option<Weight>,
    pub epsilon: f32,
}

impl Norm {
    pub fn weights(&self) -> impl Iterator<Item = &Weight> {
        std::iter::once(&self.weight).chain(&self.bias)
    }
}

/// One operation on all tokens of a batch.
#[derive(Clone, Debug)]
pub enum Operation {
    /// Norms each of `parts` equal parts of a row by itself: 1 for a whole row, the number of heads for a norm of each head.
    Norm { from: Operand, norm: Norm, parts: usize, to: Operand },
    /// Products of the same rows with several matrices.
    Linear { from: Operand, products: Vec<Product> },
    /// Rotates each head of `value` by the angles of the token's position, see [`Rope`].
    Rope { value: Operand, heads: usize, rope: usize },
    /// Stores Key and Value in the cache, then attends from Query to what is cached of the token's sequence up to the token, as far as the layer looks
    /// back.
    Attention(Attention),
    /// `value = gelu(value)`, exactly: `x / 2 x (1 + erf(x / sqrt(2)))`.
    Gelu { value: Operand },
    /// `gate = activation(gate) x up`.
    GatedActivation { activation: Activation, gate: Operand, up: Operand },
    /// `value = value x sigmoid(by)`.
    Share { value: Operand, by: Operand },
    /// Adds what a token's experts make of Normed to Hidden.
    Experts(Box<Experts>),
    /// `to = to + from x scale`.
    Add { from: Operand, scale: f32, to: Operand },
}

#[derive(Clone, Debug)]
pub struct Attention {
    pub heads: usize,
    /// What scores are multiplied by.
    pub scale: f32,
    /// `softcap x tanh(score / softcap)`, after scaling.
    pub softcap: Option<f32>,
    /// Whether a token sees those before it and itself, or all of the batch.
    pub causal: bool,
    /// A score for each head that takes its share of the softmax and gives no value.
    pub sinks: Option<Weight>,
    pub to: Operand,
}

/// What a gate is put through.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Activation {
    /// `x / (1 + e^-x)`
    Silu,
    /// `x / 2 x (1 + tanh(sqrt(2 / pi) x (x + 0.044715 x^3)))`
    GeluTanh,
    /// gpt-oss: with gate at most `limit` and up within `-limit` to `limit`, `gate x sigmoid(alpha x gate) x (up + 1)`.
    ClampedSwiGlu { alpha: f32, limit: f32 },
}

/// One product of a [`Operation::Linear`].
#[derive(Clone, Debug)]
pub struct Product {
    pub weight: Weight,
    /// The rows of the matrix that count: fused matrices are told apart by them.
    pub rows: std::ops::Range<usize>,
    /// Added to the product; of a fused matrix the same rows.
    pub bias: Option<Weight>,
    pub to: Operand,
    /// Adds to what is there instead of replacing it.
    pub add: bool,
}

impl Product {
    /// All rows of a matrix.
    fn whole(weight: Weight, bias: Option<Weight>, to: Operand) -> Product {
        Product { rows: 0..weight.rows, weight, bias, to, add: false }
    }
}

impl Operation {
    /// Every weight that it reads, in order; a fused matrix as often as it is used.
    pub fn weights(&self) -> Vec<&Weight> {
        match self {
            Operation::Norm { norm, .. } => norm.weights().collect(),
            Operation::Linear { products, .. } => {
                products.iter().flat_map(|product| [Some(&product.weight), product.bias.as_ref()]).flatten().collect()
            }
            Operation::Attention(attention) => attention.sinks.iter().collect(),
            Operation::Experts(experts) => experts.weights(),
            Operation::Rope { .. }
            | Operation::Gelu { .. }
            | Operation::GatedActivation { .. }
            | Operation::Share { .. }
            | Operation::Add { .. } => Vec::new(),
        }
    }
}

impl Graph {
    /// The graph of a file's model for contexts of `num_ctx` tokens, by which some models choose how they scale positions.
    ///
    /// Errors: EngineCannotRun where the family or something that the file asks for isn't there; InvalidModelFile where the header contradicts itself.
    pub fn from_header(header: &Header, num_ctx: Tokens) -> Result<Graph, EngineError> {
        let architecture = header.architecture().map_err(invalid)?;
        capability::architecture(architecture).map_err(cannot_run)?;
        let summary =
            ModelSummary::from_header(header, Bytes::ZERO).map_err(|error| EngineError::new(error.reason(), error.to_string()))?;
        let keys = Keys::new(header, architecture);
        let graph = match architecture {
            "bert" | "nomic-bert" => bert::graph(&keys, &summary),
            "llama" | "granite" | "granitemoe" | "smollm3" => llama::graph(&keys, &summary),
            "qwen2" | "qwen2moe" | "qwen3" | "qwen3moe" => qwen::graph(&keys, &summary),
            "gemma2" | "gemma3" => gemma::graph(&keys, &summary),
            "glm4" | "glm4moe" => glm4::graph(&keys, &summary),
            "phi3" => phi3::graph(&keys, &summary, num_ctx),
            "gpt-oss" => gpt_oss::graph(&keys, &summary),
            other => Err(cannot_run(format!("the engine has no graph for the architecture {other}"))),
        }?;
        graph.check(header)?;
        Ok(graph)
    }

    /// Every weight of block `index` once, in the order of its operations.
    pub fn block_weights(&self, index: usize) -> Vec<&Weight> {
        let mut seen = HashSet::new();
        let weights = self.blocks[index].operations.iter().flat_map(Operation::weights);
        weights.filter(|weight| seen.insert(weight.name.as_str())).collect()
    }

    /// The block that a tensor belongs to by its name. One without operations is not run, whatever its tensors are.
    fn block_of(&self, tensor: &str) -> Option<&Block> {
        let (index, _) = tensor.strip_prefix("blk.")?.split_once('.')?;
        self.blocks.get(index.parse::<usize>().ok()?)
    }

    /// Every weight must be in the file with the right sizes, and everything in the file must be known: a bias that is overlooked makes answers
    /// wrong without anybody noticing.
    fn check(&self, header: &Header) -> Result<(), EngineError> {
        let blocks = (0..self.blocks.len()).flat_map(|index| self.block_weights(index));
        let output = self.output.iter().flat_map(|output| output.norm.weights().chain([&output.weight]));
        let known: Vec<&Weight> = blocks.chain(self.input.weights()).chain(output).collect();
        for weight in &known {
            check_size(header, weight)?;
        }
        let names: HashSet<&str> = known.iter().map(|weight| weight.name.as_str()).collect();
        let unknown = |name: &str| !names.contains(name) && self.block_of(name).is_none_or(|block| !block.operations.is_empty());
        match header.tensors.iter().find(|tensor| unknown(&tensor.name)) {
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

#[cfg(test)]
mod tests;
