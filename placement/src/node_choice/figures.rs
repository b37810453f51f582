//! By what nodes are told apart.

use std::cmp::Reverse;

use crate::device_plan::{DeviceAllocation, DeviceKind};
use crate::fit_report::Considered;
use crate::node_choice::Node;
use crate::units::{Bytes, Tokens};

/// What a node makes of the request; what is smaller is better.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Figures {
    tier: Tier,
    layers: Reverse<u32>,
    /// Layers on GPU whose experts are on the host.
    without_experts: u32,
    num_ctx: Reverse<Tokens>,
    gpus: usize,
    /// What the devices that take part have left.
    left: Bytes,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Tier {
    WhollyOnGpu,
    Split,
    Cpu,
}

/// The order of nodes: those that hold fewer replicas of the same model come first, then those that have the file, then the tightest fit; names tell equal
/// ones apart.
pub(super) type Rank<'a> = (Tier, Reverse<u32>, u32, Reverse<Tokens>, u32, bool, usize, Bytes, &'a str);

impl Figures {
    pub fn new(layers: u32, total_layers: u32, num_ctx: Tokens, gpus: usize, left: Bytes) -> Figures {
        let tier = match layers {
            0 => Tier::Cpu,
            layers if layers == total_layers => Tier::WhollyOnGpu,
            _ => Tier::Split,
        };
        Figures { tier, layers: Reverse(layers), without_experts: 0, num_ctx: Reverse(num_ctx), gpus, left }
    }

    /// Where at least so many layers leave their experts to the host.
    pub fn without_experts(self, layers: u32) -> Figures {
        let tier = if layers > 0 { self.tier.max(Tier::Split) } else { self.tier };
        Figures { tier, without_experts: layers, ..self }
    }

    pub fn of(considered: &Considered<'_>) -> Figures {
        let plan = considered.plan();
        let gpus = plan.devices.iter().filter(|device| device.kind == DeviceKind::Gpu);
        let left_over = |device: &DeviceAllocation| device.free_bytes.saturating_sub(device.total_bytes);
        let left = match plan.gpu_layers.0 {
            0 => plan.devices.iter().map(left_over).sum(),
            _ => gpus.clone().map(left_over).sum(),
        };
        let figures = Figures::new(plan.gpu_layers.0, plan.total_layers.0, considered.request.num_ctx, gpus.count(), left);
        figures.without_experts(plan.layers_without_experts())
    }

    /// Whether so many layers are wholly on GPU, all that are wished there.
    pub fn meet(self, wished: u32) -> bool {
        self.layers.0 >= wished && self.without_experts == 0
    }

    pub fn rank(self, node: &Node) -> Rank<'_> {
        let Figures { tier, layers, without_experts, num_ctx, gpus, left } = self;
        (tier, layers, without_experts, num_ctx, node.siblings, !node.has_model_file, gpus, left, &node.name)
    }
}
