//! What the rest of the agent sees of a worker.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use stowage_crds::model_deployment::{DeviceBytes, ReplicaState};
use stowage_crds::model_node::{Assignment, ReplicaStatus};
use stowage_engine::MeasuredDevice;
use stowage_placement::{Bytes, Reason};

use super::loaded_file::LoadedFile;

/// Why an assignment is not carried out here: what the gate answers, and what a worker reports.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error, serde::Serialize, serde::Deserialize)]
#[error("{reason}: {message}")]
pub struct Refusal {
    pub reason: Reason,
    pub message: String,
}

impl Refusal {
    pub fn new(reason: Reason, message: impl Into<String>) -> Refusal {
        Refusal { reason, message: message.into() }
    }
}

/// One replica on this node, from its assignment until the operator has dropped that.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct WorkerView {
    /// As it goes into ModelNode.status.
    pub status: ReplicaStatus,
    /// What was asked for; `None` where the agent was told to release what it never knew.
    pub assignment: Option<Assignment>,
    /// Whether its process is there.
    pub runs: bool,
    /// The process's number, where it can be seen: of one in a Pod of its own it may not be.
    pub pid: Option<u32>,
    /// What that says itself that it takes of memory.
    pub resident: Bytes,
    /// What it holds on each device, as it reported.
    pub held: Vec<MeasuredDevice>,
    /// What it was loaded from.
    pub file: Option<LoadedFile>,
    /// Where its HTTP API listens, for the node's own door. `status.address` is what others are told.
    pub http_address: Option<SocketAddr>,
}

/// All replicas of this node by assignment uid.
pub type Views = BTreeMap<String, WorkerView>;

impl WorkerView {
    /// The first view of an assignment: nothing was done yet.
    pub fn pending(assignment: &Assignment) -> WorkerView {
        let mut view = WorkerView { assignment: Some(assignment.clone()), ..WorkerView::default() };
        view.status.uid.clone_from(&assignment.uid);
        view.status.replica.clone_from(&assignment.replica);
        view.status.processor.clone_from(&assignment.plan.processor);
        view.status.num_ctx = assignment.request.num_ctx;
        view.holds(Vec::new());
        view
    }

    /// The view of an assignment that is asked to go and of which nothing is there.
    pub fn gone(uid: &str) -> WorkerView {
        let status = ReplicaStatus { uid: uid.to_owned(), state: ReplicaState::Gone, ..ReplicaStatus::default() };
        WorkerView { status, ..WorkerView::default() }
    }

    /// Writes what the worker holds, and beside it what the plan said.
    pub(super) fn holds(&mut self, held: Vec<MeasuredDevice>) {
        let Some(assignment) = &self.assignment else { return };
        let measured = |id: &str| held.iter().find(|device| device.id == id).map(MeasuredDevice::total);
        let planned = assignment.plan.devices.iter();
        self.status.devices = planned
            .map(|device| DeviceBytes { id: device.id.clone(), predicted_bytes: device.total_bytes, measured_bytes: measured(&device.id) })
            .collect();
        self.held = held;
    }

    /// Writes how far it is. `percent` is of the download or the load.
    pub(super) fn state(&mut self, state: ReplicaState, percent: Option<u32>, why: Option<Refusal>) {
        self.status.state = state;
        self.status.percent = percent;
        (self.status.reason, self.status.message) = match why {
            Some(why) => (Some(why.reason), why.message),
            None => (None, String::new()),
        };
    }

    /// No process is left, so nothing is held and nothing answers.
    pub(super) fn ended(&mut self) {
        (self.runs, self.pid, self.resident) = (false, None, Bytes::ZERO);
        self.status.pod_uid.clear();
        self.file = None;
        self.http_address = None;
        self.status.address.clear();
        self.status.speed = None;
        self.holds(Vec::new());
    }

    pub fn is_gone(&self) -> bool {
        self.status.state == ReplicaState::Gone
    }

    pub fn is_ready(&self) -> bool {
        self.status.state == ReplicaState::Ready
    }
}
