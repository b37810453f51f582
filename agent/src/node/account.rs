//! Whose the bytes are: a reading of the devices, laid against the replicas that this node has.
//!
//! What no replica of ours holds is held by others, and that is what the operator plans around. So a byte must count once: as a replica's, up to
//! what it was promised or holds, or as somebody else's.

use std::collections::BTreeMap;

use stowage_crds::model_node::DeviceProcess;
use stowage_placement::{Bytes, HOST};

use crate::devices::{Gpu, Reading};

/// Processes that a device's status lists at most, the largest first.
const MAX_PROCESSES: usize = 16;

/// What one replica was promised, and what is known of what it holds.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Holding {
    /// Of its assignment.
    pub uid: String,
    /// Whether it has a worker.
    pub runs: bool,
    /// Of its worker, where that can be seen.
    pub pid: Option<u32>,
    /// By device. Nothing for a worker without an assignment.
    pub promised: BTreeMap<String, Bytes>,
    /// What its worker says that it holds, by device, once it has loaded.
    pub reported: Option<BTreeMap<String, Bytes>>,
    /// How far loading is.
    pub percent: u32,
    /// What the worker's process takes of memory, reclaimable pages left out.
    pub resident: Bytes,
}

impl Holding {
    fn promised(&self, device: &str) -> Bytes {
        self.promised.get(device).copied().unwrap_or_default()
    }

    /// What the worker reported; while it loads, that part of its promise that should be there by now.
    fn believed(&self, device: &str) -> Bytes {
        match &self.reported {
            Some(reported) => reported.get(device).copied().unwrap_or_default(),
            None if self.runs => Bytes((u128::from(self.promised(device).0) * u128::from(self.percent.min(100)) / 100) as u64),
            None => Bytes::ZERO,
        }
    }
}

/// One device's bytes, told apart.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct DeviceAccount {
    /// A GPU's UUID, or `host`.
    pub id: String,
    pub total: Bytes,
    pub used_by_others: Bytes,
    /// Who they are, where it can be seen.
    pub used_by: Vec<DeviceProcess>,
    /// What each replica holds, by its assignment's uid.
    pub held: BTreeMap<String, Bytes>,
}

/// The devices of a node, told apart. The host is the last.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Account {
    pub devices: Vec<DeviceAccount>,
}

impl Account {
    pub fn device(&self, id: &str) -> Option<&DeviceAccount> {
        self.devices.iter().find(|device| device.id == id)
    }

    /// What a replica holds on a device.
    pub fn held(&self, uid: &str, device: &str) -> Bytes {
        self.device(device).and_then(|device| device.held.get(uid)).copied().unwrap_or_default()
    }
}

/// Lays a reading against the replicas.
pub fn account(reading: &Reading, holdings: &[Holding]) -> Account {
    let mut devices: Vec<DeviceAccount> = reading.gpus.iter().map(|gpu| gpu_account(gpu, holdings)).collect();
    devices.push(host_account(reading, holdings));
    Account { devices }
}

fn gpu_account(gpu: &Gpu, holdings: &[Holding]) -> DeviceAccount {
    let held: BTreeMap<String, Bytes> = holdings.iter().map(|holding| (holding.uid.clone(), held_on_gpu(gpu, holding))).collect();
    let used = gpu.total.saturating_sub(gpu.free);
    DeviceAccount {
        id: gpu.uuid.clone(),
        total: gpu.total,
        used_by_others: used.saturating_sub(held.values().copied().sum()),
        used_by: other_processes(gpu, holdings),
        held,
    }
}

/// NVML's figure for the worker's process where it can be told which that is, else the worker's own.
fn held_on_gpu(gpu: &Gpu, holding: &Holding) -> Bytes {
    let process = gpu.processes.iter().find(|process| gpu.own_process_ids && Some(process.pid) == holding.pid);
    process.and_then(|process| process.bytes).unwrap_or_else(|| holding.believed(&gpu.uuid))
}

fn other_processes(gpu: &Gpu, holdings: &[Holding]) -> Vec<DeviceProcess> {
    let ours = |pid: u32| gpu.own_process_ids && holdings.iter().any(|holding| holding.pid == Some(pid));
    let others = gpu.processes.iter().filter(|process| !ours(process.pid));
    let mut others: Vec<DeviceProcess> = others
        .map(|process| DeviceProcess { pid: process.pid, name: process.name.clone(), bytes: process.bytes.unwrap_or_default() })
        .collect();
    others.sort_by_key(|process| (std::cmp::Reverse(process.bytes), process.pid));
    others.truncate(MAX_PROCESSES);
    others
}

