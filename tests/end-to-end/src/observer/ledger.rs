//! Promises and claims, version after version.

use std::collections::{BTreeMap, BTreeSet};

use kube::ResourceExt;
use kube::runtime::watcher::Event;
use stowage_crds::model_deployment::ReplicaState;
use stowage_crds::model_node::{DeviceBackend, DeviceStatus, ReplicaStatus};
use stowage_crds::{ModelDeployment, ModelNode};
use stowage_placement::Bytes;

/// A ModelDeployment's uid and the name of one of its replicas.
type Replica = (String, String);

#[derive(Default)]
pub(super) struct Ledger {
    nodes: BTreeMap<String, ModelNode>,
    /// What a list brings, until it is whole.
    listed: BTreeMap<String, ModelNode>,
    /// On which node an assignment was ever promised, and for which replica.
    promised: BTreeMap<String, (String, Replica)>,
    /// Assignments that were ever claimed in a ModelDeployment's status.
    claimed: BTreeSet<String>,
    deployments_listed: bool,
    /// Promises that stood when ModelDeployments were listed anew: their claims may have come and gone between two watches.
    unwatched: BTreeSet<String>,
    most_promised: usize,
}

impl Ledger {
    pub fn take_in_node(&mut self, event: Event<ModelNode>) -> Vec<String> {
        match event {
            Event::Apply(node) => drop(self.nodes.insert(node.name_any(), node)),
            Event::Delete(node) => drop(self.nodes.remove(&node.name_any())),
            Event::Init => self.listed.clear(),
            Event::InitApply(node) => drop(self.listed.insert(node.name_any(), node)),
            Event::InitDone => self.nodes = std::mem::take(&mut self.listed),
        }
        let mut found: Vec<String> = self.nodes.values().flat_map(overfull).collect();
        found.extend(self.twice());
        found.extend(self.moved());
        let promised = self.nodes.values().map(|node| node.spec.assignments.len()).sum();
        self.most_promised = self.most_promised.max(promised);
        found
    }

    pub fn take_in_deployment(&mut self, event: Event<ModelDeployment>) -> Vec<String> {
        let deployment = match event {
            Event::Apply(deployment) | Event::InitApply(deployment) => deployment,
            Event::InitDone => {
                self.is_listed();
                return Vec::new();
            }
            Event::Init | Event::Delete(_) => return Vec::new(),
        };
        let mut replicas = BTreeSet::new();
        let mut found = Vec::new();
        for placement in deployment.status.iter().flat_map(|status| &status.placements) {
            self.claimed.insert(placement.assignment_uid.clone());
            if !replicas.insert(&placement.replica) {
                found.push(format!("{} claims two places at once", placement.replica));
            }
        }
        found
    }

    fn is_listed(&mut self) {
        if std::mem::replace(&mut self.deployments_listed, true) {
            self.unwatched.extend(self.promised.keys().filter(|uid| !self.claimed.contains(*uid)).cloned());
        }
    }

    pub fn promised(&self) -> usize {
        self.most_promised
    }

    /// Promises that no claim ever stood behind, as far as both were seen.
    pub fn unclaimed(&self) -> Vec<String> {
        let unclaimed = self.promised.iter().filter(|(uid, _)| !self.claimed.contains(*uid) && !self.unwatched.contains(*uid));
        unclaimed
            .map(|(uid, (node, (_, replica)))| format!("{replica} was promised a place on {node} ({uid}) and never claimed it"))
            .collect()
    }

    /// Replicas that have more than one promise at this moment.
    fn twice(&self) -> Vec<String> {
        let mut places: BTreeMap<(&str, &str), &str> = BTreeMap::new();
        let mut found = Vec::new();
        for (name, node) in &self.nodes {
            for assignment in &node.spec.assignments {
                let replica = (assignment.model_deployment.uid.as_str(), assignment.replica.as_str());
                if let Some(other) = places.insert(replica, name) {
                    found.push(format!("{} is promised on {other} and on {name}", assignment.replica));
                }
            }
        }
        found
    }

    /// Assignments that are promised somewhere else, or for something else, than they once were.
    fn moved(&mut self) -> Vec<String> {
        let mut found = Vec::new();
        for (name, node) in &self.nodes {
            for assignment in &node.spec.assignments {
                let replica = (assignment.model_deployment.uid.clone(), assignment.replica.clone());
                let now = (name.clone(), replica);
                let first = self.promised.entry(assignment.uid.clone()).or_insert_with(|| now.clone());
                if *first != now {
                    found.push(format!("assignment {} was {first:?} and is {now:?}", assignment.uid));
                }
            }
        }
        found
    }
}

/// Devices of the node with more promised or held than they have.
fn overfull(node: &ModelNode) -> Vec<String> {
    // A lost GPU has nothing, and what was promised there is on its way elsewhere.
    let devices = node.status.iter().flat_map(|status| &status.devices).filter(|device| device.backend != DeviceBackend::None);
    devices.filter_map(|device| overfull_device(node, device)).collect()
}

fn overfull_device(node: &ModelNode, device: &DeviceStatus) -> Option<String> {
    let replicas = node.status.iter().flat_map(|status| &status.replicas).filter(|replica| replica.state != ReplicaState::Gone);
    let mut bytes: BTreeMap<&str, (Bytes, Bytes)> = BTreeMap::new();
    for assignment in &node.spec.assignments {
        let on_device = assignment.plan.devices.iter().filter(|on| on.id == device.uuid);
        bytes.entry(&assignment.uid).or_default().0 = on_device.map(|on| on.total_bytes).sum();
    }
    for replica in replicas {
        bytes.entry(&replica.uid).or_default().1 = held(replica, &device.uuid);
    }
    let sum: Bytes = bytes.values().map(|(promised, held)| *promised.max(held)).sum();
    let name = node.name_any();
    (sum > device.total_bytes)
        .then(|| format!("{} of {name} has {} and {sum} are promised or held: {bytes:?}", device.uuid, device.total_bytes))
}

fn held(replica: &ReplicaStatus, device: &str) -> Bytes {
    replica.devices.iter().filter(|on| on.id == device).filter_map(|on| on.measured_bytes).sum()
}
