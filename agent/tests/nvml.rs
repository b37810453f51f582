//! The NVML code as it is loads the library that simulates NVML, and sees what its file says.
#![allow(clippy::unwrap_used)]

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use stowage_agent::devices::{Gpu, Nvml};
use stowage_crds::model_node::DeviceBackend;
use stowage_fake_nvml::devices::CONFIG_VARIABLE;
use stowage_placement::Bytes;

/// Tells the process that is to ask, whatever its parent's environment says.
const ASKED_ABOUT: &str = "STOWAGE_TEST_ASKED_ABOUT";

/// A build for tests leaves the shared library beside the test itself.
fn library() -> PathBuf {
    std::env::current_exe().unwrap().with_file_name("libstowage_fake_nvml.so")
}

/// Two devices of which others hold `used`.
fn devices(used: u64) -> String {
    format!(
        "devices:
- uuid: GPU-00000000-0000-0000-0000-000000000001
  name: H100
  totalBytes: {}
  reservedBytes: 1000
  processes:
  - {{pid: 4194304, name: somebody else, usedBytes: {used}}}
- {{uuid: GPU-00000000-0000-0000-0000-000000000002, name: A10, totalBytes: 24000000000}}
",
        Bytes::gib(80).0
    )
}

/// The library reads its configuration from the environment, so the questions are asked in a process of their own.
#[test]
fn simulated_devices_are_read_by_the_code_that_reads_real_ones_and_changes_are_seen() {
    if let Some(config) = std::env::var_os(ASKED_ABOUT) {
        return ask(config.into());
    }
    let folder = tempfile::tempdir().unwrap();
    let config = folder.path().join("devices.yaml");
    fs::write(&config, devices(5000)).unwrap();
    let name = "simulated_devices_are_read_by_the_code_that_reads_real_ones_and_changes_are_seen";
    let mut child = Command::new(std::env::current_exe().unwrap());
    child.args([name, "--exact"]).env(CONFIG_VARIABLE, &config).env(ASKED_ABOUT, &config);
    let output = child.output().unwrap();
    assert!(output.status.success(), "{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
}

fn ask(config: PathBuf) {
    let mut nvml = Nvml::new(Some(library()));
    let (gpus, message) = nvml.read();
    let [first, second] = gpus.as_slice() else { panic!("{message}: {gpus:?}") };
    assert_eq!((first.uuid.as_str(), first.name.as_str()), ("GPU-00000000-0000-0000-0000-000000000001", "Simulated H100"));
    assert_eq!((first.total, first.free), (Bytes::gib(80), Bytes(Bytes::gib(80).0 - 6000)));
    assert_eq!((first.compute_capability.as_str(), first.driver.as_str()), ("9.0", "580.0 (simulated)"));
    assert_eq!((second.name.as_str(), second.free), ("Simulated A10", Bytes(24_000_000_000)));
    let process = &first.processes[0];
    assert_eq!((process.pid, process.name.as_str(), process.bytes), (4_194_304, "somebody else", Some(Bytes(5000))));
    says_that_it_is_simulated(first, &message);

    fs::write(config, devices(7000)).unwrap();
    assert_eq!(nvml.read().0[0].free, Bytes(Bytes::gib(80).0 - 8000));
}

fn says_that_it_is_simulated(gpu: &Gpu, message: &str) {
    assert!(message.contains("simulated"), "{message}");
    let used = cfg!(feature = "simulated-gpu");
    assert_eq!(gpu.backend, if used { DeviceBackend::Simulated } else { DeviceBackend::None });
}
