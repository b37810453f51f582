//! The GPU that is tried, and what its driver says of it.

use std::path::PathBuf;

use stowage_agent::devices::{Gpu, Nvml};
use stowage_placement::Bytes;

/// A GPU; emulated ones have no NVML.
pub struct Tried {
    pub uuid: String,
    pub name: String,
    nvml: Option<Nvml>,
}

/// The first GPU that is computed on; or why there is none.
pub fn find(emulated: bool, nvml_library: Option<PathBuf>) -> Result<Tried, String> {
    if emulated {
        let found = cfg!(feature = "emulated-cuda");
        let gpu = || Tried { uuid: "emulated-cuda-0".into(), name: "emulated on the CPU".into(), nvml: None };
        return found.then(gpu).ok_or_else(|| "this build has no emulator (its feature is `emulated-cuda`)".into());
    }
    let mut nvml = Nvml::new(nvml_library);
    let (gpus, message) = nvml.read();
    let usable = |gpu: &Gpu| gpu.backend == stowage_crds::model_node::DeviceBackend::Cuda;
    match gpus.iter().find(|gpu| usable(gpu)) {
        Some(Gpu { uuid, name, driver, compute_capability, total, .. }) => {
            let name = format!("{name}, {total}, compute capability {compute_capability}, driver {driver}");
            Ok(Tried { uuid: uuid.clone(), name, nvml: Some(nvml) })
        }
        None => Err(gpus.first().map_or(message, |gpu| format!("{}: {}", gpu.name, gpu.message))),
    }
}

impl Tried {
    pub fn is_emulated(&self) -> bool {
        self.nvml.is_none()
    }

    fn read(&mut self) -> Option<Gpu> {
        self.nvml.as_mut()?.read().0.into_iter().find(|gpu| gpu.uuid == self.uuid)
    }

    /// What is free of it, by NVML.
    pub fn free(&mut self) -> Option<Bytes> {
        self.read().map(|gpu| gpu.free)
    }

    /// What this process holds of it, by NVML; where process ids can't be told (in most containers), what is free less than was `before`.
    pub fn held(&mut self, pid: u32, before: Option<Bytes>) -> Option<(Bytes, &'static str)> {
        let gpu = self.read()?;
        let process = gpu.processes.iter().find(|process| gpu.own_process_ids && process.pid == pid);
        match process.and_then(|process| process.bytes) {
            Some(bytes) => Some((bytes, "its process's")),
            None => Some((before?.saturating_sub(gpu.free), "what the device has less free")),
        }
    }
}
