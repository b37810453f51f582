//! What this node has: GPUs as NVML reports them, cores and memory as Linux does.
//!
//! A [`Reading`] is what was seen at one moment, before anybody asks whose the bytes are; `node::account` does that.

pub mod host;
pub mod nvml;
mod offers;

use std::path::PathBuf;

use stowage_crds::model_node::DeviceBackend;
use stowage_placement::Bytes;

pub use host::{HostReader, HostReading, Memory};
pub use nvml::Nvml;
pub use offers::{device, offers};

/// Everything that was seen of the node's devices at one moment.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Reading {
    pub gpus: Vec<Gpu>,
    /// Why there is no GPU to use, where there is none; or that they are simulated.
    pub gpu_message: String,
    pub host: HostReading,
}

/// One GPU.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Gpu {
    pub uuid: String,
    pub name: String,
    pub backend: DeviceBackend,
    /// Why the engine can't use it, where `backend` is `None`.
    pub message: String,
    pub total: Bytes,
    pub free: Bytes,
    /// Those that NVML shows, with what each holds where it says so.
    pub processes: Vec<GpuProcess>,
    /// Whether the process ids above are of this process's own pid namespace, so that a worker can be found among them.
    pub own_process_ids: bool,
    pub compute_capability: String,
    pub driver: String,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct GpuProcess {
    pub pid: u32,
    /// As `/proc` has it, or NVML; empty where neither knows.
    pub name: String,
    pub bytes: Option<Bytes>,
}

/// Reads the node's devices, again and again.
pub struct Devices {
    nvml: Nvml,
    host: HostReader,
}

impl Devices {
    /// `nvml_library`: another library than the system's. `cpu_only`: GPUs are not even looked for.
    pub fn new(nvml_library: Option<PathBuf>, cpu_only: bool, memory: Memory) -> Devices {
        let nvml = if cpu_only { Nvml::disabled() } else { Nvml::new(nvml_library) };
        Devices { nvml, host: HostReader::new(memory) }
    }

    /// What there is at this moment. Takes milliseconds, more where a driver is slow: not for a thread that must not block.
    pub fn read(&mut self) -> Reading {
        let (gpus, gpu_message) = self.nvml.read();
        Reading { gpus, gpu_message, host: self.host.read() }
    }
}
