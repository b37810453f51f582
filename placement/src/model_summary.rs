//! What placement needs of a GGUF header, small enough for a Kubernetes object.
//!
//! A model of 60 layers has two or three kinds of them. The summary lists the kinds once, and then which layer is of which kind, run-length
//! coded. A plan made from it equals the plan made from the file, since planning takes nothing else.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::architecture;
use crate::compute::ComputeShape;
use crate::fit_report::ModelDescription;
use crate::gguf::{GgmlType, GgufError, Header};
use crate::reason::Reason;
use crate::units::{Bytes, LayerCount, Tokens, unsigned};

/// A model, as far as bytes are concerned. As JSON it takes at most 4 KiB for any model that is quantised by rule.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ModelSummary {
    /// As the file names it, such as `llama`.
    pub architecture: String,
    /// The model's own name.
    #[serde(default)]
    pub name: String,
    /// Weights of the model.
    #[schemars(schema_with = "unsigned")]
    pub parameter_count: u64,
    /// The most frequent type of weights, as file names have it: `Q4_K_M`, `F16`.
    pub quantization: String,
    /// Size of the file, all of it.
    pub size_bytes: Bytes,
    /// Tokens that the model was trained for.
    pub trained_context: Tokens,
    #[serde(default)]
    pub particulars: Particulars,
    pub shape: ModelShape,
    /// Every distinct size and type of tensor; the lists below refer to it by index.
    pub tensor_kinds: Vec<TensorKind>,
    /// Tensors of the input layer.
    pub input: Vec<TensorCount>,
    /// Tensors of the output layer.
    pub output: Vec<TensorCount>,
    /// The kind of the token embeddings, where the output layer multiplies with them: on a GPU it holds them again, on the host one copy serves.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tied_output: Option<u32>,
    /// Every distinct kind of layer; `layers` refers to it by index.
    pub layer_kinds: Vec<LayerKind>,
    /// The blocks in order.
    pub layers: Vec<LayerRun>,
}

/// What the model asks of an engine beside its family's usual graph. It decides no bytes; `placement::capability` says whether the engine has it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Particulars {
    /// Experts that tokens are routed to; 0: none.
    #[serde(default, skip_serializing_if = "is_zero")]
    #[schemars(schema_with = "unsigned")]
    pub experts: u64,
    /// `linear`, `yarn`, `longrope`; empty where positions are not scaled, or by factors in a tensor alone.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub rope_scaling: String,
    /// Layers differ in how many heads they have.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub heads_by_layer: bool,
    /// The tokenizer's kind and how it cuts words, `gpt2/llama-bpe`; empty where the header has none.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub tokenizer: String,
    /// Tensors that are not among those that a block of the family needs: biases, norms. The first few names.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub other_tensors: Vec<String>,
}

/// Sizes that scratch memory follows from, the largest of any layer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ModelShape {
    /// Elements of a token as it goes from layer to layer.
    #[schemars(schema_with = "unsigned")]
    pub embedding: u64,
    /// Heads of attention.
    #[schemars(schema_with = "unsigned")]
    pub heads: u64,
    /// Heads that have keys and values of their own.
    #[schemars(schema_with = "unsigned")]
    pub kv_heads: u64,
    /// Elements of one key.
    #[schemars(schema_with = "unsigned")]
    pub key_length: u64,
    /// Elements of one value.
    #[schemars(schema_with = "unsigned")]
    pub value_length: u64,
    /// Elements between the matrices of a feed-forward.
    #[schemars(schema_with = "unsigned")]
    pub feed_forward: u64,
    /// Tokens that there are.
    #[schemars(schema_with = "unsigned")]
    pub vocabulary: u64,
    /// Ways in which positions become angles.
    #[serde(default = "one")]
    #[schemars(schema_with = "unsigned")]
    pub ropes: u64,
    /// Experts that tokens are routed to; 0: none.
    #[serde(default, skip_serializing_if = "is_zero")]
    #[schemars(schema_with = "unsigned")]
    pub experts: u64,
    /// Experts that one token goes to.
    #[serde(default, skip_serializing_if = "is_zero")]
    #[schemars(schema_with = "unsigned")]
    pub experts_used: u64,
    /// Likewise of one expert's feed-forward.
    #[serde(default, skip_serializing_if = "is_zero")]
    #[schemars(schema_with = "unsigned")]
    pub expert_feed_forward: u64,
}

fn one() -> u64 {
    1
}

