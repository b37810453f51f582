//! What layers cost on one kind of GPU, and on the host, for one request.

use crate::compute::DeviceRole;
use crate::footprint::{FootprintError, LayerSizes, Span, compute_bytes, input_weights};
use crate::layout::Backend;
use crate::model_summary::ModelSummary;
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

    /// What layers `first` to `end - 1` take on one GPU, all included.
    pub fn bytes(&self, first: u32, end: u32) -> Bytes {
        // The sum of everything was checked when it was sized.
        Bytes(self.sizes.bytes(first, end).0 + self.compute(first, end).0 + self.overhead.0)
    }
}

/// The host holds the input layer and what no GPU does.
pub(crate) struct HostCosts {
    sizes: LayerSizes,
    /// The input layer's weights.
    pub input: Bytes,
    /// Scratch memory of a host that holds no layer, blocks alone, or blocks and the output layer.
    compute: [Bytes; 3],
}

impl HostCosts {
    pub fn new(summary: &ModelSummary, request: &Request, backend: Backend) -> Result<HostCosts, FootprintError> {
        let scratch = |layers, output| compute_bytes(summary, request, backend, DeviceRole { layers, output, input: true });
        Ok(HostCosts {
            sizes: LayerSizes::new(summary, request, backend, false)?,
            input: input_weights(summary, request, backend)?,
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

    pub fn compute(&self, end: u32) -> Bytes {
        match end {
            0 => self.compute[0],
            end if end < self.total_layers() => self.compute[1],
            _ => self.compute[2],
        }
    }

    /// What it needs without an overhead of its own when the last `gpu_layers` are on GPU; more of them never need more.
    pub fn needs(&self, gpu_layers: u32) -> Bytes {
        let end = self.total_layers().saturating_sub(gpu_layers);
        self.span(end).total().saturating_add(self.compute(end))
    }
}
