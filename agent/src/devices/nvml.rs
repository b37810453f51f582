//! GPUs through NVML. A node without NVML is a CPU node, not an error: what NVML said goes into status.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use nvml_wrapper::Device;
use nvml_wrapper::enums::device::UsedGpuMemory;
use nvml_wrapper::error::NvmlError;
use nvml_wrapper::struct_wrappers::device::ProcessInfo;
use stowage_crds::model_node::DeviceBackend;
use stowage_placement::Bytes;

use super::{Gpu, GpuProcess};

/// In the names of simulated devices, by which they are told from real ones.
const SIMULATED: &str = "Simulated";
/// Bytes of a process's path that NVML is asked for.
const MAX_PROCESS_NAME: usize = 1024;
/// The initial pid namespace's inode, the same on every Linux (`PROC_PID_INIT_INO`).
const INITIAL_PID_NAMESPACE: &str = "pid:[4026531836]";

/// NVML, loaded when it is first there: a driver may be installed while the agent runs.
pub struct Nvml {
    /// `None`: GPUs are not looked for.
    source: Option<Source>,
    loaded: Option<nvml_wrapper::Nvml>,
}

struct Source {
    library: Option<PathBuf>,
}

impl Nvml {
    /// NVML from `library`, or from the system where that is `None`.
    pub fn new(library: Option<PathBuf>) -> Nvml {
        Nvml { source: Some(Source { library }), loaded: None }
    }

    pub fn disabled() -> Nvml {
        Nvml { source: None, loaded: None }
    }

    /// The GPUs, and what is to be said of them all.
    pub fn read(&mut self) -> (Vec<Gpu>, String) {
        let Some(source) = &self.source else {
            return (Vec::new(), "GPUs are not used: the agent was started with --cpu-only".to_owned());
        };
        if self.loaded.is_none() {
            match source.load() {
                Ok(nvml) => self.loaded = Some(nvml),
                Err(error) => return (Vec::new(), source.explain(&error)),
            }
        }
        let Some(nvml) = &self.loaded else { return (Vec::new(), String::new()) };
        match read_gpus(nvml) {
            Ok(gpus) => {
                let message = summarise(&gpus);
                (gpus, message)
            }
            Err(error) => {
                let message = format!("NVML could not list the GPUs: {error}");
                // A driver that was replaced below us answers nothing until it is loaded anew.
                self.loaded = None;
                (Vec::new(), message)
            }
        }
    }
}

impl Source {
    fn load(&self) -> Result<nvml_wrapper::Nvml, NvmlError> {
        match &self.library {
            Some(path) => nvml_wrapper::Nvml::builder().lib_path(path.as_os_str()).init(),
            None => nvml_wrapper::Nvml::init().or_else(|error| match error {
                // Distributions without the development package have the versioned name alone.
                NvmlError::LibloadingError(_) => nvml_wrapper::Nvml::builder().lib_path("libnvidia-ml.so.1".as_ref()).init(),
                other => Err(other),
            }),
        }
    }

    fn explain(&self, error: &NvmlError) -> String {
        match &self.library {
            Some(path) => format!("NVML could not be loaded from {}: {error}", path.display()),
            None => format!("no GPU: NVML could not be loaded: {error}"),
        }
    }
}

fn read_gpus(nvml: &nvml_wrapper::Nvml) -> Result<Vec<Gpu>, NvmlError> {
    let driver = nvml.sys_driver_version().unwrap_or_default();
    (0..nvml.device_count()?).map(|index| read_gpu(nvml, &nvml.device_by_index(index)?, &driver)).collect()
}

fn read_gpu(nvml: &nvml_wrapper::Nvml, device: &Device<'_>, driver: &str) -> Result<Gpu, NvmlError> {
    let (total, free) = device.memory_info().map(|memory| (Bytes(memory.total), Bytes(memory.free)))?;
    let name = device.name()?;
    let (backend, message) = backend(&name);
    let own_process_ids = backend == DeviceBackend::Simulated || in_initial_pid_namespace();
    Ok(Gpu {
        uuid: device.uuid()?,
        own_process_ids,
        backend,
        message,
        total,
        free,
        processes: processes(nvml, device, own_process_ids),
        compute_capability: device.cuda_compute_capability().map_or_else(|_| String::new(), |c| format!("{}.{}", c.major, c.minor)),
        driver: driver.to_owned(),
        name,
    })
}

