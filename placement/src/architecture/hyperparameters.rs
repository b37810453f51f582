//! The numbers that families follow from, by the names that GGUF gives them. A family's file says what it makes of them.
//!
//! Source of the keys: `gguf-py/gguf/constants.py` of llama.cpp (`class Keys`); of what is optional, and of the defaults,
//! `llama_model_base::load_hparams` in its `src/llama-model.cpp`.

use std::ops::RangeInclusive;

use crate::gguf::{Array, GgufError, Header, Value};
use crate::model_summary::SummaryError;
use crate::units::Tokens;

/// No model has more blocks; a header that claims so is damaged, and would only make its reader work.
pub(crate) const MAX_BLOCKS: u64 = 4096;

/// No model has a longer context: beyond it, a number of tokens is a mistake.
pub(crate) const MAX_CONTEXT: Tokens = Tokens(1 << 32);

/// No width, number of heads or of experts is larger. Three such numbers can be multiplied and added without overflow.
const MAX_SIZE: u64 = 1 << 20;

/// Numbers of a model, one an array where the file may have one for each layer. 0 where the file says nothing.
#[derive(Clone, Debug, Default)]
pub(crate) struct Hyperparameters {
    /// All blocks in the file.
    pub block_count: u32,
    /// The last blocks, which predict further tokens and which the engine does not run.
    pub prediction_blocks: u32,
    pub embedding: u64,
    pub heads: Vec<u64>,
    /// 0: the layer caches nothing.
    pub kv_heads: Vec<u64>,
    /// Elements of one head's key.
    pub key_length: u64,
    pub value_length: u64,
    /// The same in sliding layers.
    pub sliding_key_length: u64,
    pub sliding_value_length: u64,
    pub feed_forward: Vec<u64>,
    pub experts: Experts,
    /// Tokens that a sliding layer looks back; 0: the file says nothing of a window.
    pub window: u64,
    pub sliding: SlidingPattern,
    /// Last layers that read what earlier layers cached.
    pub shared_kv_layers: Option<u64>,
    /// Elements of the latent that MLA caches for keys and values of all heads.
    pub kv_lora_rank: u64,
    /// The matrix that expands the latent lies in the file in two parts, so that it can be absorbed into query and output.
    pub absorbed: bool,
    /// Elements of a key that are rotated.
    pub rope_dimensions: u64,
    pub recurrence: Recurrence,
    pub trained_context: Tokens,
}

/// Experts of a feed-forward network.
#[derive(Clone, Debug, Default)]
pub(crate) struct Experts {
    pub count: u64,
    /// Experts that one token goes to.
    pub used: u64,
    pub feed_forward: u64,
    pub shared: u64,
    pub shared_feed_forward: u64,
    /// First blocks that have an ordinary network instead.
    pub leading_dense_blocks: u64,
}

/// Which layers have a sliding window.
#[derive(Clone, Debug, Default)]
pub(crate) enum SlidingPattern {
    /// The file leaves it to the family.
    #[default]
    Unsaid,
    /// One layer of so many has the whole context.
    Period(u64),
    /// Each layer by itself.
    Layers(Vec<bool>),
}

/// Recurrent layers: Mamba, Mamba 2 and gated delta net, whose sizes have the same names.
#[derive(Clone, Debug, Default)]
pub(crate) struct Recurrence {
    /// Tokens that the convolution spans.
    pub convolution: u64,
    pub inner: u64,
    pub state: u64,
    pub groups: u64,
    /// Which layers are recurrent, where the file says so for each.
    pub layers: Option<Vec<bool>>,
    /// Every so many layers, one has full attention.
    pub full_attention_interval: u64,
}

impl Hyperparameters {
    pub fn read(header: &Header, architecture: &str) -> Result<Hyperparameters, SummaryError> {
        let keys = Keys { header, architecture };
        let block_count = keys.required("block_count", 1..=MAX_BLOCKS)? as u32;
        let embedding = keys.required("embedding_length", 1..=1 << 24)?;
        let heads = keys.per_layer("attention.head_count", block_count)?.unwrap_or_else(|| vec![0; block_count as usize]);
        let kv_heads = keys.per_layer("attention.head_count_kv", block_count)?.unwrap_or_else(|| heads.clone());
        let default_length = heads.iter().copied().max().filter(|heads| *heads > 0).map_or(0, |heads| embedding / heads);
        let key_length = keys.optional("attention.key_length")?.unwrap_or(default_length);
        let value_length = keys.optional("attention.value_length")?.unwrap_or(default_length);
        Ok(Hyperparameters {
            block_count,
            prediction_blocks: keys.in_range("nextn_predict_layers", 0..=u64::from(block_count))?.unwrap_or(0) as u32,
            embedding,
            heads,
            kv_heads,
            key_length,
            value_length,
            sliding_key_length: keys.optional("attention.key_length_swa")?.unwrap_or(key_length),
            sliding_value_length: keys.optional("attention.value_length_swa")?.unwrap_or(value_length),
            feed_forward: keys.per_layer("feed_forward_length", block_count)?.unwrap_or_else(|| vec![0; block_count as usize]),
            experts: Experts::read(&keys, block_count)?,
            window: keys.in_range("attention.sliding_window", 0..=MAX_CONTEXT.0)?.unwrap_or(0),
            sliding: SlidingPattern::read(&keys, block_count)?,
            shared_kv_layers: keys.in_range("attention.shared_kv_layers", 0..=u64::from(block_count))?,
            kv_lora_rank: keys.optional("attention.kv_lora_rank")?.unwrap_or(0),
            absorbed: header.tensors.iter().any(|tensor| tensor.name.ends_with(".attn_k_b.weight")),
            rope_dimensions: keys.optional("rope.dimension_count")?.unwrap_or(key_length),
            recurrence: Recurrence::read(&keys, block_count)?,
            trained_context: Tokens(keys.required("context_length", 1..=MAX_CONTEXT.0)?),
        })
    }

