//! The unmodified `nvml-wrapper` loads the library and reads what the file says.
#![allow(clippy::unwrap_used)]

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use nvml_wrapper::Nvml;
use nvml_wrapper::enums::device::UsedGpuMemory;

/// A build for tests leaves the shared library beside the test itself; only `cargo build` puts it into the folder above too.
fn library() -> PathBuf {
    let test = std::env::current_exe().unwrap();
    test.with_file_name("libstowage_fake_nvml.so")
}

const ONE_DEVICE: &str = "
devices:
- uuid: GPU-00000000-0000-0000-0000-000000000001
  name: H100
  totalBytes: 1000000
  reservedBytes: 1000
  processes:
  - {pid: 4194304, name: somebody else, usedBytes: 5000}
";

/// The library reads its configuration from the environment, so the questions are asked in a process of their own.
#[test]
fn nvml_wrapper_reads_devices_memory_and_processes_and_sees_changes() {
    if std::env::var_os(stowage_fake_nvml::devices::CONFIG_VARIABLE).is_some() {
        return ask();
    }
    let folder = tempfile::tempdir().unwrap();
    let config = folder.path().join("devices.yaml");
    fs::write(&config, ONE_DEVICE).unwrap();
    let name = "nvml_wrapper_reads_devices_memory_and_processes_and_sees_changes";
    let mut child = Command::new(std::env::current_exe().unwrap());
    child.args([name, "--exact"]).env(stowage_fake_nvml::devices::CONFIG_VARIABLE, &config);
    let output = child.output().unwrap();
    assert!(output.status.success(), "{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
}

fn ask() {
    let nvml = Nvml::builder().lib_path(library().as_os_str()).init().unwrap();
    assert_eq!(nvml.sys_driver_version().unwrap(), "580.0 (simulated)");
    assert_eq!(nvml.sys_cuda_driver_version().unwrap(), 13000);
    assert_eq!(nvml.device_count().unwrap(), 1);
    let device = nvml.device_by_index(0).unwrap();
    assert_eq!(device.uuid().unwrap(), "GPU-00000000-0000-0000-0000-000000000001");
    assert_eq!(device.name().unwrap(), "Simulated H100");
    assert_eq!(device.cuda_compute_capability().unwrap().major, 9);
    let memory = device.memory_info().unwrap();
    assert_eq!((memory.total, memory.free, memory.used), (1_000_000, 994_000, 5000));
    let processes = device.running_compute_processes().unwrap();
    assert_eq!(processes[0].pid, 4_194_304);
    assert_eq!(processes[0].used_gpu_memory, UsedGpuMemory::Used(5000));
    assert!(device.running_graphics_processes().unwrap().is_empty());
    assert_eq!(nvml.sys_process_name(4_194_304, 64).unwrap(), "somebody else");
    assert_eq!(nvml.device_by_uuid("GPU-00000000-0000-0000-0000-000000000001").unwrap().index().unwrap(), 0);
    assert!(nvml.device_by_index(1).is_err());

    let config = std::env::var_os(stowage_fake_nvml::devices::CONFIG_VARIABLE).unwrap();
    fs::write(config, ONE_DEVICE.replace("usedBytes: 5000", "usedBytes: 400000")).unwrap();
    assert_eq!(device.memory_info().unwrap().free, 599_000);
}
