//! What layers cost on one kind of GPU, and on the host, for one request.

use crate::compute::DeviceRole;
use crate::device_plan::Split;
use crate::footprint::{FootprintError, LayerSizes, Span, compute_bytes, input_weights};
use crate::layout::Backend;
use crate::model_summary::ModelSummary;
use crate::process::process_bytes;
use crate::request::Request;
use crate::units::Bytes;

/// A GPU that gets a layer pays for its scratch memory and for its driver's context too.
pub(crate) struct GpuCosts {
    pub sizes: LayerSizes,
    pub overhead: Bytes,
    pub compute_blocks: Bytes,
    pub compute_output: Bytes,
    pub compute_both: Bytes,
}

impl GpuCosts {
    pub fn new(summary: &ModelSummary, request: &Request, backend: Backend, overhead: Bytes) -> Result<GpuCosts, FootprintError> {
        let role = |layers, output| DeviceRole { layers, output, input: false };
        let costs = GpuCosts {
            sizes: LayerSizes::new(summary, request, backend, true)?,
            overhead,
            compute_blocks: compute_bytes(summary, request, backend, role(true, false))?,
            compute_output: compute_bytes(summary, request, backend, role(false, true))?,
            compute_both: compute_bytes(summary, request, backend, role(true, true))?,
        };
        let everything = [costs.sizes.all().total(), overhead, costs.compute_both].into_iter().try_fold(Bytes::ZERO, Bytes::checked_add);
        everything.map(|_| costs).ok_or_else(|| FootprintError::overflow("whole model", request))
    }

    /// Scratch memory for layers `first` to `end - 1`.
    pub fn compute(&self, first: u32, end: u32) -> Bytes {
        let output = self.sizes.count() - 1;
        match (first < output, end > output) {
            (true, true) => self.compute_both,
            (true, false) => self.compute_blocks,
            (false, _) => self.compute_output,
        }
    }

    /// What of layers `first` to `end - 1` is not there where the experts of layers below `without_experts_below` are in host memory.
    pub fn experts_left(&self, first: u32, end: u32, without_experts_below: u32) -> Bytes {
        match without_experts_below.min(end) {
            below if below > first => self.sizes.experts(first, below),
            _ => Bytes::ZERO,
        }
    }

    /// What layers `first` to `end - 1` take on one GPU, all included.
    pub fn bytes(&self, first: u32, end: u32) -> Bytes {
        // The sum of everything was checked when it was sized.
        Bytes(self.sizes.bytes(first, end).0 + self.compute(first, end).0 + self.overhead.0)
    }
}

/// The host holds the input layer and what no GPU does, experts of layers that are on GPU among it.
pub(crate) struct HostCosts {
    sizes: LayerSizes,
    /// The input layer's weights.
    pub input: Bytes,
    /// What the worker's process takes, wherever the layers are.
    pub process: Bytes,
    /// Scratch memory of a host that holds no layer, blocks alone, or blocks and the output layer.
    compute: [Bytes; 3],
}

impl HostCosts {
    pub fn new(summary: &ModelSummary, request: &Request, backend: Backend) -> Result<HostCosts, FootprintError> {
        let scratch = |layers, output| compute_bytes(summary, request, backend, DeviceRole { layers, output, input: true });
        Ok(HostCosts {
            sizes: LayerSizes::new(summary, request, backend, false)?,
            input: input_weights(summary, request, backend)?,
            process: process_bytes(summary.shape.vocabulary),
            compute: [scratch(false, false)?, scratch(true, false)?, scratch(true, true)?],
        })
    }

    pub fn total_layers(&self) -> u32 {
        self.sizes.count()
    }

    /// What layers up to `end - 1` take with the input layer, scratch memory aside.
    pub fn span(&self, end: u32) -> Span {
        let mut span = self.sizes.span(0, end);
        span.weights = span.weights.saturating_add(self.input);
        span
    }

    pub fn compute(&self, split: Split) -> Bytes {
        match split.host_layers(self.total_layers()) {
            0 if split.without_experts == 0 => self.compute[0],
            end if end < self.total_layers() => self.compute[1],
            _ => self.compute[2],
        }
    }

    /// The input layer's weights and the worker's process, which the host has wherever the layers are.
    pub fn without_layers(&self) -> Bytes {
        self.input.saturating_add(self.process)
    }

    /// Experts of layers that are on GPU.
    pub fn experts(&self, split: Split) -> Bytes {
        let layers = split.experts_on_host(self.total_layers());
        self.sizes.experts(layers.start, layers.end)
    }

    /// Whether the layer has experts.
    pub fn has_experts(&self, layer: u32) -> bool {
        self.sizes.experts(layer, layer + 1) > Bytes::ZERO
    }

    /// What it needs, the worker's process included; with more whole layers on GPU it is never more.
    pub fn needs(&self, split: impl Into<Split>) -> Bytes {
        let split = split.into();
        let layers = self.span(split.host_layers(self.total_layers())).total();
        layers.saturating_add(self.experts(split)).saturating_add(self.compute(split)).saturating_add(self.process)
    }
}
