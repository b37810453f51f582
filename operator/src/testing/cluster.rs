//! A cluster in memory: an API server that checks versions, agents that carry out what is promised, and an observer that looks at every write.

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::api::core::v1::Service;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::ResourceExt;
use kube::runtime::watcher::Event;
use stowage_crds::model_deployment::{DeviceBytes, ReplicaState};
use stowage_crds::model_node::{AssignmentState, ModelNodeStatus, ReplicaStatus};
use stowage_crds::{ModelDeployment, ModelNode};
use stowage_placement::{Bytes, Reason};

use crate::cache::Key;
use crate::model_deployment::apply::Answer;
use crate::model_node::promises::WITHDRAWN_ANNOTATION;
use crate::step::{Promises, Write};

/// Objects of one kind, with all that ever happened to them for watches to read.
pub struct Store<K> {
    pub objects: BTreeMap<Key, K>,
    pub log: Vec<Event<K>>,
}

impl<K> Default for Store<K> {
    fn default() -> Store<K> {
        Store { objects: BTreeMap::new(), log: Vec::new() }
    }
}

impl<K: ResourceExt + Clone + PartialEq> Store<K> {
    /// Writes the object; one that is as it was keeps its version, as on a real API server.
    fn put(&mut self, revision: &mut u64, mut object: K) -> K {
        let key = Key::of(&object);
        if let Some(known) = self.objects.get(&key) {
            object.meta_mut().resource_version = known.resource_version();
            if object == *known {
                return object;
            }
        }
        *revision += 1;
        object.meta_mut().resource_version = Some(revision.to_string());
        self.objects.insert(key, object.clone());
        self.log.push(Event::Apply(object.clone()));
        object
    }

    fn remove(&mut self, revision: &mut u64, key: &Key) {
        if let Some(mut object) = self.objects.remove(key) {
            *revision += 1;
            object.meta_mut().resource_version = Some(revision.to_string());
            self.log.push(Event::Delete(object));
        }
    }
}

#[derive(Default)]
pub struct Cluster {
    revision: u64,
    pub deployments: Store<ModelDeployment>,
    pub model_nodes: Store<ModelNode>,
    pub services: Store<Service>,
    pub slices: Store<EndpointSlice>,
    made: u64,
    /// Assignments that were removed, and claims that were withdrawn: their uids must never be promised again.
    ended: BTreeSet<String>,
}

#[derive(Debug)]
pub struct Conflict;

impl Cluster {
    pub fn with_nodes(nodes: impl IntoIterator<Item = ModelNode>) -> Cluster {
        let mut cluster = Cluster { revision: 100, ..Cluster::default() };
        for node in nodes {
            cluster.model_nodes.put(&mut cluster.revision, node);
        }
        cluster
    }

    pub fn apply_deployment(&mut self, name: &str, change: impl FnOnce(&mut ModelDeployment)) {
        let key = Key::new("default", name);
        let mut deployment = self.deployments.objects.get(&key).cloned().unwrap_or_else(|| {
            self.made += 1;
            let mut new = super::deployment(name);
            new.metadata.uid = Some(format!("uid-{name}-{}", self.made));
            new
        });
        change(&mut deployment);
        self.deployments.put(&mut self.revision, deployment);
    }

    pub fn delete_deployment(&mut self, name: &str) {
        self.deployments.remove(&mut self.revision, &Key::new("default", name));
    }

    /// Makes a write, unless it was planned on a version that is no longer.
    pub fn send(&mut self, write: &Write) -> Result<Answer, Conflict> {
        let answer = match write {
            Write::Status { key, version, status } => {
                let known = self.deployments.objects.get(key).ok_or(Conflict)?;
                is_version(known, version)?;
                let status = Some((**status).clone());
                let written = self.deployments.put(&mut self.revision, ModelDeployment { status, ..known.clone() });
                Answer::Deployment(Box::new(written))
            }
            Write::Promises(promises) => Answer::ModelNode(Box::new(self.promise(promises)?)),
            Write::Service { service, .. } => Answer::Service(Box::new(self.services.put(&mut self.revision, (**service).clone()))),
            Write::Slice { slice, .. } => Answer::Slice(Box::new(self.slices.put(&mut self.revision, (**slice).clone()))),
            Write::RemoveSlice { key, .. } => {
                self.slices.remove(&mut self.revision, key);
                Answer::SliceRemoved(key.clone())
            }
            Write::MakeModelNode { .. } | Write::RemoveModelNode { .. } => return Err(Conflict),
        };
        self.check();
        Ok(answer)
    }