impl From<&ModelShape> for ComputeShape {
    fn from(shape: &ModelShape) -> ComputeShape {
        let ModelShape { embedding, heads, kv_heads: kv_heads_max, key_length, value_length, feed_forward, vocabulary, .. } = *shape;
        let ModelShape { ropes, experts, experts_used, expert_feed_forward, .. } = *shape;
        ComputeShape {
            embedding,
            heads,
            kv_heads_max,
            key_length,
            value_length,
            feed_forward,
            vocabulary,
            ropes,
            experts,
            experts_used,
            expert_feed_forward,
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
pub struct TensorKind {
    /// Its type, as ggml numbers it.
    #[serde(rename = "type")]
    pub ggml_type: GgmlType,
    /// Its rows, of all experts together.
    #[schemars(schema_with = "unsigned")]
    pub rows: u64,
    /// Its columns.
    #[schemars(schema_with = "unsigned")]
    pub columns: u64,
}

/// `[index of the kind, how many tensors]`.
pub type TensorCount = [u32; 2];

/// What one kind of layer holds and caches.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct LayerKind {
    /// None: the layer is in the file and is not loaded.
    pub tensors: Vec<TensorCount>,
    /// Those of them that hold all of its experts' weights, of which a token uses a few; none where it has no experts.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub experts: Vec<TensorCount>,
    /// 0: the layer caches no keys and values.
    #[serde(default, skip_serializing_if = "is_zero")]
    #[schemars(schema_with = "unsigned")]
    pub kv_heads: u64,
    /// Elements that one head caches of a token as its key. Of MLA it is the latent, for all heads, and there is no value.
    #[serde(default, skip_serializing_if = "is_zero")]
    #[schemars(schema_with = "unsigned")]
    pub key_length: u64,
    /// Likewise as its value.
    #[serde(default, skip_serializing_if = "is_zero")]
    #[schemars(schema_with = "unsigned")]
    pub value_length: u64,
    /// Tokens that a sliding layer looks back; 0: all of the context.
    #[serde(default, skip_serializing_if = "is_zero")]
    #[schemars(schema_with = "unsigned")]
    pub window: u64,
    /// Recurrent state of one sequence.
    #[serde(default, skip_serializing_if = "has_no_state")]
    pub state_bytes: Bytes,
}

fn is_zero(number: &u64) -> bool {
    *number == 0
}

fn has_no_state(bytes: &Bytes) -> bool {
    *bytes == Bytes::ZERO
}

/// `[index of the kind, how many layers in a row]`.
pub type LayerRun = [u32; 2];

/// Why a header gives no summary.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SummaryError {
    #[error("the architecture `{found}` is not known, and nothing is guessed; known are {}", known.join(", "))]
    UnsupportedArchitecture { found: String, known: &'static [&'static str] },
    #[error("the model file is damaged: {0}")]
    Header(#[from] GgufError),
    #[error("the model file is damaged: tensor `{tensor}` is missing, which every {architecture} model has")]
    MissingTensor { architecture: String, tensor: String },
    #[error("the model file is damaged: tensor `{tensor}` belongs to layer {layer}, but `{architecture}.block_count` is {blocks}")]
    LayerBeyondCount { architecture: String, tensor: String, layer: u64, blocks: u32 },
    #[error("the model file is damaged: metadata key `{key}` is {found}; expected {expected}")]
    BadValue { key: String, found: u64, expected: String },
    #[error("the model file is damaged: metadata key `{key}` has {length} values; expected a yes or no for each of {layers} layers")]
    NotOneALayer { key: String, length: u64, layers: u32 },
}

impl SummaryError {
    pub fn reason(&self) -> Reason {
        match self {
            SummaryError::UnsupportedArchitecture { .. } => Reason::UnsupportedArchitecture,
            SummaryError::Header(_)
            | SummaryError::MissingTensor { .. }
            | SummaryError::LayerBeyondCount { .. }
            | SummaryError::BadValue { .. }
            | SummaryError::NotOneALayer { .. } => Reason::InvalidModelFile,
        }
    }
}

impl ModelSummary {
    /// What placement needs of this header. `file_size` is the size of the whole file, for display; a header alone is enough.
    pub fn from_header(header: &Header, file_size: Bytes) -> Result<ModelSummary, SummaryError> {
        architecture::summarise(header, file_size)
    }

    /// Blocks, and one more for the output layer.
    pub fn total_layers(&self) -> LayerCount {
        LayerCount(self.block_count().saturating_add(1))
    }

    pub fn block_count(&self) -> u32 {
        self.layers.iter().fold(0, |sum, [_, count]| sum.saturating_add(*count))
    }

    /// Whether a layer has experts that tokens are routed to, in tensors of their own.
    pub fn has_experts(&self) -> bool {
        self.layer_kinds.iter().any(|kind| !kind.experts.is_empty())
    }

    /// Every type that a matrix has; the engine must be able to compute with each. (Vectors become f32 when they are loaded.)
    pub fn weight_types(&self) -> impl Iterator<Item = GgmlType> + '_ {
        let matrices = self.tensor_kinds.iter().filter(|kind| kind.rows > 1);
        let types: std::collections::BTreeSet<GgmlType> = matrices.map(|kind| kind.ggml_type).collect();
        types.into_iter()
    }

    pub fn describe(&self) -> ModelDescription {
        ModelDescription {
            architecture: self.architecture.clone(),
            name: self.name.clone(),
            parameter_count: self.parameter_count,
            quantization: self.quantization.clone(),
            total_layers: self.total_layers(),
            trained_context: self.trained_context,
            size_bytes: self.size_bytes,
        }
    }
}

#[cfg(test)]
mod tests;
