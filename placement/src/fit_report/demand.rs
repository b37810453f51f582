//! What a request insists on, from `num_gpu` and the policy together.

use crate::fit_report::Refusal;
use crate::reason::Reason;
use crate::request::{Asked, ContextPolicy, PlacementPolicy};

/// Which layers are to be on GPU.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Demand {
    /// All where they fit, else as many as fit, else none.
    AsManyAsFit,
    /// All, or nothing is loaded.
    All,
    /// Exactly so many, at least one and not all, or nothing is loaded.
    Exactly(u32),
    /// None.
    None,
}

impl Demand {
    /// Layers that are wished on GPU.
    pub fn wished(self, total_layers: u32) -> u32 {
        match self {
            Demand::AsManyAsFit | Demand::All => total_layers,
            Demand::Exactly(layers) => layers,
            Demand::None => 0,
        }
    }

    /// What `asked` insists on, or why it contradicts itself.
    pub fn of(asked: &Asked, total_layers: u32) -> Result<Demand, Refusal> {
        check(asked)?;
        let all = i64::from(total_layers);
        match (asked.policy, asked.num_gpu) {
            (PlacementPolicy::PreferGPU, -1) => Ok(Demand::AsManyAsFit),
            (PlacementPolicy::RequireGPU, -1) => Ok(Demand::All),
            (PlacementPolicy::RequireCPU, -1 | 0) => Ok(Demand::None),
            (PlacementPolicy::PreferGPU, 0) => Ok(Demand::None),
            (PlacementPolicy::RequireCPU, layers) => Err(contradiction(format!(
                "num_gpu {layers} asks for layers on GPU, but the policy RequireCPU allows none: set num_gpu to 0 or -1"
            ))),
            (_, layers) if layers >= all => Ok(Demand::All),
            (PlacementPolicy::RequireGPU, layers) => Err(contradiction(format!(
                "num_gpu {layers} leaves layers on CPU, but the policy RequireGPU wants all {all} on GPU: leave num_gpu out, or use PreferGPU"
            ))),
            // Between 1 and all - 1, which fits.
            (PlacementPolicy::PreferGPU, layers) => Ok(Demand::Exactly(layers as u32)),
        }
    }
}

fn check(asked: &Asked) -> Result<(), Refusal> {
    let problem = if asked.num_gpu < -1 {
        Some(format!("num_gpu is {}; it must be -1 (as many layers as fit), 0 (none), or the number of layers", asked.num_gpu))
    } else if asked.parallel == 0 {
        Some("parallel is 0; at least 1 sequence must be served".into())
    } else if asked.num_batch == 0 {
        Some("num_batch is 0; it must be at least 1 token".into())
    } else if asked.num_ctx.is_some_and(|num_ctx| num_ctx.0 == 0) {
        Some("num_ctx is 0; it must be at least 1 token".into())
    } else {
        check_contexts(asked)
    };
    problem.map_or(Ok(()), |message| Err(contradiction(message)))
}

fn check_contexts(asked: &Asked) -> Option<String> {
    match (asked.context_policy, asked.min_context, asked.num_ctx) {
        (ContextPolicy::ShrinkToFit, None, _) => Some("the context policy ShrinkToFit needs minContext, the least to go down to".into()),
        (ContextPolicy::ShrinkToFit, Some(least), _) if least.0 == 0 => Some("minContext is 0; it must be at least 1 token".into()),
        (ContextPolicy::ShrinkToFit, Some(least), Some(num_ctx)) if least > num_ctx => {
            Some(format!("minContext {least} is above num_ctx {num_ctx}: lower it, or raise num_ctx"))
        }
        _ => None,
    }
}

fn contradiction(message: String) -> Refusal {
    Refusal::new(Reason::InvalidRequest, message)
}
