//! The simulated GPUs of one node: the file that tests/fake-nvml reads, and the folder in which workers charge what they hold.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use stowage_placement::{Bytes, Defaults};

/// The name of every process that is no worker.
pub(crate) const OTHERS: &str = "someone else";

#[derive(Clone, Debug, Default)]
pub struct SimulatedGpu {
    pub uuid: String,
    pub total: Bytes,
    /// What the driver's context would take in each worker.
    pub context: Bytes,
    /// Processes that are no workers: id and bytes.
    pub foreign: Vec<(u32, Bytes)>,
    /// It has fallen off the bus.
    pub lost: bool,
    /// The last critical error that its driver reports.
    pub xid: Option<u64>,
}

impl SimulatedGpu {
    /// The `index`-th GPU of `node`.
    pub fn new(node: &str, index: usize, total: Bytes) -> SimulatedGpu {
        SimulatedGpu { uuid: format!("GPU-{node}-{index}"), total, context: Defaults::default().overhead_bytes, ..SimulatedGpu::default() }
    }
}

/// Where a node's simulated GPUs are described and charged.
#[derive(Clone, Debug)]
pub struct SimulatedMachine {
    pub config: PathBuf,
    pub charges: PathBuf,
}

impl SimulatedMachine {
    pub fn create(folder: &Path, gpus: &[SimulatedGpu]) -> Result<SimulatedMachine> {
        let machine = SimulatedMachine { config: folder.join("fake-nvml.yaml"), charges: folder.join("simulated-gpu") };
        fs::create_dir_all(&machine.charges).with_context(|| format!("making {}", machine.charges.display()))?;
        machine.write(gpus)?;
        Ok(machine)
    }

    /// Changes the devices while everything runs: what others hold grows or shrinks.
    pub fn write(&self, gpus: &[SimulatedGpu]) -> Result<()> {
        let devices: Vec<_> = gpus.iter().map(device).collect();
        let text = serde_json::json!({"driverVersion": "580.0", "cudaVersion": 13000, "devices": devices}).to_string();
        let partial = self.config.with_extension("partial");
        fs::write(&partial, text)
            .and_then(|()| fs::rename(&partial, &self.config))
            .with_context(|| format!("writing {}", self.config.display()))
    }
}

fn device(gpu: &SimulatedGpu) -> serde_json::Value {
    let processes: Vec<_> =
        gpu.foreign.iter().map(|(pid, bytes)| serde_json::json!({"pid": pid, "name": OTHERS, "usedBytes": bytes})).collect();
    serde_json::json!({
        "uuid": gpu.uuid,
        "name": "Simulated GPU",
        "totalBytes": gpu.total,
        "contextBytes": gpu.context,
        "computeCapability": "9.0",
        "processes": processes,
        "lost": gpu.lost,
        "xid": gpu.xid,
    })
}