/// A worker's memory counts as its replica's up to what that was promised or reports; what its process takes beyond is nobody's promise, and counts
/// as used by others. What it reports and never touched yet is not in use, and is taken off nothing.
fn host_account(reading: &Reading, holdings: &[Holding]) -> DeviceAccount {
    let attributed = |holding: &Holding| holding.resident.min(holding.promised(HOST).max(holding.believed(HOST)));
    DeviceAccount {
        id: HOST.to_owned(),
        total: reading.host.memory,
        used_by_others: reading.host.unreclaimable.saturating_sub(holdings.iter().map(attributed).sum()),
        used_by: Vec::new(),
        held: holdings.iter().map(|holding| (holding.uid.clone(), holding.believed(HOST))).collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::devices::{GpuProcess, HostReading};

    fn process(pid: u32, gib: u64) -> GpuProcess {
        GpuProcess { pid, name: format!("p{pid}"), bytes: Some(Bytes::gib(gib)) }
    }

    /// A GPU of 24 GiB of which 10 are in use, 4 by process 7 and 5 by process 8.
    fn gpu() -> Gpu {
        Gpu {
            uuid: "GPU-a".into(),
            total: Bytes::gib(24),
            free: Bytes::gib(14),
            processes: vec![process(7, 4), process(8, 5)],
            own_process_ids: true,
            ..Gpu::default()
        }
    }

    fn reading(gpu: Gpu) -> Reading {
        let host = HostReading { memory: Bytes::gib(64), unreclaimable: Bytes::gib(20), ..HostReading::default() };
        Reading { gpus: vec![gpu], host, ..Reading::default() }
    }

    fn on(device: &str, gib: u64) -> BTreeMap<String, Bytes> {
        BTreeMap::from([(device.to_owned(), Bytes::gib(gib))])
    }

    fn holding(pid: u32) -> Holding {
        Holding { uid: "u".into(), runs: true, pid: Some(pid), ..Holding::default() }
    }

    #[test]
    fn a_workers_bytes_are_nvmls_figure_for_its_process_and_the_rest_is_used_by_others() {
        let account = account(&reading(gpu()), &[Holding { reported: Some(on("GPU-a", 3)), ..holding(7) }]);
        assert_eq!(account.held("u", "GPU-a"), Bytes::gib(4));
        let device = account.device("GPU-a").unwrap();
        assert_eq!(device.used_by_others, Bytes::gib(6));
        assert_eq!(device.used_by, [DeviceProcess { pid: 8, name: "p8".into(), bytes: Bytes::gib(5) }]);
    }

    #[test]
    fn where_process_ids_cannot_be_matched_the_workers_own_report_counts() {
        let foreign = Gpu { own_process_ids: false, ..gpu() };
        let account = account(&reading(foreign), &[Holding { reported: Some(on("GPU-a", 3)), ..holding(7) }]);
        assert_eq!(account.held("u", "GPU-a"), Bytes::gib(3));
        assert_eq!(account.device("GPU-a").unwrap().used_by_others, Bytes::gib(7));
    }

    #[test]
    fn a_worker_that_loads_is_believed_to_hold_its_part_of_the_promise() {
        let loading = Holding { promised: on("GPU-a", 8), percent: 25, ..holding(99) };
        assert_eq!(account(&reading(gpu()), &[loading]).held("u", "GPU-a"), Bytes::gib(2));
    }

    #[test]
    fn memory_counts_once_as_a_replicas_or_as_somebody_elses() {
        let used = |holding: Holding| account(&reading(gpu()), &[holding]).device(HOST).unwrap().used_by_others;
        let loading = |resident| Holding { promised: on(HOST, 8), resident: Bytes::gib(resident), ..holding(7) };
        assert_eq!(used(loading(6)), Bytes::gib(14), "inside its promise it is the replica's");
        assert_eq!(used(loading(10)), Bytes::gib(12), "what is beyond the promise is nobody's");
        let lazy = Holding { reported: Some(on(HOST, 9)), resident: Bytes::gib(2), ..loading(2) };
        assert_eq!(used(lazy), Bytes::gib(18), "what was never touched is not in use");
    }

    #[test]
    fn a_worker_without_an_assignment_counts_what_it_holds() {
        let orphan = Holding { reported: Some(on(HOST, 3)), resident: Bytes::gib(3), ..holding(50) };
        let account = account(&reading(gpu()), &[orphan]);
        assert_eq!((account.held("u", HOST), account.device(HOST).unwrap().used_by_others), (Bytes::gib(3), Bytes::gib(17)));
    }
}
