//! The numbers that most families have in common, by the names that GGUF gives them.

use crate::gguf::{GgufError, Header};
use crate::model_summary::SummaryError;
use crate::units::Tokens;

/// No model has more blocks; a header that claims so is damaged, and would only make its reader work.
pub(crate) const MAX_BLOCKS: u64 = 4096;

/// Numbers of a model, one an array where the file may have one for each layer.
#[derive(Clone, Debug)]
pub(crate) struct Hyperparameters {
    pub block_count: u32,
    pub embedding: u64,
    pub heads: Vec<u64>,
    /// 0: the layer caches nothing.
    pub kv_heads: Vec<u64>,
    /// Elements of one head's key.
    pub key_length: u64,
    pub value_length: u64,
    pub feed_forward: Vec<u64>,
    pub experts: u64,
    pub trained_context: Tokens,
}

impl Hyperparameters {
    pub fn read(header: &Header, architecture: &str) -> Result<Hyperparameters, SummaryError> {
        let key = |name: &str| format!("{architecture}.{name}");
        let block_count = in_range(header, &key("block_count"), 1..=MAX_BLOCKS)? as u32;
        let embedding = in_range(header, &key("embedding_length"), 1..=1 << 24)?;
        let heads = per_layer(header, &key("attention.head_count"), block_count)?;
        let kv_heads = header.u64_per_layer(&key("attention.head_count_kv"), block_count)?.unwrap_or_else(|| heads.clone());
        let default_length = heads.iter().copied().max().filter(|heads| *heads > 0).map(|heads| embedding / heads);
        let length = |name: &str| -> Result<u64, SummaryError> {
            let found = header.u64(&key(name))?.or(default_length);
            found.ok_or_else(|| GgufError::MissingKey { key: key(name) }.into())
        };
        Ok(Hyperparameters {
            block_count,
            embedding,
            key_length: length("attention.key_length")?,
            value_length: length("attention.value_length")?,
            heads,
            kv_heads,
            feed_forward: per_layer(header, &key("feed_forward_length"), block_count)?,
            experts: header.u64(&key("expert_count"))?.unwrap_or(0),
            trained_context: Tokens(in_range(header, &key("context_length"), 1..=1 << 40)?),
        })
    }
}

fn per_layer(header: &Header, key: &str, layers: u32) -> Result<Vec<u64>, SummaryError> {
    header.u64_per_layer(key, layers)?.ok_or_else(|| GgufError::MissingKey { key: key.into() }.into())
}

fn in_range(header: &Header, key: &str, range: std::ops::RangeInclusive<u64>) -> Result<u64, SummaryError> {
    let found = header.required(key, Header::u64)?;
    if !range.contains(&found) {
        let expected = format!("{} to {}", range.start(), range.end());
        return Err(SummaryError::BadValue { key: key.into(), found, expected });
    }
    Ok(found)
}
