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
        Goal::Anywhere => sized.host_fits(0) || sized.host_fits(sized.fullest()),
    }
}

/// Which contexts may be taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Allowed {
    /// As asked, whether it fits or not.
    Only(Tokens),
    /// From the least to the most, the whole model being on GPU or not.
    Between { least: Tokens, on_gpu: Tokens, on_cpu: Tokens },
}

impl Allowed {
    pub fn of(asked: &Asked, trained: Tokens) -> Allowed {
        let shrinking = asked.context_policy == ContextPolicy::ShrinkToFit;
        let least = if shrinking { asked.min_context.unwrap_or(Tokens(1)) } else { Tokens(1) };
        match asked.num_ctx {
            // Beyond the trained context it is refused, which shrinking shall not hide.
            Some(num_ctx) if !shrinking || num_ctx > trained => Allowed::Only(num_ctx),
            Some(num_ctx) => Allowed::Between { least, on_gpu: num_ctx.max(least), on_cpu: num_ctx.max(least) },
            None => {
                let most = |limit: Tokens| most_trained(trained).min(limit).max(least);
                Allowed::Between { least, on_gpu: most(LARGEST_ON_GPU), on_cpu: most(LARGEST_ON_CPU) }
            }
        }
    }
}

/// The largest multiple of 256 up to the trained context, or that itself where it is less than 256.
fn most_trained(trained: Tokens) -> Tokens {
    if trained.0 < STEP { trained } else { Tokens(trained.0 / STEP * STEP) }
}

/// What is planned with where no context fits.
pub(crate) fn smallest(least: Tokens, most: Tokens) -> Tokens {
    least.max(Tokens(STEP)).min(most)
}

/// `most` itself where it fits, else the largest multiple of 256 below it that does and is at least `least` (which itself need not be one). What
/// is longer than one that does not fit must not fit either.
pub(crate) fn largest<E>(least: Tokens, most: Tokens, mut fits: impl FnMut(Tokens) -> Result<bool, E>) -> Result<Option<Tokens>, E> {
    if fits(most)? {
        return Ok(Some(most));
    }
    // In steps of 256: `lowest - 1` counts as fitting, `highest` as not.
    let (mut lowest, mut highest) = (least.0.div_ceil(STEP).max(1), most.0.div_ceil(STEP));
    let mut found = None;
    while lowest < highest {
        let middle = lowest + (highest - lowest) / 2;
        let num_ctx = Tokens(middle * STEP);
        if fits(num_ctx)? {
            found = Some(num_ctx);
            lowest = middle + 1;
        } else {
            highest = middle;
        }
    }
    match found {
        None if least < most && fits(least)? => Ok(Some(least)),
        found => Ok(found),
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
        let (least, on_gpu, on_cpu) = match Allowed::of(self.asked, self.planner.summary.trained_context) {
            Allowed::Only(num_ctx) => return Ok(num_ctx),
            Allowed::Between { least, on_gpu, on_cpu } => (least, on_gpu, on_cpu),
        };
        let (goal, most) = match demand {
            Demand::All => (Goal::OnGpu(total_layers), on_gpu),
            Demand::Exactly(layers) => (Goal::OnGpu(layers), on_cpu),
            Demand::None => (Goal::OnGpu(0), on_cpu),
            Demand::AsManyAsFit => {
                // Where shrinking puts no whole model on GPU, the context is not shrunk for that.
                if let Some(found) = self.largest(Goal::OnGpu(total_layers), least, on_gpu)? {
                    return Ok(found);
                }
                (Goal::Anywhere, on_cpu)
            }
        };
        Ok(self.largest(goal, least, most)?.unwrap_or(smallest(least, most)))
    }

    fn largest(&self, goal: Goal, least: Tokens, most: Tokens) -> Result<Option<Tokens>, FootprintError> {
        largest(least, most, |num_ctx| self.fits_at(num_ctx, goal))
    }

    /// The largest multiple of 256, up to the trained context, at which it fits; 0 where none does. A model trained for fewer than 256 tokens has its
    /// trained context instead.
    pub fn largest_trained(&self, goal: Goal) -> Result<Tokens, FootprintError> {
        let most = most_trained(self.planner.summary.trained_context);
        Ok(self.largest(goal, Tokens(most.0.min(STEP)), most)?.unwrap_or_default())
    }

    fn fits_at(&self, num_ctx: Tokens, goal: Goal) -> Result<bool, FootprintError> {
        Ok(fits(&self.planner.sized(&self.asked.with_num_ctx(num_ctx))?, goal))
    }
}
