//! Settles `num_ctx`: what was asked, or the largest that fits.
//!
//! A longer context never needs fewer bytes, so the largest that fits is found by halving.

use crate::device_plan::{Planner, SizedPlanner};
use crate::fit_report::demand::Demand;
use crate::footprint::FootprintError;
use crate::request::{Asked, ContextPolicy};
use crate::units::Tokens;

/// Contexts are chosen in steps of what a cache is allocated in.
pub(super) const STEP: u64 = 256;
/// The most that is taken on GPU when `num_ctx` is left out.
const LARGEST_ON_GPU: Tokens = Tokens(32768);
/// The most that is taken when `num_ctx` is left out and layers are on CPU.
const LARGEST_ON_CPU: Tokens = Tokens(8192);

/// Where the layers must fit for a context to count.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Goal {
    /// These last layers on GPU, the others on the host.
    OnGpu(u32),
    /// Anywhere, with as many layers on GPU as fit.
    Anywhere,
}

/// Whether the devices hold it.
pub(super) fn fits(sized: &SizedPlanner<'_>, goal: Goal) -> bool {
    match goal {
        Goal::OnGpu(layers) => sized.gpus_hold(layers) && sized.host_fits(layers),
        // Where the host holds all layers, it holds fewer too.
        Goal::Anywhere => sized.host_fits(0) || sized.host_fits(sized.most_gpu_layers()),
    }
}

/// Finds contexts for one model on one node's devices.
pub(super) struct Contexts<'a> {
    pub planner: &'a Planner<'a>,
    pub asked: &'a Asked,
}

impl Contexts<'_> {
    /// The context to plan for. Where none fits it is what was asked or, for lack of that, the smallest: the plan then says what is missing.
    pub fn resolve(&self, demand: Demand, total_layers: u32) -> Result<Tokens, FootprintError> {
        let trained = self.planner.summary.trained_context;
        if self.asked.context_policy == ContextPolicy::ShrinkToFit {
            return self.shrink(demand, total_layers, trained);
        }
        match self.asked.num_ctx {
            Some(num_ctx) => Ok(num_ctx),
            None => self.largest_for(demand, total_layers, Tokens(1), None),
        }
    }

    /// From what was asked down to `minContext`, as far as the layers demanded fit. Where shrinking puts no whole model on GPU, the context is not
    /// shrunk for that.
    fn shrink(&self, demand: Demand, total_layers: u32, trained: Tokens) -> Result<Tokens, FootprintError> {
        let least = self.asked.min_context.unwrap_or(Tokens(1));
        match self.asked.num_ctx {
            // Beyond the trained context it is refused, which shrinking shall not hide.
            Some(num_ctx) if num_ctx > trained => Ok(num_ctx),
            Some(num_ctx) => self.largest_for(demand, total_layers, least, Some(num_ctx)),
            None => self.largest_for(demand, total_layers, least, None),
        }
    }

    fn largest_for(&self, demand: Demand, total_layers: u32, least: Tokens, asked: Option<Tokens>) -> Result<Tokens, FootprintError> {
        let trained = self.most_trained();
        let on_gpu = asked.unwrap_or(trained.min(LARGEST_ON_GPU)).max(least);
        let on_cpu = asked.unwrap_or(trained.min(LARGEST_ON_CPU)).max(least);
        let (goal, most) = match demand {
            Demand::All => (Goal::OnGpu(total_layers), on_gpu),
            Demand::Exactly(layers) => (Goal::OnGpu(layers), on_cpu),
            Demand::None => (Goal::OnGpu(0), on_cpu),
            Demand::AsManyAsFit => {
                if let Some(found) = self.largest(Goal::OnGpu(total_layers), least, on_gpu)? {
                    return Ok(found);
                }
                (Goal::Anywhere, on_cpu)
            }
        };
        Ok(self.largest(goal, least, most)?.unwrap_or(least.max(Tokens(STEP)).min(most)))
    }

    /// `most` itself where it fits, else the largest multiple of 256 below it that does and is at least `least` (which itself need not be one).
    pub fn largest(&self, goal: Goal, least: Tokens, most: Tokens) -> Result<Option<Tokens>, FootprintError> {
        if self.fits_at(most, goal)? {
            return Ok(Some(most));
        }
        // In steps of 256: `lowest - 1` counts as fitting, `highest` as not.
        let (mut lowest, mut highest) = (least.0.div_ceil(STEP).max(1), most.0.div_ceil(STEP));
        let mut found = None;
        while lowest < highest {
            let middle = lowest + (highest - lowest) / 2;
            let num_ctx = Tokens(middle * STEP);
            if self.fits_at(num_ctx, goal)? {
                found = Some(num_ctx);
                lowest = middle + 1;
            } else {
                highest = middle;
            }
        }
        match found {
            None if least < most && self.fits_at(least, goal)? => Ok(Some(least)),
            found => Ok(found),
        }
    }

    /// The largest multiple of 256, up to the trained context, at which it fits; 0 where none does. A model trained for fewer than 256 tokens has its
    /// trained context instead.
    pub fn largest_trained(&self, goal: Goal) -> Result<Tokens, FootprintError> {
        let most = self.most_trained();
        Ok(self.largest(goal, Tokens(most.0.min(STEP)), most)?.unwrap_or_default())
    }

    /// The largest multiple of 256 up to the trained context, or that itself where it is less than 256.
    fn most_trained(&self) -> Tokens {
        let trained = self.planner.summary.trained_context;
        if trained.0 < STEP { trained } else { Tokens(trained.0 / STEP * STEP) }
    }

    fn fits_at(&self, num_ctx: Tokens, goal: Goal) -> Result<bool, FootprintError> {
        Ok(fits(&self.planner.sized(&self.asked.with_num_ctx(num_ctx))?, goal))
    }
}
