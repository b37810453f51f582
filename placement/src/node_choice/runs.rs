//! How many layers one GPU of a kind could hold, whichever they are.

use crate::device_plan::GpuCosts;
use crate::footprint::FootprintError;
use crate::layout::Backend;
use crate::model_summary::ModelSummary;
use crate::request::Request;
use crate::units::Bytes;

/// Offers are looked up in so many steps, instead of searching for each.
const STEPS: usize = 1024;

/// The fewest bytes that a run of so many of the last layers takes on one GPU, all included.
pub(super) struct Runs {
    costs: GpuCosts,
    /// By the length of the run; it never falls.
    least: Vec<u64>,
    /// By offer, in steps of `1 << shift` bytes: the longest run that any offer of the step holds.
    longest: Vec<u32>,
    shift: u32,
}

impl Runs {
    /// Of the last `wished` layers, at least one.
    pub fn new(summary: &ModelSummary, request: &Request, backend: Backend, overhead: Bytes, wished: u32) -> Result<Runs, FootprintError> {
        let costs = GpuCosts::new(summary, request, backend, overhead)?;
        let (start, end) = (costs.sizes.count() - wished, costs.sizes.count());
        let fewest = |length: u32| (start..=end - length).map(|first| costs.bytes(first, first + length).0).min().unwrap_or_default();
        let least: Vec<u64> = std::iter::once(0).chain((1..=wished).map(fewest)).collect();
        let whole = least.last().copied().unwrap_or_default();
        let shift = (u64::BITS - whole.leading_zeros()).saturating_sub(STEPS.ilog2());
        let longest = (0..=whole >> shift).map(|step| {
            let most = ((step + 1) << shift) - 1;
            least.partition_point(|bytes| *bytes <= most).saturating_sub(1) as u32
        });
        Ok(Runs { longest: longest.collect(), costs, least, shift })
    }

    /// The longest run that could be held by a GPU that offers this much.
    pub fn most(&self, offered: u64) -> u32 {
        let step = ((offered >> self.shift) as usize).min(self.longest.len() - 1);
        let mut longest = self.longest[step];
        while self.least[longest as usize] > offered {
            longest -= 1;
        }
        longest
    }

    /// The fewest bytes that a run of so many layers takes.
    pub fn least(&self, layers: u32) -> u64 {
        self.least[layers as usize]
    }

    /// What all the layers wished take on one GPU.
    pub fn whole(&self) -> Bytes {
        Bytes(self.least.last().copied().unwrap_or_default())
    }

    /// What the last `layers` take on one GPU.
    pub fn last(&self, layers: u32) -> u64 {
        let end = self.costs.sizes.count();
        self.costs.bytes(end - layers, end).0
    }

    /// The most bytes that the last `layers` can take on so many GPUs.
    pub fn most_of(&self, layers: u32, gpus: usize) -> u64 {
        let GpuCosts { sizes, overhead, compute_blocks, compute_output: _, compute_both } = &self.costs;
        let each = |bytes: Bytes, gpus: usize| bytes.0.saturating_mul(gpus as u64);
        let compute = compute_both.0.saturating_add(each(*compute_blocks, gpus - 1));
        sizes.bytes(sizes.count() - layers, sizes.count()).0.saturating_add(each(*overhead, gpus)).saturating_add(compute)
    }
}
