//! What a worker may open. All else is refused.
//!
//! What is open already (the log, its port), and a connection to a Unix socket, needs no entry here.

use std::fs;
use std::path::{Path, PathBuf};

use stowage_placement::DeviceKind;

use crate::model_header;
use crate::worker::record::Order;

/// Read by every worker.
const READ: [&str; 6] = [
    // The engine counts cores and watches how long its threads wait for them; /metrics has the process's memory.
    "/proc/self",
    // Threads that share a core.
    "/sys/devices/system/cpu",
    // The quota of processor time, of which follows how many threads compute.
    "/sys/fs/cgroup",
    // glibc, before it gives memory back.
    "/proc/sys/vm/overcommit_memory",
    // A chat template may write the date.
    "/etc/localtime",
    "/usr/share/zoneinfo",
];

/// Read by a worker that computes on NVIDIA GPUs: the driver's state, and its libraries, which it loads when it starts.
const READ_FOR_GPUS: [&str; 12] = [
    "/proc/driver/nvidia",
    "/proc/devices",
    "/sys/devices",
    "/sys/bus/pci",
    "/sys/module",
    "/etc/ld.so.cache",
    "/lib",
    "/lib64",
    "/usr/lib",
    "/usr/lib64",
    "/usr/local/cuda",
    "/usr/local/nvidia",
];

/// The driver's device files: `nvidia0`, `nvidiactl`, `nvidia-uvm`, `nvidia-caps/...`.
const GPU_DEVICES: &str = "nvidia";

/// What may be done with what lies at or below a path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    Read,
    /// A device file: read, written and commanded.
    Device,
    /// A folder of one's own: files made, written, replaced and removed.
    Keep,
}

/// What one worker may open.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Policy {
    pub grants: Vec<(PathBuf, Access)>,
}

impl Policy {
    /// For carrying out this order: the model's files, each of them, and what its backend needs.
    pub fn of(order: &Order) -> Policy {
        let on_gpu = order.assignment.plan.devices.iter().any(|device| device.kind == DeviceKind::Gpu);
        let files = model_header::files(&order.model).into_iter();
        Policy::new(files.map(|path| (path, Access::Read)), on_gpu)
    }

    /// For running models on a GPU that are made in this folder.
    pub fn of_calibration(folder: &Path) -> Policy {
        Policy::new([(folder.to_owned(), Access::Keep)], true)
    }

    fn new(own: impl IntoIterator<Item = (PathBuf, Access)>, on_gpu: bool) -> Policy {
        let mut grants: Vec<_> = READ.iter().map(|path| (PathBuf::from(path), Access::Read)).chain(own).collect();
        match simulated_gpus() {
            Some(charges) => grants.push((charges, Access::Keep)),
            None if on_gpu => grants.extend(nvidia(Path::new("/dev"))),
            None => {}
        }
        Policy { grants }
    }
}

/// The folder in which simulated GPUs are charged.
fn simulated_gpus() -> Option<PathBuf> {
    if !cfg!(feature = "simulated-gpu") {
        return None;
    }
    std::env::var_os("STOWAGE_SIMULATED_GPU_DIR").map(PathBuf::from)
}

fn nvidia(devices: &Path) -> Vec<(PathBuf, Access)> {
    let entries = fs::read_dir(devices).into_iter().flatten().flatten();
    let of_driver = entries.filter(|entry| entry.file_name().to_string_lossy().starts_with(GPU_DEVICES));
    let devices = of_driver.map(|entry| (entry.path(), Access::Device));
    READ_FOR_GPUS.iter().map(|path| (path.into(), Access::Read)).chain(devices).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_devices_those_of_the_driver_are_granted_and_no_others() {
        let devices = tempfile::tempdir().unwrap();
        for name in ["nvidia0", "nvidiactl", "sda", "mem"] {
            fs::write(devices.path().join(name), "").unwrap();
        }
        fs::create_dir(devices.path().join("nvidia-caps")).unwrap();
        let grants = nvidia(devices.path()).into_iter().filter(|(_, access)| *access == Access::Device);
        let mut names: Vec<_> = grants.map(|(path, _)| path.file_name().unwrap().to_string_lossy().into_owned()).collect();
        names.sort();
        assert_eq!(names, ["nvidia-caps", "nvidia0", "nvidiactl"]);
    }
}
