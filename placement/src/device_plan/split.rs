//! Which part of a model is on GPU.

use std::ops::Range;

/// The last layers are on GPU, wholly or without their experts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Split {
    pub gpu_layers: u32,
    /// Of so many of these, the first ones, the experts are in host memory.
    pub without_experts: u32,
}

impl From<u32> for Split {
    /// Whole layers.
    fn from(gpu_layers: u32) -> Split {
        Split { gpu_layers, without_experts: 0 }
    }
}

impl Split {
    /// Layers that are on the host altogether, of so many.
    pub fn host_layers(self, total: u32) -> u32 {
        total.saturating_sub(self.gpu_layers)
    }

    /// The layers on GPU whose experts are in host memory, of so many.
    pub fn experts_on_host(self, total: u32) -> Range<u32> {
        let first = self.host_layers(total);
        first..(first + self.without_experts).min(total)
    }
}
