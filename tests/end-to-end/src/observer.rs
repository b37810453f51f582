//! Looks at every promise, every claim, every simulated GPU and every worker's process for as long as a cluster lives, and notes what must never be.
//!
//! It counts for itself, by nothing that the operator counts with: promises and claims as the API server's watch brings them, one version after the other;
//! GPUs and processes as the machine has them, many times a second. Who wrote is read at the end in the API server's audit log.

mod leaders;
mod ledger;
mod machines;
mod told;

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use anyhow::{Result, bail};
use futures::{StreamExt, pin_mut};
use kube::runtime::WatchStreamExt;
use kube::runtime::watcher::{Config, Event, watcher};
use kube::{Api, Client, Resource};
use serde::de::DeserializeOwned;
use stowage_crds::{ModelDeployment, ModelNode};
use stowage_placement::Reason;
use tokio::task::JoinSet;

use crate::machine::SimulatedMachine;
use ledger::Ledger;
use machines::Machines;

pub struct Observer {
    notes: Notes,
    machines: Machines,
    _watches: JoinSet<()>,
}

/// What was seen so far.
#[derive(Clone, Default)]
struct Notes {
    inner: Arc<Mutex<Inner>>,
}

#[derive(Default)]
struct Inner {
    ledger: Ledger,
    /// In the order in which they were first seen.
    violations: Vec<String>,
    known: BTreeSet<String>,
    /// Versions of ModelNodes and ModelDeployments, and looks at the machines.
    seen: Seen,
}

/// How much was looked at.
#[derive(Clone, Debug, Default)]
pub struct Seen {
    pub model_nodes: u64,
    pub deployments: u64,
    pub devices: u64,
    pub processes: u64,
    /// Writes of operators.
    pub writes: usize,
    /// Reasons that the status of a ModelDeployment or of a ModelNode gave at any time.
    pub reasons: BTreeSet<Reason>,
}

impl Notes {
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn take_in_node(&self, event: Event<ModelNode>) {
        let mut inner = self.lock();
        inner.seen.model_nodes += 1;
        inner.seen.reasons.extend(told::by_node(&event));
        let found = inner.ledger.take_in_node(event);
        inner.note(found);
    }

    fn take_in_deployment(&self, event: Event<ModelDeployment>) {
        let mut inner = self.lock();
        inner.seen.deployments += 1;
        inner.seen.reasons.extend(told::by_deployment(&event));
        let found = inner.ledger.take_in_deployment(event);
        inner.note(found);
    }
}

impl Inner {
    /// Each kind of violation once, however long it lasts.
    fn note(&mut self, found: Vec<String>) {
        for violation in found {
            if self.known.insert(violation.clone()) {
                eprintln!("observer: {violation}");
                self.violations.push(violation);
            }
        }
    }
}

impl Observer {
    /// `folder` holds everything of this cluster's nodes, so that its workers are told from others on the machine.
    pub fn start(client: &Client, folder: &Path) -> Result<Observer> {
        let notes = Notes::default();
        let mut watches = JoinSet::new();
        watches.spawn(watch(Api::all(client.clone()), notes.clone(), Notes::take_in_node));
        watches.spawn(watch(Api::all(client.clone()), notes.clone(), Notes::take_in_deployment));
        let machines = Machines::watch(folder, notes.clone())?;
        Ok(Observer { notes, machines, _watches: watches })
    }

    /// Looks at this machine's GPUs too.
    pub fn look_at(&self, machine: &SimulatedMachine) {
        self.machines.add(machine.clone());
    }

    /// From now on others use GPUs as they like. What workers use is still counted, and what others use no more: a real GPU has no room for both.
    pub fn let_others_use(&self) {
        self.machines.count_workers_alone();
    }

    /// The most replicas that were promised a place at one time, so far.
    pub fn promised(&self) -> usize {
        self.notes.lock().ledger.promised()
    }

    /// Ends it. What must never be, and was: an error that lists it.
    pub fn finish(self, audit_log: &Path) -> Result<Seen> {
        self.machines.stop();
        let mut inner = self.notes.lock();
        let unclaimed = inner.ledger.unclaimed();
        let (writes, beside_the_leader) = leaders::writes_beside_the_leader(audit_log)?;
        inner.seen.writes = writes;
        let violations: Vec<&String> = inner.violations.iter().chain(&unclaimed).chain(&beside_the_leader).collect();
        if !violations.is_empty() {
            bail!("the observer saw what must never be: {violations:#?}");
        }
        Ok(inner.seen.clone())
    }
}

async fn watch<K>(api: Api<K>, notes: Notes, take_in: fn(&Notes, Event<K>))
where
    K: Resource<DynamicType = ()> + Clone + DeserializeOwned + std::fmt::Debug + Send + 'static,
{
    let events = watcher(api, Config::default()).default_backoff();
    pin_mut!(events);
    while let Some(event) = events.next().await {
        // An API server that is away for a while is part of what is tested.
        if let Ok(event) = event {
            take_in(&notes, event);
        }
    }
}
