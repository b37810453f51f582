//! What is asked of a placement: the parameters that decide bytes, and the policy that decides devices.

use std::fmt;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::units::{Bytes, Tokens};

/// The parameters that a footprint follows from, resolved: nothing is left to a default.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Request {
    /// Context of each sequence, in tokens.
    pub num_ctx: Tokens,
    /// Layers on GPU: -1 as many as fit, 0 none, N exactly N, at least all layers means all.
    pub num_gpu: i64,
    pub kv_cache_type: KvCacheType,
    /// Sequences served at once, each with `num_ctx`.
    pub parallel: u32,
    /// Tokens in one step of prefill.
    pub num_batch: u32,
}

impl Default for Request {
    fn default() -> Request {
        Request { num_ctx: Tokens(4096), num_gpu: -1, kv_cache_type: KvCacheType::F16, parallel: 1, num_batch: 512 }
    }
}

/// Type of the elements of the K and V caches.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
pub enum KvCacheType {
    #[default]
    #[serde(rename = "f16")]
    F16,
    #[serde(rename = "q8_0")]
    Q8_0,
    #[serde(rename = "q4_0")]
    Q4_0,
}

impl KvCacheType {
    pub const ALL: [KvCacheType; 3] = [KvCacheType::F16, KvCacheType::Q8_0, KvCacheType::Q4_0];

    pub const fn as_str(self) -> &'static str {
        match self {
            KvCacheType::F16 => "f16",
            KvCacheType::Q8_0 => "q8_0",
            KvCacheType::Q4_0 => "q4_0",
        }
    }

    /// Elements in one block, and the bytes that the block takes (ggml's `block_q8_0`, `block_q4_0`).
    pub const fn block(self) -> (u64, Bytes) {
        match self {
            KvCacheType::F16 => (1, Bytes(2)),
            KvCacheType::Q8_0 => (32, Bytes(34)),
            KvCacheType::Q4_0 => (32, Bytes(18)),
        }
    }
}

impl fmt::Display for KvCacheType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Which devices a replica may live on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
pub enum PlacementPolicy {
    /// Wholly on GPU where it fits, else split, else on CPU.
    #[default]
    PreferGPU,
    /// Wholly on GPU, or not at all.
    RequireGPU,
    /// No layer on GPU.
    RequireCPU,
}

/// What to do where `num_ctx` does not fit wholly on GPU.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
pub enum ContextPolicy {
    /// Take it as asked.
    #[default]
    Exact,
    /// Take less, down to `minContext`.
    ShrinkToFit,
}

/// What a user asks for, before contexts are resolved against the devices there are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Asked {
    /// `None`: the largest that fits wholly on GPU, up to 32768 and the trained context; on CPU up to 8192.
    pub num_ctx: Option<Tokens>,
    /// As in [`Request::num_gpu`].
    pub num_gpu: i64,
    pub kv_cache_type: KvCacheType,
    pub parallel: u32,
    pub num_batch: u32,
    pub policy: PlacementPolicy,
    pub context_policy: ContextPolicy,
    /// The least that `ShrinkToFit` may go down to, which requires it.
    pub min_context: Option<Tokens>,
    /// Most GPUs that the replica may use; `None`: all of a node.
    pub max_devices: Option<u32>,
}

impl Default for Asked {
    fn default() -> Asked {
        Asked {
            num_ctx: None,
            num_gpu: -1,
            kv_cache_type: KvCacheType::default(),
            parallel: 1,
            num_batch: 512,
            policy: PlacementPolicy::default(),
            context_policy: ContextPolicy::default(),
            min_context: None,
            max_devices: None,
        }
    }
}

impl Asked {
    /// The same with the context that was resolved, so that a change to it is one change.
    pub(crate) fn resolved(&self, num_ctx: Tokens) -> Asked {
        Asked { num_ctx: Some(num_ctx), context_policy: ContextPolicy::Exact, min_context: None, ..self.clone() }
    }

    /// The parameters of a footprint, with the context that was resolved.
    pub fn with_num_ctx(&self, num_ctx: Tokens) -> Request {
        Request { num_ctx, num_gpu: self.num_gpu, kv_cache_type: self.kv_cache_type, parallel: self.parallel, num_batch: self.num_batch }
    }
}
