//! Layers on GPU that leave their experts in host memory.
//!
//! Of a mixture of experts most bytes are the experts', and of those a token uses a few. So a GPU that can't hold all layers may hold all but the
//! experts of the first ones, as with llama.cpp's `--n-cpu-moe`.

use crate::device_plan::planner::SizedPlanner;
use crate::device_plan::{DevicePlan, Split};

impl SizedPlanner<'_> {
    /// What is put on GPU where as much as fits is asked for: all layers, else all of them without the experts of the fewest first ones, if the host
    /// then holds those, else as many whole layers as fit.
    ///
    /// So more layers are on GPU than whole layers could be, and mostly more bytes too. Only where the experts of one layer more have to go than there
    /// would be layers left over they may be fewer, on one GPU by less than one layer's experts. To keep whole layers there then would put fewer layers
    /// on a GPU that has a little more free.
    pub fn fullest(&self) -> Split {
        let whole = self.most_gpu_layers();
        let without_experts = if whole < self.total_layers() { self.all_without_experts() } else { None };
        without_experts.unwrap_or(whole.into())
    }

    fn all_without_experts(&self) -> Option<Split> {
        if !self.planner.offloads {
            return None;
        }
        let all = self.total_layers();
        let counts: Vec<u32> = (1..all).collect();
        let too_few = counts.partition_point(|count| !self.gpus_hold_all_without_experts(*count));
        let split = Split { gpu_layers: all, without_experts: *counts.get(too_few)? };
        self.host_fits(split).then_some(split)
    }

    /// Whether the GPUs hold all layers where so many of the first ones leave their experts.
    fn gpus_hold_all_without_experts(&self, count: u32) -> bool {
        self.packing_without_experts(count, |packing| packing.most()) == self.total_layers()
    }

    /// Runs of layers on GPU whose experts are on the host; layers that have none are left out.
    pub(super) fn expert_layer_ranges(&self, split: Split) -> Vec<[u32; 2]> {
        let mut ranges: Vec<[u32; 2]> = Vec::new();
        for layer in split.experts_on_host(self.total_layers()).filter(|layer| self.host.has_experts(*layer)) {
            match ranges.last_mut() {
                Some([_, last]) if *last + 1 == layer => *last = layer,
                _ => ranges.push([layer, layer]),
            }
        }
        ranges
    }
}

impl DevicePlan {
    /// Layers on GPU whose experts are in host memory.
    pub fn layers_without_experts(&self) -> u32 {
        let ranges = self.devices.iter().flat_map(|device| &device.expert_layer_ranges);
        ranges.map(|[first, last]| last.saturating_sub(*first).saturating_add(1)).sum()
    }
}

#[cfg(test)]
mod tests;
