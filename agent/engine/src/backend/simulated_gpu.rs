//! What a replica takes of GPUs that aren't there, told to the NVML that isn't there.
//!
//! A file for each process in the directory that `STOWAGE_SIMULATED_GPU_DIR` names: the process's name, then a line `UUID BYTES` for each device. The
//! NVML of the tests adds up those of processes that live, with what a driver's context would take in each.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use stowage_placement::{Bytes, Reason};

use crate::api::EngineError;

const DIRECTORY: &str = "STOWAGE_SIMULATED_GPU_DIR";

/// What this process has charged so far, by device: it may hold several replicas.
static CHARGED: Mutex<BTreeMap<String, u64>> = Mutex::new(BTreeMap::new());

/// Bytes charged to simulated GPUs, given back when it is dropped.
pub struct Charge {
    directory: Option<PathBuf>,
    devices: Vec<(String, Bytes)>,
}

impl Charge {
    /// Charges devices. Without the environment variable nobody is told.
    pub fn new(devices: Vec<(String, Bytes)>) -> Result<Charge, EngineError> {
        Charge::in_directory(std::env::var_os(DIRECTORY).map(PathBuf::from), devices)
    }

    fn in_directory(directory: Option<PathBuf>, devices: Vec<(String, Bytes)>) -> Result<Charge, EngineError> {
        let charge = Charge { directory, devices };
        charge.change(|held, bytes| held.saturating_add(bytes)).map_err(|error| {
            let message = format!("charging simulated GPUs in {}: {error}", charge.directory.as_deref().unwrap_or(Path::new("")).display());
            EngineError::new(Reason::LoadFailed, message)
        })?;
        Ok(charge)
    }

    fn change(&self, sum: impl Fn(u64, u64) -> u64) -> std::io::Result<()> {
        let Some(directory) = &self.directory else { return Ok(()) };
        let mut charged = CHARGED.lock().unwrap_or_else(PoisonError::into_inner);
        for (device, bytes) in &self.devices {
            let held = charged.entry(device.clone()).or_default();
            *held = sum(*held, bytes.0);
        }
        charged.retain(|_, bytes| *bytes > 0);
        publish(directory, &charged)
    }
}

impl Drop for Charge {
    fn drop(&mut self) {
        if let Err(error) = self.change(|held, bytes| held.saturating_sub(bytes)) {
            tracing::warn!(%error, "giving back simulated GPU memory failed");
        }
    }
}

/// Replaces this process's file, or removes it where nothing is charged.
fn publish(directory: &Path, charged: &BTreeMap<String, u64>) -> std::io::Result<()> {
    let path = directory.join(std::process::id().to_string());
    if charged.is_empty() {
        // A replica on CPU alone never had one.
        return std::fs::remove_file(path).or_else(|error| if error.kind() == ErrorKind::NotFound { Ok(()) } else { Err(error) });
    }
    let mut text = std::fs::read_to_string("/proc/self/comm").unwrap_or_else(|_| "stowage".into()).trim().to_owned();
    text.push('\n');
    for (device, bytes) in charged {
        // Writing to a String can't fail.
        let _ = writeln!(text, "{device} {bytes}");
    }
    let partial = directory.join(format!(".{}.partial", std::process::id()));
    std::fs::write(&partial, text)?;
    std::fs::rename(partial, path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn charges_of_one_process_add_up_and_vanish_when_they_are_given_back() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join(std::process::id().to_string());
        let charge = |bytes| Charge::in_directory(Some(directory.path().into()), vec![("GPU-a".into(), Bytes(bytes))]).unwrap();
        let (first, second) = (charge(100), charge(11));
        assert_eq!(std::fs::read_to_string(&path).unwrap().lines().nth(1), Some("GPU-a 111"));
        drop(first);
        assert_eq!(std::fs::read_to_string(&path).unwrap().lines().nth(1), Some("GPU-a 11"));
        drop(second);
        assert!(!path.exists());
    }

    #[test]
    fn a_replica_that_takes_no_gpu_charges_nothing_and_leaves_no_file() {
        let directory = tempfile::tempdir().unwrap();
        publish(directory.path(), &BTreeMap::new()).unwrap();
        assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 0);
    }
}
