//! An agent in memory, with one GPU that others use too: it carries out what is assigned, a thing at a time, and publishes what it sees.

use stowage_crds::ModelNode;
use stowage_crds::model_deployment::{DeviceBytes, ReplicaState};
use stowage_crds::model_node::{Assignment, AssignmentState, DeviceBackend, ModelNodeStatus, ReplicaStatus};
use stowage_placement::{Bytes, Defaults, HOST, Reason};

pub const GONE: ReplicaState = ReplicaState::Gone;

pub struct Agent {
    /// Of its GPU.
    pub total: Bytes,
    /// A dead one does nothing; its workers live on.
    pub alive: bool,
    /// Why it refuses what it refuses.
    pub refuses_for: Reason,
    /// Its GPU can be used no more.
    pub lost: bool,
    /// Its workers take only so many percent of what was planned.
    pub percent_taken: u64,
    /// What processes that are no workers really use, whatever was published of it.
    others: Bytes,
    /// Those that are there, and those of which something is still to be said.
    replicas: Vec<ReplicaStatus>,
    /// What it says of the node, but for the figures.
    said: ModelNodeStatus,
}

impl Agent {
    pub fn of(node: &ModelNode) -> Agent {
        let said = node.status.clone().unwrap_or_default();
        Agent {
            total: said.devices[0].total_bytes,
            alive: true,
            refuses_for: Reason::DeviceChanged,
            lost: false,
            percent_taken: 100,
            others: Bytes::ZERO,
            replicas: Vec::new(),
            said,
        }
    }

    /// What is really in use on the GPU.
    pub fn used(&self) -> Bytes {
        self.held().saturating_add(self.others)
    }

    fn held(&self) -> Bytes {
        self.replicas.iter().map(measured).sum()
    }

    /// Others come to use so much, or as much as there is.
    pub fn others_use(&mut self, bytes: Bytes) {
        self.others = bytes.min(self.total.saturating_sub(self.held()));
    }

    /// No process is left.
    pub fn restart_machine(&mut self) {
        self.replicas.clear();
        self.others = Bytes::ZERO;
    }

    /// Does one thing and publishes; says whether there was any.
    pub fn act(&mut self, node: &mut ModelNode, refuses: bool) -> bool {
        if !self.alive {
            return false;
        }
        let acted = self.end_orphan(node) || self.go_on(node, refuses);
        let published = node.status.as_ref().and_then(|status| status.devices.first());
        let moved = published.is_none_or(|published| {
            (published.backend == DeviceBackend::None) != self.lost
                || published.used_by_others_bytes.0.abs_diff(self.others.0) > Defaults::default().margin(self.total).0
        });
        if acted || moved {
            node.status = Some(self.status());
        }
        acted || moved
    }

    fn status(&self) -> ModelNodeStatus {
        let mut status = ModelNodeStatus { replicas: self.replicas.clone(), ..self.said.clone() };
        status.devices[0].used_by_others_bytes = self.others;
        status.devices[0].free_bytes = self.total.saturating_sub(self.used());
        if self.lost {
            let device = &mut status.devices[0];
            (device.backend, device.message) = (DeviceBackend::None, "it is lost".into());
            (device.total_bytes, device.free_bytes) = (Bytes::ZERO, Bytes::ZERO);
        }
        status
    }

    fn end_orphan(&mut self, node: &ModelNode) -> bool {
        let orphan = |replica: &ReplicaStatus| node.spec.assignments.iter().all(|assignment| assignment.uid != replica.uid);
        let Some(index) = self.replicas.iter().position(orphan) else { return false };
        match self.replicas[index].state {
            ReplicaState::Loading | ReplicaState::Ready => self.replicas[index].state = ReplicaState::Draining,
            _ => drop(self.replicas.remove(index)),
        }
        true
    }

    /// Brings one assignment a step further.
    fn go_on(&mut self, node: &ModelNode, refuses: bool) -> bool {
        node.spec.assignments.iter().any(|assignment| {
            let position = self.replicas.iter().position(|replica| replica.uid == assignment.uid);
            let index = position.unwrap_or(self.replicas.len());
            if position.is_none() {
                let new = ReplicaStatus { uid: assignment.uid.clone(), replica: assignment.replica.clone(), ..ReplicaStatus::default() };
                self.replicas.push(new);
            }
            match next(assignment.state, self.replicas[index].state, refuses || !self.holds(index, assignment)) {
                Some(state) => {
                    self.enter(index, state, assignment);
                    true
                }
                None => false,
            }
        })
    }

    fn enter(&mut self, index: usize, state: ReplicaState, assignment: &Assignment) {
        let (percent, refuses_for) = (self.percent_taken, self.refuses_for);
        let replica = &mut self.replicas[index];
        replica.state = state;
        let measured = |bytes: Bytes| is_there(state).then_some(Bytes(bytes.0 * percent / 100));
        let devices = assignment.plan.devices.iter();
        replica.devices = devices
            .map(|on| DeviceBytes { id: on.id.clone(), predicted_bytes: on.total_bytes, measured_bytes: measured(on.total_bytes) })
            .collect();
        replica.reason = (state == ReplicaState::Refused).then_some(refuses_for);
        replica.address = if state == ReplicaState::Ready { "192.0.2.7:40001".into() } else { String::new() };
    }

    /// Whether the plan holds on the GPU as it is now.
    fn holds(&self, index: usize, assignment: &Assignment) -> bool {
        let others = self.replicas.iter().enumerate().filter(|(other, replica)| *other != index && is_there(replica.state));
        let taken: Bytes = others.map(|(_, replica)| on_gpu(replica).map(|on| on.predicted_bytes).sum::<Bytes>()).sum();
        let wanted: Bytes = assignment.plan.devices.iter().filter(|on| on.id != HOST).map(|on| on.total_bytes).sum();
        [taken, self.others, wanted].into_iter().sum::<Bytes>() <= self.total
    }
}

fn next(wanted: AssignmentState, state: ReplicaState, refuses: bool) -> Option<ReplicaState> {
    match (wanted, state) {
        (_, ReplicaState::Gone) => None,
        (AssignmentState::Serve, ReplicaState::Pending) if refuses => Some(ReplicaState::Refused),
        (AssignmentState::Serve, ReplicaState::Pending) => Some(ReplicaState::Loading),
        (AssignmentState::Serve, ReplicaState::Loading) => Some(ReplicaState::Ready),
        (AssignmentState::Serve, _) => None,
        (_, ReplicaState::Ready | ReplicaState::Loading) => Some(ReplicaState::Draining),
        (_, _) => Some(ReplicaState::Gone),
    }
}

/// Whether it holds bytes.
fn is_there(state: ReplicaState) -> bool {
    matches!(state, ReplicaState::Loading | ReplicaState::Ready | ReplicaState::Draining)
}

fn on_gpu(replica: &ReplicaStatus) -> impl Iterator<Item = &DeviceBytes> {
    replica.devices.iter().filter(|on| on.id != HOST)
}

fn measured(replica: &ReplicaStatus) -> Bytes {
    on_gpu(replica).filter_map(|on| on.measured_bytes).sum()
}
