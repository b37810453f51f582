//! The simulated devices at this moment: the YAML file, and what simulated workers say that they hold.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use stowage_crds::yaml;

/// Names the YAML file. It is read at every question, so a change is seen at once.
pub const CONFIG_VARIABLE: &str = "STOWAGE_FAKE_NVML_CONFIG";
/// Names the folder in which each process that simulates GPU layers keeps a file of what it holds.
pub const CHARGES_VARIABLE: &str = "STOWAGE_SIMULATED_GPU_DIR";

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Machine {
    #[serde(default = "default_driver")]
    pub driver_version: String,
    /// As NVML counts: 13000 for 13.0.
    #[serde(default = "default_cuda")]
    pub cuda_version: i32,
    #[serde(default)]
    pub devices: Vec<Device>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Device {
    pub uuid: String,
    #[serde(default)]
    pub name: String,
    pub total_bytes: u64,
    /// Held by the driver itself.
    #[serde(default)]
    pub reserved_bytes: u64,
    #[serde(default = "default_capability")]
    pub compute_capability: String,
    /// What the driver's context and libraries take in each process that simulates GPU layers.
    #[serde(default)]
    pub context_bytes: u64,
    /// MIG instances that it is divided into.
    #[serde(default)]
    pub mig: Vec<Device>,
    /// It has fallen off the bus, and answers that alone.
    #[serde(default)]
    pub lost: bool,
    /// It is one with the processor, and has no memory of its own.
    #[serde(default)]
    pub unified: bool,
    /// The last critical error that its driver reports.
    #[serde(default)]
    pub xid: Option<u64>,
    /// Processes that hold memory of the device; those that simulate GPU layers come on top of these.
    #[serde(default)]
    pub processes: Vec<Process>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Process {
    pub pid: u32,
    #[serde(default)]
    pub name: String,
    pub used_bytes: u64,
}

fn default_driver() -> String {
    "580.0".to_owned()
}

fn default_cuda() -> i32 {
    13000
}

fn default_capability() -> String {
    "9.0".to_owned()
}

/// Why the machine can't be told.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("{CONFIG_VARIABLE} is not set: it names the YAML file of the simulated devices")]
    NotConfigured,
    #[error("reading the simulated devices from {path}: {source}")]
    Read { path: PathBuf, source: std::io::Error },
    #[error("reading the simulated devices from {path}: {source}")]
    Parse { path: PathBuf, source: yaml::Error },
}

impl Machine {
    /// The machine as file and charges have it now.
    pub fn now() -> Result<Machine, Error> {
        let path = PathBuf::from(std::env::var_os(CONFIG_VARIABLE).ok_or(Error::NotConfigured)?);
        Machine::at(&path, std::env::var_os(CHARGES_VARIABLE).map(PathBuf::from).as_deref())
    }

    /// The machine that this file describes, with what processes charge in this folder.
    pub fn at(config: &Path, charges: Option<&Path>) -> Result<Machine, Error> {
        let mut machine = Machine::read(config)?;
        if let Some(folder) = charges {
            machine.charge(folder);
        }
        Ok(machine)
    }

    pub fn read(path: &Path) -> Result<Machine, Error> {
        let text = fs::read_to_string(path).map_err(|source| Error::Read { path: path.to_owned(), source })?;
        yaml::from_str(&text).map_err(|source| Error::Parse { path: path.to_owned(), source })
    }

    /// Adds the processes of the charges folder that are alive. A file that vanishes while it's read belonged to one that ended.
    fn charge(&mut self, folder: &Path) {
        let Ok(entries) = fs::read_dir(folder) else { return };
        for path in entries.filter_map(|entry| Some(entry.ok()?.path())) {
            let Some(pid) = path.file_stem().and_then(|stem| stem.to_str()?.parse().ok()).filter(|pid| alive(*pid)) else { continue };
            let Ok(text) = fs::read_to_string(&path) else { continue };
            let (name, charges) = parse_charges(&text);
            for device in self.devices.iter_mut().flat_map(Device::parts) {
                if let Some(used_bytes) = charges.get(device.uuid.as_str()) {
                    let used_bytes = used_bytes.saturating_add(device.context_bytes);
                    device.processes.push(Process { pid, name: name.to_owned(), used_bytes });
                }
            }
        }
    }
}

/// First line: the process's name. Each further line: a device's UUID and the bytes held there.
fn parse_charges(text: &str) -> (&str, BTreeMap<&str, u64>) {
    let mut lines = text.lines();
    let name = lines.next().unwrap_or_default();
    let charges = lines.filter_map(|line| {
        let (uuid, bytes) = line.trim().rsplit_once(' ')?;
        Some((uuid, bytes.parse().ok()?))
    });
    (name, charges.collect())
}

/// A zombie holds no memory any more.
fn alive(pid: u32) -> bool {
    let Ok(stat) = fs::read_to_string(format!("/proc/{pid}/stat")) else { return false };
    // The state stands behind the command's name, which is in parentheses and may hold anything.
    stat.rsplit_once(')').is_some_and(|(_, rest)| !rest.trim_start().starts_with(['Z', 'X']))
}

impl Device {
    /// As shown: a name that doesn't say so gets `Simulated` put before it.
    pub fn shown_name(&self) -> String {
        if self.name.contains("Simulated") { self.name.clone() } else { format!("Simulated {}", self.name).trim().to_owned() }
    }

    /// Its MIG instances, or itself where there are none: what processes hold memory of.
    fn parts(&mut self) -> Vec<&mut Device> {
        if self.mig.is_empty() { vec![self] } else { self.mig.iter_mut().collect() }
    }

    pub fn used_bytes(&self) -> u64 {
        self.processes.iter().fold(0, |sum: u64, process| sum.saturating_add(process.used_bytes))
    }

    pub fn free_bytes(&self) -> u64 {
        self.total_bytes.saturating_sub(self.reserved_bytes).saturating_sub(self.used_bytes())
    }

    /// Major and minor number.
    pub fn capability(&self) -> Option<(i32, i32)> {
        let (major, minor) = self.compute_capability.split_once('.')?;
        Some((major.parse().ok()?, minor.parse().ok()?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_dead_process_counts_nothing_and_a_living_one_what_it_says() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join(format!("{}.charges", std::process::id())), "worker a\nGPU-1 100\nGPU-2 7\n").unwrap();
        // Linux gives out no process id above 2^22.
        fs::write(folder.path().join("4194305.charges"), "gone\nGPU-1 1000\n").unwrap();
        let device = Device { uuid: "GPU-1".into(), total_bytes: 1000, reserved_bytes: 10, context_bytes: 5, ..Device::default() };
        let mut machine = Machine { devices: vec![device], ..Machine::default() };
        machine.charge(folder.path());
        assert_eq!(machine.devices[0].used_bytes(), 105);
        assert_eq!(machine.devices[0].free_bytes(), 885);
        assert_eq!(machine.devices[0].processes[0].name, "worker a");
    }

    #[test]
    fn a_device_says_that_it_is_simulated() {
        let device = Device { name: "H100".into(), ..Device::default() };
        assert_eq!(device.shown_name(), "Simulated H100");
        assert_eq!(Device { name: "Simulated T4".into(), ..Device::default() }.shown_name(), "Simulated T4");
    }
}