/// How this build's engine computes on a device of this name; and if not at all, why.
fn backend(name: &str) -> (DeviceBackend, String) {
    match (cfg!(feature = "simulated-gpu"), name.contains(SIMULATED)) {
        (true, true) => (DeviceBackend::Simulated, String::new()),
        (true, false) => (DeviceBackend::None, "this build of the agent is for simulated GPUs only, and leaves real ones alone".to_owned()),
        (false, true) => (DeviceBackend::None, "a simulated GPU, which this build of the agent does not use".to_owned()),
        (false, false) => (DeviceBackend::None, "this build of the agent has no CUDA backend".to_owned()),
    }
}

/// What a person should know of the GPUs as a whole.
fn summarise(gpus: &[Gpu]) -> String {
    if gpus.is_empty() {
        return "no GPU: NVML is there, and lists none".to_owned();
    }
    if gpus.iter().any(|gpu| gpu.backend == DeviceBackend::Simulated) {
        return "simulated GPUs: what is placed there is computed on the CPU".to_owned();
    }
    gpus.iter().find(|gpu| gpu.backend == DeviceBackend::None).map_or_else(String::new, |gpu| gpu.message.clone())
}

/// Compute and graphics processes, one entry a process: NVML lists one that does both in either list with the same figure.
fn processes(nvml: &nvml_wrapper::Nvml, device: &Device<'_>, own_process_ids: bool) -> Vec<GpuProcess> {
    let listed = [device.running_compute_processes(), device.running_graphics_processes()];
    let mut by_pid: BTreeMap<u32, Option<Bytes>> = BTreeMap::new();
    for ProcessInfo { pid, used_gpu_memory, .. } in listed.into_iter().flat_map(Result::unwrap_or_default) {
        let bytes = match used_gpu_memory {
            UsedGpuMemory::Used(bytes) => Some(Bytes(bytes)),
            UsedGpuMemory::Unavailable => None,
        };
        let known = by_pid.entry(pid).or_default();
        *known = (*known).max(bytes);
    }
    let name = |pid| {
        let here = own_process_ids.then(|| process_name(Path::new("/proc"), pid)).flatten();
        here.or_else(|| name_by_nvml(nvml, pid)).unwrap_or_default()
    };
    by_pid.into_iter().map(|(pid, bytes)| GpuProcess { pid, name: name(pid), bytes }).collect()
}

/// A process of our own pid namespace.
fn process_name(proc: &Path, pid: u32) -> Option<String> {
    let name = std::fs::read_to_string(proc.join(pid.to_string()).join("comm")).ok()?;
    Some(name.trim().to_owned())
}

/// Of its path, the last part.
fn name_by_nvml(nvml: &nvml_wrapper::Nvml, pid: u32) -> Option<String> {
    let path = nvml.sys_process_name(pid, MAX_PROCESS_NAME).ok()?;
    Path::new(&path).file_name().map(|name| name.to_string_lossy().into_owned())
}

/// Real NVML gives process ids as the host sees them; elsewhere they would be taken for some other process's.
fn in_initial_pid_namespace() -> bool {
    std::fs::read_link("/proc/self/ns/pid").is_ok_and(|link| link.as_os_str() == INITIAL_PID_NAMESPACE)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_without_nvml_is_a_cpu_node_and_says_what_nvml_said() {
        let (gpus, message) = Nvml::new(Some("/nonexistent/libnvidia-ml.so".into())).read();
        assert!(gpus.is_empty());
        assert!(message.starts_with("NVML could not be loaded from /nonexistent/libnvidia-ml.so: "), "{message}");
        assert!(message.contains("No such file"), "{message}");
    }

    #[test]
    fn a_build_without_cuda_says_so_of_a_real_gpu_and_never_takes_it_for_a_simulated_one() {
        let (backend, message) = backend("NVIDIA H100 80GB HBM3");
        assert_eq!(backend, DeviceBackend::None);
        assert!(message.starts_with("this build of the agent"), "{message}");
    }

    #[test]
    fn a_process_has_the_name_that_proc_gives_it() {
        assert!(process_name(Path::new("/proc"), std::process::id()).is_some_and(|name| !name.is_empty()));
        assert_eq!(process_name(Path::new("/nonexistent"), 1), None);
    }
}
