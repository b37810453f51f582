//! What is really in use: simulated GPUs with all that processes charge to them, and the workers' processes themselves.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context, Result};
use stowage_fake_nvml::devices::Machine;
use stowage_placement::Bytes;

use super::Notes;
use crate::machine::{OTHERS, SimulatedMachine};
use crate::workers::{self, Worker};

/// Between two looks.
const EVERY: Duration = Duration::from_millis(25);

pub(super) struct Machines {
    watched: Arc<Mutex<Vec<SimulatedMachine>>>,
    ends: Arc<AtomicBool>,
    workers_alone: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Machines {
    pub fn watch(folder: &Path, notes: Notes) -> Result<Machines> {
        let (watched, ends) = (Arc::<Mutex<Vec<SimulatedMachine>>>::default(), Arc::<AtomicBool>::default());
        let workers_alone = Arc::<AtomicBool>::default();
        let (machines, end, alone, folder) = (watched.clone(), ends.clone(), workers_alone.clone(), folder.to_owned());
        let look = move || {
            while !end.load(Ordering::Relaxed) {
                let machines = machines.lock().unwrap_or_else(PoisonError::into_inner).clone();
                look(&machines, alone.load(Ordering::Relaxed), &folder, &notes);
                std::thread::sleep(EVERY);
            }
        };
        let thread = std::thread::Builder::new().name("observer".to_owned()).spawn(look).context("starting the observer's thread")?;
        Ok(Machines { watched, ends, workers_alone, thread: Some(thread) })
    }

    pub fn add(&self, machine: SimulatedMachine) {
        self.watched.lock().unwrap_or_else(PoisonError::into_inner).push(machine);
    }

    pub fn count_workers_alone(&self) {
        self.workers_alone.store(true, Ordering::Relaxed);
    }

    pub fn stop(mut self) {
        self.ends.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            // It panics in nothing of its own.
            let _ = thread.join();
        }
    }
}

impl Drop for Machines {
    fn drop(&mut self) {
        self.ends.store(true, Ordering::Relaxed);
    }
}

fn look(machines: &[SimulatedMachine], workers_alone: bool, folder: &Path, notes: &Notes) {
    let workers = workers::running(folder);
    let mut found: Vec<String> = machines.iter().flat_map(|machine| overfull(machine, workers_alone)).collect();
    let mut inner = notes.lock();
    inner.seen.devices += machines.len() as u64;
    inner.seen.processes += workers.len() as u64;
    found.extend(twice(workers));
    inner.note(found);
}

/// GPUs on which more is in use than they have.
fn overfull(machine: &SimulatedMachine, workers_alone: bool) -> Vec<String> {
    // A machine that is being taken down has no file any more.
    let Ok(mut machine) = Machine::at(&machine.config, Some(&machine.charges)) else { return Vec::new() };
    if workers_alone {
        machine.devices.iter_mut().for_each(|device| device.processes.retain(|process| process.name != OTHERS));
    }
    let full = machine.devices.into_iter().filter(|device| device.used_bytes() > device.total_bytes);
    full.map(|device| format!("{} has {} and these use more: {:?}", device.uuid, Bytes(device.total_bytes), device.processes)).collect()
}

/// Replicas that run in more than one process.
fn twice(workers: Vec<Worker>) -> Vec<String> {
    let mut running: BTreeMap<(String, String), u32> = BTreeMap::new();
    let mut found = Vec::new();
    for Worker { pid, deployment_uid, replica, .. } in workers {
        if let Some(other) = running.insert((deployment_uid, replica.clone()), pid) {
            found.push(format!("{replica} runs in process {other} and in process {pid}"));
        }
    }
    found
}
