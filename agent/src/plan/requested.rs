//! What flags ask for, on top of what the source asks for.

use clap::Args;
use stowage_placement::{Asked, KvCacheType, Tokens};

use super::cache_types::cache_type;

/// What is asked for; each flag takes the place of what a ModelDeployment says.
#[derive(Args, Clone, Debug, Default)]
pub struct RequestArgs {
    /// Tokens of context of each sequence. Omitted: the largest that stays on the GPU, up to 32768.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    pub num_ctx: Option<u64>,
    /// Layers on GPU: -1 as many as fit, 0 none, N exactly N, 999 all.
    #[arg(long, value_name = "N", allow_negative_numbers = true, value_parser = clap::value_parser!(i64).range(-1..))]
    pub num_gpu: Option<i64>,
    /// Tokens in one step of reading a prompt.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub num_batch: Option<u32>,
    /// Sequences served at once, each with its own context.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub parallel: Option<u32>,
    /// Type of the KV cache: f16, q8_0 or q4_0.
    #[arg(long, value_name = "T", value_parser = cache_type)]
    pub kv_cache_type: Option<KvCacheType>,
}

impl RequestArgs {
    /// What the source asks for, with the flags on top.
    pub fn over(&self, asked: Asked) -> Asked {
        Asked {
            num_ctx: self.num_ctx.map(Tokens).or(asked.num_ctx),
            num_gpu: self.num_gpu.unwrap_or(asked.num_gpu),
            num_batch: self.num_batch.unwrap_or(asked.num_batch),
            parallel: self.parallel.unwrap_or(asked.parallel),
            kv_cache_type: self.kv_cache_type.unwrap_or(asked.kv_cache_type),
            ..asked
        }
    }
}
