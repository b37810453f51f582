//! What the agent says of its node, and when. Pure: the status follows from what was seen, and whether it is worth a write from what was said last.
//!
//! Bytes move all the time. They are published when they moved by more than the margin that the operator plans with, and not more often than every
//! ten seconds; but always with news of a replica, so that a refusal never comes without the figures that it is about.

use std::time::{Duration, Instant};

use stowage_crds::model_deployment::ReplicaState;
use stowage_crds::model_node::{DeviceStatus, MAX_MODELS, ModelNodeStatus, ReplicaStatus, SystemStatus};
use stowage_placement::{Bytes, Defaults, HOST};

use super::account::{Account, DeviceAccount};
use super::calibration::Calibrations;
use crate::devices::{Gpu, Reading};
use crate::store::Models;

/// Least time between two writes for figures alone.
const FIGURES_EVERY: Duration = Duration::from_secs(10);
/// Least time between two writes for percentages alone.
const PROGRESS_EVERY: Duration = Duration::from_secs(2);
/// Replicas that a status lists at most.
const MAX_REPLICAS: usize = 128;
/// Movement of what a replica holds that is worth a write: the least margin of any device.
const HELD_THRESHOLD: Bytes = Bytes::mib(256);

/// What a status is made of.
pub struct Seen<'a> {
    pub generation: Option<i64>,
    pub reading: &'a Reading,
    pub account: &'a Account,
    pub replicas: Vec<ReplicaStatus>,
    pub models: &'a Models,
    pub calibrations: &'a Calibrations,
    pub address: &'a str,
}

/// The whole status, with live figures.
pub fn status(seen: Seen<'_>) -> ModelNodeStatus {
    let Seen { generation, reading, account, mut replicas, models, calibrations, address } = seen;
    replicas.truncate(MAX_REPLICAS);
    let free: Bytes = reading.gpus.iter().map(|gpu| gpu.free).sum();
    ModelNodeStatus {
        observed_generation: generation,
        devices: reading.gpus.iter().map(|gpu| device_status(gpu, account.device(&gpu.uuid), calibrations)).collect(),
        gpu_count: reading.gpus.len() as u32,
        free_vram: if reading.gpus.is_empty() { String::new() } else { free.to_string() },
        gpu_message: reading.gpu_message.clone(),
        system: Some(system_status(reading, account)),
        replica_count: replicas.iter().filter(|replica| replica.state == ReplicaState::Ready).count() as u32,
        replicas,
        models: models.files.iter().take(MAX_MODELS).cloned().collect(),
        models_message: models.message.clone(),
        address: address.to_owned(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
    }
}

fn device_status(gpu: &Gpu, account: Option<&DeviceAccount>, calibrations: &Calibrations) -> DeviceStatus {
    let Gpu { uuid, name, backend, message, total, free, processes: _, own_process_ids: _, compute_capability, driver } = gpu;
    DeviceStatus {
        uuid: uuid.clone(),
        name: name.clone(),
        backend: *backend,
        message: message.clone(),
        total_bytes: *total,
        free_bytes: *free,
        used_by_others_bytes: account.map(|account| account.used_by_others).unwrap_or_default(),
        used_by: account.map(|account| account.used_by.clone()).unwrap_or_default(),
        compute_capability: compute_capability.clone(),
        driver: driver.clone(),
        calibration: calibrations.of(gpu),
    }
}

fn system_status(reading: &Reading, account: &Account) -> SystemStatus {
    SystemStatus {
        cores: reading.host.cores,
        cpu: reading.host.cpu.clone(),
        instruction_sets: reading.host.instruction_sets.clone(),
        memory_bytes: reading.host.memory,
        memory_used_by_others_bytes: account.device(HOST).map(|host| host.used_by_others).unwrap_or_default(),
    }
}

/// Remembers what was published, and says when there is something new.
pub struct Publisher {
    last: ModelNodeStatus,
    figures_at: Option<Instant>,
    progress_at: Option<Instant>,
}

impl Publisher {
    /// `last` is what stands in the cluster.
    pub fn new(last: ModelNodeStatus) -> Publisher {
        Publisher { last, figures_at: None, progress_at: None }
    }

    /// What was published last.
    pub fn last(&self) -> &ModelNodeStatus {
        &self.last
    }

    /// What is to be published now, if anything.
    pub fn due(&self, live: ModelNodeStatus, now: Instant) -> Option<ModelNodeStatus> {
        let mut next = live;
        if without_movement(next.clone()) == without_movement(self.last.clone()) {
            let waited = |since: Option<Instant>, at_least| since.is_none_or(|since| now.duration_since(since) >= at_least);
            if !(waited(self.figures_at, FIGURES_EVERY) && figures_moved(&self.last, &next)) {
                keep_figures(&self.last, &mut next);
            }
            if !waited(self.progress_at, PROGRESS_EVERY) {
                keep_progress(&self.last, &mut next);
            }
        }
        (next != self.last).then_some(next)
    }

    /// `status` stands in the cluster since `now`.
    pub fn published(&mut self, status: ModelNodeStatus, now: Instant) {
        let mut same_figures = status.clone();
        keep_figures(&self.last, &mut same_figures);
        if same_figures != status {
            self.figures_at = Some(now);
        }
        self.progress_at = Some(now);
        self.last = status;
    }
}

/// The status with everything blanked that moves by itself. Where two differ in what is left, that is news.
fn without_movement(mut status: ModelNodeStatus) -> ModelNodeStatus {
    status.free_vram.clear();
    for device in &mut status.devices {
        (device.free_bytes, device.used_by_others_bytes) = (Bytes::ZERO, Bytes::ZERO);
        device.used_by.clear();
    }
    if let Some(system) = &mut status.system {
        system.memory_used_by_others_bytes = Bytes::ZERO;
    }
    for replica in &mut status.replicas {
        replica.percent = None;
        if matches!(replica.state, ReplicaState::Downloading | ReplicaState::Loading) {
            replica.message.clear();
        }
        for device in &mut replica.devices {
            device.measured_bytes = device.measured_bytes.map(|_| Bytes::ZERO);
        }
    }
    status
}

/// Whether any figure moved so far that the operator's margin no longer covers it.
fn figures_moved(last: &ModelNodeStatus, live: &ModelNodeStatus) -> bool {
    let devices = last.devices.iter().zip(&live.devices).any(|(last, live)| {
        let threshold = Defaults::default().margin(live.total_bytes);
        distance(last.free_bytes, live.free_bytes) > threshold || distance(last.used_by_others_bytes, live.used_by_others_bytes) > threshold
    });
    let memory = last.system.iter().zip(&live.system).any(|(last, live)| {
        distance(last.memory_used_by_others_bytes, live.memory_used_by_others_bytes) > Defaults::default().margin(live.memory_bytes)
    });
    let measured = measured(last).zip(measured(live)).any(|(last, live)| distance(last, live) > HELD_THRESHOLD);
    devices || memory || measured
}

fn measured(status: &ModelNodeStatus) -> impl Iterator<Item = Bytes> + '_ {
    status.replicas.iter().flat_map(|replica| &replica.devices).map(|device| device.measured_bytes.unwrap_or_default())
}