    /// Blocks that are loaded; those after them are empty.
    pub fn loaded_blocks(&self) -> usize {
        (self.block_count - self.prediction_blocks) as usize
    }
}

impl Experts {
    fn read(keys: &Keys<'_>, blocks: u32) -> Result<Experts, SummaryError> {
        let widest = |name| Ok::<_, SummaryError>(keys.per_layer(name, blocks)?.and_then(|widths| widths.into_iter().max()).unwrap_or(0));
        Ok(Experts {
            count: keys.optional("expert_count")?.unwrap_or(0),
            used: widest("expert_used_count")?,
            feed_forward: widest("expert_feed_forward_length")?,
            shared: keys.optional("expert_shared_count")?.unwrap_or(0),
            shared_feed_forward: keys.optional("expert_shared_feed_forward_length")?.unwrap_or(0),
            leading_dense_blocks: keys.optional("leading_dense_block_count")?.unwrap_or(0),
        })
    }
}

impl SlidingPattern {
    fn read(keys: &Keys<'_>, blocks: u32) -> Result<SlidingPattern, SummaryError> {
        const NAME: &str = "attention.sliding_window_pattern";
        if let Some(layers) = keys.flags(NAME, blocks)? {
            return Ok(SlidingPattern::Layers(layers));
        }
        Ok(keys.optional(NAME)?.map_or(SlidingPattern::Unsaid, SlidingPattern::Period))
    }
}

impl Recurrence {
    fn read(keys: &Keys<'_>, blocks: u32) -> Result<Recurrence, SummaryError> {
        Ok(Recurrence {
            convolution: keys.optional("ssm.conv_kernel")?.unwrap_or(0),
            inner: keys.optional("ssm.inner_size")?.unwrap_or(0),
            state: keys.optional("ssm.state_size")?.unwrap_or(0),
            groups: keys.optional("ssm.group_count")?.unwrap_or(0),
            layers: keys.flags("attention.recurrent_layers", blocks)?,
            full_attention_interval: keys.optional("full_attention_interval")?.unwrap_or(0),
        })
    }
}

/// The keys of one architecture: `block_count` is `llama.block_count`.
struct Keys<'a> {
    header: &'a Header,
    architecture: &'a str,
}

impl Keys<'_> {
    fn key(&self, name: &str) -> String {
        format!("{}.{name}", self.architecture)
    }

    fn required(&self, name: &str, range: RangeInclusive<u64>) -> Result<u64, SummaryError> {
        self.in_range(name, range)?.ok_or_else(|| GgufError::MissingKey { key: self.key(name) }.into())
    }

    fn optional(&self, name: &str) -> Result<Option<u64>, SummaryError> {
        self.in_range(name, 0..=MAX_SIZE)
    }

    fn in_range(&self, name: &str, range: RangeInclusive<u64>) -> Result<Option<u64>, SummaryError> {
        let found = self.header.u64(&self.key(name))?;
        found.map(|found| self.checked(name, found, &range)).transpose()
    }

    fn per_layer(&self, name: &str, layers: u32) -> Result<Option<Vec<u64>>, SummaryError> {
        let Some(numbers) = self.header.u64_per_layer(&self.key(name), layers)? else { return Ok(None) };
        numbers.iter().try_for_each(|number| self.checked(name, *number, &(0..=MAX_SIZE)).map(|_| ()))?;
        Ok(Some(numbers))
    }

    /// A yes or no for each layer, as booleans or as numbers of which 0 is no. `None` where the key is missing, or has one value for all layers.
    fn flags(&self, name: &str, layers: u32) -> Result<Option<Vec<bool>>, SummaryError> {
        let Some(array) = self.header.get(&self.key(name)).and_then(Value::as_array) else { return Ok(None) };
        let flags: Option<Vec<bool>> = match array {
            Array::Bool(flags) => Some(flags.clone()),
            numbers => numbers.to_u64s().map(|numbers| numbers.into_iter().map(|number| number != 0).collect()),
        };
        let wrong = || SummaryError::NotOneALayer { key: self.key(name), length: array.len(), layers };
        flags.filter(|flags| flags.len() == layers as usize).ok_or_else(wrong).map(Some)
    }

    fn checked(&self, name: &str, found: u64, range: &RangeInclusive<u64>) -> Result<u64, SummaryError> {
        if range.contains(&found) {
            return Ok(found);
        }
        let expected = format!("{} to {}", range.start(), range.end());
        Err(SummaryError::BadValue { key: self.key(name), found, expected })
    }
}
