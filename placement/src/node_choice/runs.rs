//! How many layers one GPU of a kind could hold, whichever they are.

use crate::device_plan::GpuCosts;
use crate::footprint::FootprintError;
use crate::layout::Backend;
use crate::model_summary::ModelSummary;
use crate::request::Request;
use crate::units::Bytes;

/// Offers are looked up in so many steps, instead of searching for each.
const STEPS: usize = 1024;

/// Runs of the layers wished, by length: what they take on one GPU, all included.
pub(super) struct Runs {
    costs: GpuCosts,
    /// The least that any run of blocks takes.
    blocks: Lengths,
    /// What the last layers take, the output layer among them.
    last: Lengths,
}

/// Bytes by the length of a run; they never fall.
struct Lengths {
    bytes: Vec<u64>,
    /// By offer, in steps of `1 << shift` bytes: the longest run that any offer of the step holds.
    longest: Vec<u32>,
    shift: u32,
}

impl Runs {
    /// Of the last `wished` layers, at least one.
    pub fn new(summary: &ModelSummary, request: &Request, backend: Backend, overhead: Bytes, wished: u32) -> Result<Runs, FootprintError> {
        let costs = GpuCosts::new(summary, request, backend, overhead)?;
        let (start, output) = (costs.sizes.count() - wished, costs.sizes.count() - 1);
        let least = |length: u32| (start..=output - length).map(|first| costs.bytes(first, first + length).0).min().unwrap_or_default();
        let blocks = Lengths::new((1..wished).map(least));
        let last = Lengths::new((1..=wished).map(|length| costs.bytes(output + 1 - length, output + 1).0));
        Ok(Runs { costs, blocks, last })
    }

    /// The most blocks that could be held by a GPU that offers this much, and how many layers more, or fewer, if its last one is the output layer.
    pub fn most(&self, offered: Bytes) -> (u32, i64) {
        let blocks = self.blocks.most(offered.0);
        (blocks, i64::from(self.last.most(offered.0)) - i64::from(blocks))
    }

    /// The fewest bytes that a run of so many blocks takes.
    pub fn least_of_blocks(&self, blocks: u32) -> u64 {
        self.blocks.bytes[blocks as usize]
    }

    /// What all the layers wished take on one GPU.
    pub fn whole(&self) -> Bytes {
        Bytes(self.last.bytes.last().copied().unwrap_or_default())
    }

    /// How many of the first layers must leave their experts to the host, at least one, for all else to fit into so many bytes. `None`: all are not enough.
    pub fn least_without_experts(&self, offered: Bytes) -> Option<u32> {
        let sizes = &self.costs.sizes;
        let missing = self.whole().saturating_sub(offered);
        if sizes.experts(0, sizes.count()) < missing {
            return None;
        }
        let layers = (0..sizes.count()).take_while(|layer| sizes.experts(0, *layer) < missing);
        let with_experts = layers.filter(|layer| sizes.experts(*layer, layer + 1) > Bytes::ZERO);
        Some(with_experts.count().max(1) as u32)
    }

    /// What the last `layers` take on one GPU.
    pub fn last(&self, layers: u32) -> u64 {
        self.last.bytes[layers as usize]
    }

    /// The most bytes that the last `layers` can take on so many GPUs.
    pub fn most_of(&self, layers: u32, gpus: usize) -> u64 {
        let GpuCosts { sizes, overhead, compute_blocks, compute_output: _, compute_both } = &self.costs;
        let each = |bytes: Bytes, gpus: usize| bytes.0.saturating_mul(gpus as u64);
        let compute = compute_both.0.saturating_add(each(*compute_blocks, gpus - 1));
        sizes.bytes(sizes.count() - layers, sizes.count()).0.saturating_add(each(*overhead, gpus)).saturating_add(compute)
    }
}

impl Lengths {
    /// From the bytes of a run of one layer, of two, and so on.
    fn new(bytes: impl Iterator<Item = u64>) -> Lengths {
        let bytes: Vec<u64> = std::iter::once(0).chain(bytes).collect();
        let whole = bytes.last().copied().unwrap_or_default();
        let shift = (u64::BITS - whole.leading_zeros()).saturating_sub(STEPS.ilog2());
        let longest = (0..=whole >> shift).map(|step| {
            let most = ((step + 1) << shift) - 1;
            bytes.partition_point(|bytes| *bytes <= most).saturating_sub(1) as u32
        });
        Lengths { longest: longest.collect(), bytes, shift }
    }

    /// The longest run that an offer of so many bytes holds.
    fn most(&self, offered: u64) -> u32 {
        let step = ((offered >> self.shift) as usize).min(self.longest.len() - 1);
        let mut longest = self.longest[step];
        while self.bytes[longest as usize] > offered {
            longest -= 1;
        }
        longest
    }
}