fn distance(a: Bytes, b: Bytes) -> Bytes {
    Bytes(a.0.abs_diff(b.0))
}

/// Puts the figures of `last` back, where both speak of the same devices and replicas.
fn keep_figures(last: &ModelNodeStatus, next: &mut ModelNodeStatus) {
    next.free_vram.clone_from(&last.free_vram);
    for (last, next) in last.devices.iter().zip(&mut next.devices) {
        (next.free_bytes, next.used_by_others_bytes) = (last.free_bytes, last.used_by_others_bytes);
        next.used_by.clone_from(&last.used_by);
    }
    if let (Some(last), Some(next)) = (&last.system, &mut next.system) {
        next.memory_used_by_others_bytes = last.memory_used_by_others_bytes;
    }
    for (last, next) in last.replicas.iter().zip(&mut next.replicas) {
        for (last, next) in last.devices.iter().zip(&mut next.devices) {
            next.measured_bytes = last.measured_bytes;
        }
    }
}

fn keep_progress(last: &ModelNodeStatus, next: &mut ModelNodeStatus) {
    for (last, next) in last.replicas.iter().zip(&mut next.replicas) {
        next.percent = last.percent;
        next.message.clone_from(&last.message);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::devices::HostReading;
    use crate::node::account::account;
    use stowage_crds::model_deployment::DeviceBytes;

    fn reading(free_gib: u64, memory_used_mib: u64) -> Reading {
        let gpu = Gpu { uuid: "GPU-a".into(), total: Bytes::gib(24), free: Bytes::gib(free_gib), ..Gpu::default() };
        let host = HostReading { memory: Bytes::gib(64), unreclaimable: Bytes::mib(memory_used_mib), ..HostReading::default() };
        Reading { gpus: vec![gpu], host, ..Reading::default() }
    }

    fn of(reading: &Reading, replicas: Vec<ReplicaStatus>) -> ModelNodeStatus {
        let account = account(reading, &[]);
        status(Seen {
            generation: Some(1),
            reading,
            account: &account,
            replicas,
            models: &Models::default(),
            calibrations: &Calibrations::default(),
            address: "192.0.2.1",
        })
    }

    fn replica(state: ReplicaState, percent: u32) -> ReplicaStatus {
        ReplicaStatus { uid: "u".into(), state, percent: Some(percent), ..ReplicaStatus::default() }
    }

    /// A publisher that published `status` at the time that is returned with it.
    fn after(status: ModelNodeStatus) -> (Publisher, Instant) {
        let now = Instant::now();
        let mut publisher = Publisher::new(ModelNodeStatus::default());
        publisher.published(status, now);
        (publisher, now)
    }

    #[test]
    fn what_did_not_change_is_not_published() {
        let status = of(&reading(20, 1024), vec![replica(ReplicaState::Ready, 100)]);
        let (publisher, now) = after(status.clone());
        assert_eq!(publisher.due(status, now + Duration::from_secs(3600)), None);
    }

    #[test]
    fn free_vram_is_published_when_it_moved_by_more_than_the_margin_and_ten_seconds_after_the_last_time() {
        let (publisher, now) = after(of(&reading(20, 1024), vec![]));
        let moved = of(&reading(18, 1024), vec![]);
        assert_eq!(publisher.due(moved.clone(), now + Duration::from_secs(9)), None);
        let published = publisher.due(moved, now + Duration::from_secs(10)).unwrap();
        assert_eq!(published.devices[0].free_bytes, Bytes::gib(18));
        assert_eq!(published.free_vram, "18.0 GiB");
    }

    #[test]
    fn small_movement_is_never_published_by_itself() {
        let mut nudged = reading(20, 1024);
        nudged.gpus[0].free = Bytes(Bytes::gib(20).0 - Bytes::mib(200).0);
        nudged.host.unreclaimable = Bytes::gib(2);
        let (publisher, now) = after(of(&reading(20, 1024), vec![]));
        assert_eq!(publisher.due(of(&nudged, vec![]), now + Duration::from_secs(3600)), None);
    }

    #[test]
    fn news_of_a_replica_is_published_at_once_with_live_figures() {
        let (publisher, now) = after(of(&reading(20, 1024), vec![replica(ReplicaState::Pending, 0)]));
        let refused = of(&reading(19, 1024), vec![replica(ReplicaState::Refused, 0)]);
        let published = publisher.due(refused, now).unwrap();
        assert_eq!((published.replicas[0].state, published.devices[0].free_bytes), (ReplicaState::Refused, Bytes::gib(19)));
    }

    #[test]
    fn percentages_are_published_every_two_seconds_and_bring_no_figures_with_them() {
        let (publisher, now) = after(of(&reading(20, 1024), vec![replica(ReplicaState::Downloading, 10)]));
        let further = of(&reading(18, 1024), vec![replica(ReplicaState::Downloading, 30)]);
        assert_eq!(publisher.due(further.clone(), now + Duration::from_secs(1)), None);
        let published = publisher.due(further, now + Duration::from_secs(2)).unwrap();
        assert_eq!((published.replicas[0].percent, published.devices[0].free_bytes), (Some(30), Bytes::gib(20)));
    }

    #[test]
    fn a_ready_replicas_measured_bytes_stay_as_published_until_they_moved_far() {
        let with = |mib| {
            let devices = vec![DeviceBytes { id: "GPU-a".into(), measured_bytes: Some(Bytes::mib(mib)), ..DeviceBytes::default() }];
            of(&reading(20, 1024), vec![ReplicaStatus { devices, ..replica(ReplicaState::Ready, 100) }])
        };
        let (publisher, now) = after(with(1000));
        assert_eq!(publisher.due(with(1200), now + Duration::from_secs(60)), None);
        assert!(publisher.due(with(1300), now + Duration::from_secs(60)).is_some());
    }

    #[test]
    fn an_agent_that_starts_anew_publishes_nothing_where_all_is_as_its_predecessor_said() {
        let status = of(&reading(20, 1024), vec![replica(ReplicaState::Ready, 100)]);
        assert_eq!(Publisher::new(status.clone()).due(status, Instant::now()), None);
    }
}