    fn promise(&mut self, promises: &Promises) -> Result<ModelNode, Conflict> {
        let Promises { node, version, assignments, withdrawn } = promises;
        let known = self.model_nodes.objects.get(&Key::cluster(node)).ok_or(Conflict)?;
        is_version(known, version)?;
        let kept: BTreeSet<&str> = assignments.iter().map(|assignment| assignment.uid.as_str()).collect();
        for assignment in known.spec.assignments.iter().filter(|assignment| !kept.contains(assignment.uid.as_str())) {
            let held = crate::ledger::replica(known, &assignment.uid);
            let gone = held.is_some_and(|replica| replica.state == ReplicaState::Gone);
            assert!(gone, "{} was dropped from {node} before its agent reported it gone", assignment.replica);
            self.ended.insert(assignment.uid.clone());
        }
        self.ended.extend(withdrawn.split(',').map(str::to_owned));
        let mut node = known.clone();
        node.spec.assignments = assignments.clone();
        node.metadata.annotations = Some(BTreeMap::from([(WITHDRAWN_ANNOTATION.to_owned(), withdrawn.clone())]));
        Ok(self.model_nodes.put(&mut self.revision, node))
    }

    /// One thing that the agent of a node does next; says whether there was any. `refuses` is whether it refuses what it has not begun.
    pub fn agent_acts(&mut self, name: &str, refuses: bool) -> bool {
        let mut node = self.model_nodes.objects[&Key::cluster(name)].clone();
        let mut status = node.status.take().unwrap_or_default();
        let acted = act(&node, &mut status, refuses);
        node.status = Some(status);
        self.model_nodes.put(&mut self.revision, node);
        self.check();
        acted
    }

    /// No device has more promised or held than it has, no replica is promised in two places, and no assignment comes back.
    pub fn check(&self) {
        let mut places: BTreeMap<(&str, &str), &str> = BTreeMap::new();
        for node in self.model_nodes.objects.values() {
            let name = node.metadata.name.as_deref().unwrap();
            for device in &node.status.as_ref().unwrap().devices {
                let holdings = crate::ledger::Ledger::new(node).holdings(&device.uuid);
                let sum: Bytes = holdings.into_iter().map(|(promised, held)| promised.max(held)).sum();
                assert!(sum <= device.total_bytes, "{name} has {} and {sum} are promised or held", device.total_bytes);
            }
            for assignment in &node.spec.assignments {
                assert!(!self.ended.contains(&assignment.uid), "{} came back on {name}", assignment.uid);
                let replica = (assignment.model_deployment.uid.as_str(), assignment.replica.as_str());
                if let Some(other) = places.insert(replica, name) {
                    panic!("{} is promised on {other} and on {name}", assignment.replica);
                }
            }
        }
    }
}

fn is_version(object: &impl ResourceExt, version: &str) -> Result<(), Conflict> {
    if object.resource_version().as_deref() == Some(version) { Ok(()) } else { Err(Conflict) }
}

fn act(node: &ModelNode, status: &mut ModelNodeStatus, refuses: bool) -> bool {
    let orphan = |replica: &ReplicaStatus| node.spec.assignments.iter().all(|assignment| assignment.uid != replica.uid);
    if let Some(index) = status.replicas.iter().position(orphan) {
        status.replicas.remove(index);
        return true;
    }
    for assignment in &node.spec.assignments {
        let position = status.replicas.iter().position(|replica| replica.uid == assignment.uid);
        let index = position.unwrap_or(status.replicas.len());
        if position.is_none() {
            let new = ReplicaStatus { uid: assignment.uid.clone(), replica: assignment.replica.clone(), ..ReplicaStatus::default() };
            status.replicas.push(new);
        }
        let replica = &mut status.replicas[index];
        let next = match (assignment.state, replica.state) {
            (_, ReplicaState::Gone) => continue,
            (AssignmentState::Serve, ReplicaState::Pending) if refuses => ReplicaState::Refused,
            (AssignmentState::Serve, ReplicaState::Pending) => ReplicaState::Loading,
            (AssignmentState::Serve, ReplicaState::Loading) => ReplicaState::Ready,
            (AssignmentState::Serve, _) => continue,
            (_, ReplicaState::Ready | ReplicaState::Loading) => ReplicaState::Draining,
            (_, _) => ReplicaState::Gone,
        };
        replica.state = next;
        let holds = matches!(next, ReplicaState::Loading | ReplicaState::Ready | ReplicaState::Draining);
        let measured = |bytes| holds.then_some(bytes);
        let devices = assignment.plan.devices.iter();
        replica.devices = devices
            .map(|on| DeviceBytes { id: on.id.clone(), predicted_bytes: on.total_bytes, measured_bytes: measured(on.total_bytes) })
            .collect();
        replica.reason = (next == ReplicaState::Refused).then_some(Reason::DeviceChanged);
        replica.address = if next == ReplicaState::Ready { "192.0.2.7:40001".into() } else { String::new() };
        return true;
    }
    false
}
