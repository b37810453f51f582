//! A cluster in memory: an API server that checks versions, agents that carry out what is promised, and an observer that looks at every write.

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::api::core::v1::{Node, Pod, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::ResourceExt;
use kube::runtime::watcher::Event;
use stowage_crds::model_deployment::PlacementState;
use stowage_crds::model_node::{Assignment, AssignmentState};
use stowage_crds::{ModelDeployment, ModelNode, ModelNodeSpec};
use stowage_placement::{Bytes, Defaults};

use crate::cache::Key;
use crate::ledger::{Ledger, replica};
use crate::model_deployment::apply::{Answer, Found};
use crate::model_node::promises::WITHDRAWN_ANNOTATION;
use crate::step::{Promises, Target, Write};
use crate::testing::agent::Agent;

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

    /// Makes it where none is known to the writer, changes it where it is as the writer knows it.
    fn put_on(&mut self, revision: &mut u64, version: Option<&str>, object: K) -> Result<K, Conflict> {
        let known = self.objects.get(&Key::of(&object)).and_then(ResourceExt::resource_version);
        if known.as_deref() != version {
            return Err(Conflict);
        }
        Ok(self.put(revision, object))
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
    pub nodes: Store<Node>,
    pub deployments: Store<ModelDeployment>,
    pub model_nodes: Store<ModelNode>,
    pub services: Store<Service>,
    pub slices: Store<EndpointSlice>,
    pub pods: Store<Pod>,
    /// Whether workers are in Pods of their own.
    pub has_worker_pods: bool,
    /// By the names of their nodes.
    pub agents: BTreeMap<String, Agent>,
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
            let name = node.name_any();
            cluster.nodes.put(&mut cluster.revision, super::node(&name));
            cluster.agents.insert(name, Agent::of(&node));
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

    /// Another machine takes the name of this node: whatever ran there is no more, and its ModelNode is of a Node that is gone.
    pub fn replace_node(&mut self, name: &str) {
        self.made += 1;
        let mut node = super::node(name);
        node.metadata.uid = Some(format!("uid-{name}-{}", self.made));
        self.nodes.remove(&mut self.revision, &Key::cluster(name));
        self.nodes.put(&mut self.revision, node);
        self.agent(name).restart_machine();
    }

    pub fn cordon(&mut self, name: &str, cordoned: bool) {
        let mut node = self.nodes.objects[&Key::cluster(name)].clone();
        node.spec.get_or_insert_default().unschedulable = cordoned.then_some(true);
        self.nodes.put(&mut self.revision, node);
    }

    pub fn agent(&mut self, node: &str) -> &mut Agent {
        self.agents.get_mut(node).unwrap()
    }

    /// Assignments there are, on all nodes.
    pub fn promised(&self) -> usize {
        self.model_nodes.objects.values().map(|node| node.spec.assignments.len()).sum()
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
            // An apply on a version: only an object that is there can be another.
            Write::Service { key, version, service } => {
                if let (Some(known), Some(version)) = (self.services.objects.get(key), version) {
                    is_version(known, version)?;
                }
                Answer::Service(Box::new(self.services.put(&mut self.revision, (**service).clone())))
            }
            Write::Slice { version, slice, .. } => {
                Answer::Slice(Box::new(self.slices.put_on(&mut self.revision, version.as_deref(), (**slice).clone())?))
            }
            Write::RemoveSlice { key, version, .. } => {
                if let Some(known) = self.slices.objects.get(key) {
                    is_version(known, version)?;
                }
                self.slices.remove(&mut self.revision, key);
                Answer::SliceRemoved { key: key.clone(), version: version.clone() }
            }
            Write::MakeModelNode { name, node_uid } => Answer::ModelNode(Box::new(self.make_model_node(name, node_uid)?)),
            Write::RemoveModelNode { name, version, .. } => {
                if let Some(known) = self.model_nodes.objects.get(&Key::cluster(name)) {
                    is_version(known, version)?;
                }
                self.model_nodes.remove(&mut self.revision, &Key::cluster(name));
                Answer::ModelNodeRemoved { name: name.clone(), version: version.clone() }
            }
            Write::MakePod { pod, .. } => {
                self.made += 1;
                let mut pod = (**pod).clone();
                pod.metadata.uid = Some(format!("uid-pod-{}", self.made));
                Answer::Pod(Box::new(self.pods.put_on(&mut self.revision, None, pod)?))
            }
            Write::RemovePod { key, uid } => match self.pods.objects.get(key).cloned() {
                None => Answer::PodRemoved { key: key.clone(), uid: uid.clone() },
                Some(pod) if pod.metadata.uid.as_ref() != Some(uid) => return Err(Conflict),
                Some(mut pod) => {
                    pod.metadata.deletion_timestamp = Some(crate::clock::whole_seconds(super::now()));
                    Answer::Pod(Box::new(self.pods.put(&mut self.revision, pod)))
                }
            },
        };
        self.check();
        Ok(answer)
    }

    /// The object as it is now.
    pub fn read(&self, target: &Target) -> Found {
        fn get<K: Clone>(store: &Store<K>, key: &Key) -> Option<Box<K>> {
            store.objects.get(key).cloned().map(Box::new)
        }
        match target {
            Target::Deployment(key) => Found::Deployment(key.clone(), get(&self.deployments, key)),
            Target::ModelNode(name) => Found::ModelNode(Key::cluster(name), get(&self.model_nodes, &Key::cluster(name))),
            Target::Slice(key) => Found::Slice(key.clone(), get(&self.slices, key)),
            Target::Pod(key) => Found::Pod(key.clone(), get(&self.pods, key)),
        }
    }

    fn make_model_node(&mut self, name: &str, node_uid: &str) -> Result<ModelNode, Conflict> {
        self.made += 1;
        let mut node = ModelNode::new(name, ModelNodeSpec::default());
        node.metadata.uid = Some(format!("uid-mnode-{name}-{}", self.made));
        node.metadata.owner_references = super::gpu_node(name, Bytes::ZERO).metadata.owner_references;
        node.metadata.owner_references.iter_mut().flatten().for_each(|owner| owner.uid = node_uid.to_owned());
        self.model_nodes.put_on(&mut self.revision, None, node)
    }

    fn promise(&mut self, promises: &Promises) -> Result<ModelNode, Conflict> {
        let Promises { node, version, assignments, withdrawn } = promises;
        let known = self.model_nodes.objects.get(&Key::cluster(node)).ok_or(Conflict)?;
        is_version(known, version)?;
        let kept: BTreeSet<&str> = assignments.iter().map(|assignment| assignment.uid.as_str()).collect();
        for assignment in known.spec.assignments.iter().filter(|assignment| !kept.contains(assignment.uid.as_str())) {
            let gone = replica(known, &assignment.uid).is_some_and(|replica| replica.state == super::agent::GONE);
            assert!(gone, "{} was dropped from {node} before its agent reported it gone", assignment.replica);
            self.ended.insert(assignment.uid.clone());
        }
        self.ended.extend(withdrawn.split(',').map(str::to_owned));
        for assignment in assignments {
            self.check_change(known, assignment);
        }
        let mut node = known.clone();
        node.spec.assignments = assignments.clone();
        node.metadata.annotations = Some(BTreeMap::from([(WITHDRAWN_ANNOTATION.to_owned(), withdrawn.clone())]));
        Ok(self.model_nodes.put(&mut self.revision, node))
    }

    /// A promise is made only while its claim stands, and taken back only once that was given up; but users may delete what claims at any time.
    fn check_change(&self, node: &ModelNode, now: &Assignment) {
        let owner = &now.model_deployment;
        let deployment = self.deployments.objects.get(&Key::new(&owner.namespace, &owner.name));
        let Some(deployment) = deployment.filter(|found| found.metadata.uid.as_ref() == Some(&owner.uid)) else { return };
        let claim = deployment.status.iter().flat_map(|status| &status.placements).find(|claim| claim.assignment_uid == now.uid);
        let stands = claim.is_some_and(|claim| claim.state != PlacementState::Releasing);
        match node.spec.assignments.iter().find(|before| before.uid == now.uid) {
            None => assert!(claim.is_some(), "{} was promised after its claim was given up", now.replica),
            Some(before) if before.state == AssignmentState::Serve && now.state == AssignmentState::Release => {
                assert!(!stands, "{} was released although its claim stands", now.replica);
            }
            Some(_) => {}
        }
    }

    /// One thing that the agent of a node does next; says whether there was any. `refuses` is whether it refuses what it has not begun.
    pub fn agent_acts(&mut self, name: &str, refuses: bool) -> bool {
        let Some(mut node) = self.model_nodes.objects.get(&Key::cluster(name)).cloned() else { return false };
        let acted = self.agent(name).act(&mut node, refuses);
        self.model_nodes.put(&mut self.revision, node);
        self.check();
        acted
    }

    /// The kubelets end a Pod that is to go; says whether there was any.
    pub fn kubelets_act(&mut self) -> bool {
        let ends = |(key, pod): (&Key, &Pod)| pod.metadata.deletion_timestamp.as_ref().map(|_| key.clone());
        let Some(key) = self.pods.objects.iter().find_map(ends) else { return false };
        self.pods.remove(&mut self.revision, &key);
        true
    }

    /// No device has more promised or held than it has, nor more in use; no replica is promised in two places, and no assignment comes back.
    pub fn check(&self) {
        let mut places: BTreeMap<(&str, &str), &str> = BTreeMap::new();
        for (key, node) in &self.model_nodes.objects {
            let (name, agent) = (key.name.as_str(), &self.agents[&key.name]);
            let holdings = Ledger::new(node, Defaults::default()).holdings(&super::gpu(name));
            let sum: Bytes = holdings.into_iter().map(|(promised, held)| promised.max(held)).sum();
            assert!(sum <= agent.total, "{name} has {} and {sum} are promised or held", agent.total);
            let used = agent.used();
            assert!(used <= agent.total, "{name} has {} and {used} are in use", agent.total);
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
