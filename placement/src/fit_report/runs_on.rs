//! Which of a node's devices the engine can use for a model.

use crate::capability;
use crate::device_plan::{Device, NodeDevices};
use crate::layout::Backend;
use crate::model_summary::ModelSummary;
use crate::request::Asked;

/// By backend, whether the engine runs the model with the cache that is asked for. Found once, since it goes through all that the model asks for.
#[derive(Clone, Copy, Debug)]
pub(crate) struct RunsOn([bool; 4]);

impl RunsOn {
    pub fn of(summary: &ModelSummary, asked: &Asked) -> RunsOn {
        // In the order of their declaration.
        let backends = [Backend::Reference, Backend::Cpu, Backend::SimulatedGpu, Backend::Cuda];
        RunsOn(backends.map(|backend| lacks(summary, asked, backend).is_none()))
    }

    pub fn backend(self, backend: Backend) -> bool {
        self.0[backend as usize]
    }

    /// Whether a GPU of this node can be used. Where its host can't run the model, nothing can, and the bytes are still told, for all GPUs.
    pub fn usable(self, devices: &NodeDevices) -> impl Fn(&Device) -> bool + use<> {
        let nothing_runs = !self.backend(devices.host.backend);
        move |gpu| nothing_runs || self.backend(gpu.backend)
    }
}

/// What the engine lacks to run this model on this backend.
pub(super) fn lacks(summary: &ModelSummary, asked: &Asked, backend: Backend) -> Option<String> {
    capability::runs(summary, asked.kv_cache_type, backend).err()
}
