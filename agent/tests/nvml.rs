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

/// Asks in a process of its own about these devices: the library reads its configuration from the environment. `name` is the test's.
fn ask_alone(name: &str, devices: &str, variables: &[(&str, &str)], ask: impl FnOnce(PathBuf)) {
    if let Some(config) = std::env::var_os(ASKED_ABOUT) {
        return ask(config.into());
    }
    let folder = tempfile::tempdir().unwrap();
    let config = folder.path().join("devices.yaml");
    fs::write(&config, devices).unwrap();
    let mut child = Command::new(std::env::current_exe().unwrap());
    child.args([name, "--exact"]).env_remove("CUDA_VISIBLE_DEVICES").envs(variables.iter().copied());
    let output = child.env(CONFIG_VARIABLE, &config).env(ASKED_ABOUT, &config).output().unwrap();
    assert!(output.status.success(), "{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
}

#[test]
fn simulated_devices_are_read_by_the_code_that_reads_real_ones_and_changes_are_seen() {
    let name = "simulated_devices_are_read_by_the_code_that_reads_real_ones_and_changes_are_seen";
    ask_alone(name, &devices(5000), &[], ask);
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

#[test]
fn a_gpu_that_cuda_may_not_see_is_offered_to_nobody() {
    let name = "a_gpu_that_cuda_may_not_see_is_offered_to_nobody";
    ask_alone(name, &devices(0), &[("CUDA_VISIBLE_DEVICES", "GPU-00000000-0000-0000-0000-000000000002")], |_| {
        let (gpus, _) = Nvml::new(Some(library())).read();
        assert_eq!(names(&gpus), ["Simulated A10"]);
    });
}

#[test]
fn a_divided_gpu_is_its_instances() {
    let whole = "{uuid: GPU-1, name: A100, totalBytes: 40000000000, mig: [{uuid: MIG-1, name: A100 MIG 1g.5gb, totalBytes: 5000000000}]}";
    ask_alone("a_divided_gpu_is_its_instances", &format!("devices: [{whole}]"), &[], |_| {
        let (gpus, _) = Nvml::new(Some(library())).read();
        let [instance] = gpus.as_slice() else { panic!("{gpus:?}") };
        assert_eq!((instance.uuid.as_str(), instance.total, instance.free), ("MIG-1", Bytes(5_000_000_000), Bytes(5_000_000_000)));
        assert_eq!(instance.compute_capability, "9.0");
    });
}

#[test]
fn a_gpu_that_shares_the_hosts_memory_is_told_of_and_counts_no_byte_twice() {
    let name = "a_gpu_that_shares_the_hosts_memory_is_told_of_and_counts_no_byte_twice";
    ask_alone(name, "devices: [{uuid: GPU-1, name: GB10, totalBytes: 1000, unified: true}]", &[], |_| {
        let (gpus, _) = Nvml::new(Some(library())).read();
        assert_eq!((gpus[0].backend, gpus[0].total), (DeviceBackend::None, Bytes::ZERO));
        assert!(gpus[0].message.contains("shares the host's"), "{}", gpus[0].message);
    });
}

#[test]
fn a_gpu_that_falls_off_the_bus_is_told_of_as_lost_and_the_others_are_read_on() {
    let name = "a_gpu_that_falls_off_the_bus_is_told_of_as_lost_and_the_others_are_read_on";
    let healthy = "devices: [{uuid: GPU-1, name: A, totalBytes: 1000}, {uuid: GPU-2, name: B, totalBytes: 1000}]";
    ask_alone(name, healthy, &[], |config| {
        let mut nvml = Nvml::new(Some(library()));
        nvml.read();
        fs::write(&config, healthy.replace("name: A,", "name: A, lost: true,")).unwrap();
        let gpus = nvml.read().0;
        let of = |uuid: &str| gpus.iter().find(|gpu| gpu.uuid == uuid).unwrap();
        assert_eq!((of("GPU-1").backend, of("GPU-1").total), (DeviceBackend::None, Bytes::ZERO));
        assert!(of("GPU-1").message.starts_with("it is lost: "), "{}", of("GPU-1").message);
        assert_eq!(of("GPU-2").free, Bytes(1000));
        fs::write(&config, healthy).unwrap();
        assert_eq!(nvml.read().0[0].free, Bytes(1000), "it is there again");
    });
}

#[test]
fn a_gpu_that_is_listed_no_longer_is_as_it_was_for_a_moment_and_then_lost() {
    let name = "a_gpu_that_is_listed_no_longer_is_as_it_was_for_a_moment_and_then_lost";
    ask_alone(name, "devices: [{uuid: GPU-1, name: A, totalBytes: 1000}]", &[], |config| {
        let mut nvml = Nvml::new(Some(library()));
        nvml.read();
        fs::write(&config, "devices: []").unwrap();
        assert_eq!(nvml.read().0[0].total, Bytes(1000));
        let lost = (0..20).map(|_| nvml.read().0.remove(0)).find(|gpu| gpu.total == Bytes::ZERO).unwrap();
        assert_eq!(lost.message, "it is lost: NVML lists it no longer");
    });
}

#[test]
fn a_critical_error_of_the_driver_takes_a_gpu_away_and_an_error_of_a_program_does_not() {
    let name = "a_critical_error_of_the_driver_takes_a_gpu_away_and_an_error_of_a_program_does_not";
    let with = |xid: u64| format!("devices: [{{uuid: GPU-1, name: A, totalBytes: 1000, xid: {xid}}}]");
    ask_alone(name, "devices: [{uuid: GPU-1, name: A, totalBytes: 1000}]", &[], |config| {
        let mut nvml = Nvml::new(Some(library()));
        nvml.read();
        fs::write(&config, with(31)).unwrap();
        assert_eq!(nvml.read().0[0].total, Bytes(1000));
        fs::write(&config, with(48)).unwrap();
        let gpu = nvml.read().0.remove(0);
        assert_eq!(gpu.backend, DeviceBackend::None);
        assert!(gpu.message.contains("XID 48"), "{}", gpu.message);
    });
}

fn names(gpus: &[Gpu]) -> Vec<&str> {
    gpus.iter().map(|gpu| gpu.name.as_str()).collect()
}
