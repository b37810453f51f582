//! One GPU as NVML describes it: whole, or the MIG instances that it is divided into.

use std::collections::BTreeMap;
use std::path::Path;

use nvml_wrapper::enums::device::UsedGpuMemory;
use nvml_wrapper::error::NvmlError;
use nvml_wrapper::struct_wrappers::device::ProcessInfo;
use nvml_wrapper::{Device, Nvml};
use stowage_crds::model_node::DeviceBackend;
use stowage_placement::Bytes;

use super::cuda::Cuda;
use crate::devices::{Gpu, GpuProcess};

/// In the names of simulated devices, by which they are told from real ones.
const SIMULATED: &str = "Simulated";
/// Bytes of a process's path that NVML is asked for.
const MAX_PROCESS_NAME: usize = 1024;
/// The initial pid namespace's inode, the same on every Linux (`PROC_PID_INIT_INO`).
const INITIAL_PID_NAMESPACE: &str = "pid:[4026531836]";
/// `NVML_DEVICE_MIG_ENABLE`
const MIG_ENABLED: u32 = 1;

/// Whether it is in MIG mode.
pub fn is_divided(device: &Device<'_>) -> bool {
    device.mig_mode().is_ok_and(|mode| mode.current == MIG_ENABLED)
}

/// The GPU, or its instances where it is divided.
pub fn read(nvml: &Nvml, device: &Device<'_>, driver: &str, cuda: &Cuda) -> Result<Vec<Gpu>, NvmlError> {
    let capability = device.cuda_compute_capability().ok().map(|found| (found.major as u32, found.minor as u32));
    if !is_divided(device) {
        return Ok(vec![whole(nvml, device, driver, capability, cuda)?]);
    }
    let instances = (0..device.mig_device_count()?).map(|index| match device.mig_device_by_index(index) {
        Ok(instance) => whole(nvml, &instance, driver, capability, cuda).map(Some),
        // No instance was made with this number.
        Err(NvmlError::NotFound) => Ok(None),
        Err(error) => Err(error),
    });
    let instances: Vec<Gpu> = instances.filter_map(Result::transpose).collect::<Result<_, _>>()?;
    if instances.is_empty() {
        let message = "it is in MIG mode, and no instance was made of it".to_owned();
        return Ok(vec![Gpu { backend: DeviceBackend::None, message, ..whole(nvml, device, driver, capability, cuda)? }]);
    }
    Ok(instances)
}

fn whole(nvml: &Nvml, device: &Device<'_>, driver: &str, capability: Option<(u32, u32)>, cuda: &Cuda) -> Result<Gpu, NvmlError> {
    let name = device.name()?;
    let uuid = device.uuid()?;
    let (backend, message) = backend(cuda, &uuid, capability, &name);
    let own_process_ids = backend == DeviceBackend::Simulated || in_initial_pid_namespace();
    let gpu = Gpu {
        uuid,
        own_process_ids,
        backend,
        message,
        processes: processes(nvml, device, own_process_ids),
        compute_capability: capability.map_or_else(String::new, |(major, minor)| format!("{major}.{minor}")),
        driver: driver.to_owned(),
        name,
        ..Gpu::default()
    };
    match device.memory_info() {
        Ok(memory) => Ok(Gpu { total: Bytes(memory.total), free: Bytes(memory.free), ..gpu }),
        // So NVML answers of a GPU that is one with the processor.
        Err(NvmlError::NotSupported) => {
            let message = "it has no memory of its own but shares the host's, which is counted as the host's, once".to_owned();
            Ok(Gpu { backend: DeviceBackend::None, message, ..gpu })
        }
        Err(error) => Err(error),
    }
}

/// How this build's engine computes on a device; and if not at all, why.
fn backend(cuda: &Cuda, uuid: &str, capability: Option<(u32, u32)>, name: &str) -> (DeviceBackend, String) {
    match (cfg!(feature = "simulated-gpu"), name.contains(SIMULATED)) {
        (true, true) => (DeviceBackend::Simulated, String::new()),
        (true, false) => (DeviceBackend::None, "this build of the agent is for simulated GPUs only, and leaves real ones alone".to_owned()),
        (false, true) => (DeviceBackend::None, "a simulated GPU, which this build of the agent does not use".to_owned()),
        (false, false) => match cuda.computes_on(uuid, capability) {
            Ok(()) => (DeviceBackend::Cuda, String::new()),
            Err(why) => (DeviceBackend::None, why),
        },
    }
}

/// Compute and graphics processes, one entry a process: NVML lists one that does both in either list with the same figure.
fn processes(nvml: &Nvml, device: &Device<'_>, own_process_ids: bool) -> Vec<GpuProcess> {
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
fn name_by_nvml(nvml: &Nvml, pid: u32) -> Option<String> {
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
    fn of_a_real_gpu_that_is_not_used_it_is_said_why_and_it_is_never_taken_for_a_simulated_one() {
        let (backend, message) =
            backend(&Cuda::look(false), "GPU-00000000-0000-0000-0000-000000000001", Some((9, 0)), "NVIDIA H100 80GB HBM3");
        assert_eq!(backend, DeviceBackend::None);
        let because = if cfg!(all(feature = "cuda", not(feature = "simulated-gpu"))) { "CUDA" } else { "this build of the agent" };
        assert!(message.contains(because) || message.contains("libcuda"), "{message}");
    }

    #[test]
    fn a_process_has_the_name_that_proc_gives_it() {
        assert!(process_name(Path::new("/proc"), std::process::id()).is_some_and(|name| !name.is_empty()));
        assert_eq!(process_name(Path::new("/nonexistent"), 1), None);
    }
}
