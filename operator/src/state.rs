//! The assumed state: everything that decisions are made on.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{Node, Pod, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::api::scheduling::v1::PriorityClass;
use k8s_openapi::jiff::Timestamp;
use stowage_crds::model_deployment::ResolvedSource;
use stowage_crds::model_node::ModelDeploymentReference;
use stowage_crds::{ModelDeployment, ModelNode, names};
use stowage_placement::{Bytes, Defaults, ModelSummary, Refusal};

use crate::cache::{Cache, Key};
use crate::clock::after;
use crate::heartbeats::Heartbeats;
use crate::in_flight::InFlight;
use crate::model_deployment::status::progress;
use crate::model_deployment::validate::{Origin, Wanted};
use crate::step::Item;
use crate::workers;

/// What was read of a model file behind a URL, or why it could not be read.
pub type HeaderRead = Result<Arc<RemoteModel>, Refusal>;

/// A model file behind a URL.
#[derive(Clone, Debug, PartialEq)]
pub struct RemoteModel {
    pub summary: ModelSummary,
    pub source: ResolvedSource,
}

/// A refusal this long ago no longer counts towards those in a row.
const REMEMBERED_SECONDS: i64 = 600;

#[derive(Default)]
pub struct State {
    pub deployments: Cache<ModelDeployment>,
    pub model_nodes: Cache<ModelNode>,
    pub nodes: Cache<Node>,
    /// The agents', in the system namespace.
    pub leases: Cache<Lease>,
    pub heartbeats: Heartbeats,
    /// Those that belong to ModelDeployments.
    pub services: Cache<Service>,
    pub slices: Cache<EndpointSlice>,
    pub priority_classes: Cache<PriorityClass>,
    /// Of workers, where they are in Pods of their own.
    pub pods: Cache<Pod>,
    /// What these have in common; `None` where agents start workers themselves.
    pub workers: Option<Arc<workers::Settings>>,
    /// Of models that are read from elsewhere than a node's disk.
    pub headers: BTreeMap<Origin, HeaderRead>,
    /// Assignments, by uid, of replicas that were asked whether they serve, since their agents are silent, and did not answer.
    pub unanswering: BTreeSet<String>,
    pub system_namespace: String,
    /// What is assumed of devices of which neither admin nor agent says otherwise.
    pub defaults: Defaults,
    /// Beside what is known: what is being written.
    pub in_flight: InFlight,
    /// How long a GPU must have had room before a replica moves there, in seconds.
    pub move_up_after: i64,
    /// What this leader remembers beside what is written down; losing it costs time, never correctness.
    pub memory: Memory,
}

#[derive(Default)]
pub struct Memory {
    /// By the ModelDeployment's uid: the last time that an agent refused a replica of it.
    pub refusals: BTreeMap<String, Refused>,
    /// By the ModelDeployment's uid: since when a GPU has had room for a replica of it that runs on CPU.
    pub room_above: BTreeMap<String, Timestamp>,
    /// Writes that the API server rejects are not tried again and again.
    pub rejected: BTreeMap<Item, Rejected>,
}

/// An agent refused a replica; until when no place is sought for it.
#[derive(Clone, Debug, PartialEq)]
pub struct Refused {
    pub revision: String,
    pub times: u32,
    pub until: Timestamp,
    pub refusal: Refusal,
    /// Times that memory ran out for a replica of this revision.
    pub out_of_memory: u32,
    /// Host memory that one was seen to take beyond what was planned.
    pub beyond_plan: Bytes,
}

impl Refused {
    /// Until when this refusal makes the next one the next in a row.
    pub fn remembered_until(&self) -> Timestamp {
        after(self.until, REMEMBERED_SECONDS)
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rejected {
    /// What the API server said.
    pub message: String,
    pub times: u32,
    pub until: Timestamp,
}

impl State {
    /// Whether every list came through, so that what is not here does not exist.
    pub fn is_synced(&self) -> bool {
        let objects = self.deployments.is_synced() && self.model_nodes.is_synced() && self.nodes.is_synced();
        let ours = self.services.is_synced() && self.slices.is_synced();
        let pods = self.workers.is_none() || self.pods.is_synced();
        objects && ours && pods && self.leases.is_synced() && self.priority_classes.is_synced()
    }

    /// The ModelDeployment that is meant: one of the same name that was made later is another one, and one that is being deleted is as good as gone.
    pub fn deployment(&self, reference: &ModelDeploymentReference) -> Option<&Arc<ModelDeployment>> {
        let key = Key::new(&reference.namespace, &reference.name);
        self.deployments.get(&key).filter(|found| is_live(found) && found.metadata.uid.as_deref() == Some(&reference.uid))
    }

    pub fn model_node(&self, name: &str) -> Option<&Arc<ModelNode>> {
        self.model_nodes.get(&Key::cluster(name))
    }

    pub fn node(&self, name: &str) -> Option<&Arc<Node>> {
        self.nodes.get(&Key::cluster(name))
    }

    /// Of the ModelDeployment's priorityClassName, or where it names none, of the class that is the default for all; 0 where there is none. `None`: there is
    /// no such class.
    pub fn priority(&self, deployment: &ModelDeployment) -> Option<i32> {
        match deployment.spec.priority_class_name.as_str() {
            "" => {
                let classes = self.priority_classes.iter().map(|(_, class)| class);
                // Where several are, Kubernetes takes the lowest.
                Some(classes.filter(|class| class.global_default == Some(true)).filter_map(|class| class.value).min().unwrap_or(0))
            }
            name => self.priority_classes.get(&Key::cluster(name)).and_then(|class| class.value),
        }
    }

    /// What agents refused of the revision that is wanted.
    pub fn refused(&self, wanted: &Wanted) -> Option<&Refused> {
        self.memory.refusals.get(&wanted.uid).filter(|refused| refused.revision == wanted.revision)
    }

    /// Forgets what was remembered of ModelDeployments that are gone.
    pub fn forget_the_gone(&mut self) {
        let State { deployments, model_nodes, memory, .. } = self;
        let present: BTreeSet<&str> = deployments.iter().filter_map(|(_, deployment)| deployment.metadata.uid.as_deref()).collect();
        memory.refusals.retain(|uid, _| present.contains(uid.as_str()));
        memory.room_above.retain(|uid, _| present.contains(uid.as_str()));
        memory.rejected.retain(|item, _| match item {
            Item::Deployment(key) | Item::Endpoints(key) => deployments.get(key).is_some(),
            Item::NodeMembership(_) | Item::Promises(_) => true,
            Item::Worker(uid) => model_nodes.iter().any(|(_, node)| node.spec.assignments.iter().any(|assignment| assignment.uid == *uid)),
        });
    }

    /// Until when the node's agent counts as alive; `None` where it never reported.
    pub fn ready_until(&self, name: &str) -> Option<Timestamp> {
        let key = Key::new(&self.system_namespace, &names::node_lease(name));
        self.heartbeats.alive_until(self.leases.get(&key)?, &key)
    }

    /// Whether the node is there and its agent alive.
    pub fn is_ready(&self, name: &str, now: Timestamp) -> bool {
        self.node(name).is_some() && self.ready_until(name).is_some_and(|until| now < until)
    }

    /// Whether the node takes nothing new: `kubectl cordon` and `kubectl drain` say so.
    pub fn is_cordoned(&self, name: &str) -> bool {
        self.node(name).is_some_and(|node| node.spec.as_ref().is_some_and(|spec| spec.unschedulable == Some(true)))
    }

    pub fn ready_nodes(&self, now: Timestamp) -> BTreeSet<String> {
        let names = self.model_nodes.iter().map(|(key, _)| key.name.clone());
        names.filter(|name| self.is_ready(name, now)).collect()
    }

    /// When time alone changes something that decisions depend on, if nothing else happens before.
    pub fn next_deadline(&self, now: Timestamp) -> Option<Timestamp> {
        let leases = self.model_nodes.iter().filter_map(|(key, _)| self.ready_until(&key.name));
        let refusals = self.memory.refusals.values().flat_map(|refused| [refused.until, refused.remembered_until()]);
        let rejected = self.memory.rejected.values().map(|rejected| rejected.until);
        let releases = self.model_nodes.iter().flat_map(|(_, node)| &node.spec.assignments).filter_map(crate::ledger::freed_by);
        let moves = self.memory.room_above.values().map(|since| after(*since, self.move_up_after));
        let stalls = self.deployments.iter().filter_map(|(_, deployment)| progress::deadline(deployment));
        let ended = self.pods.iter().map(|(_, pod)| pod).filter(|pod| workers::story::has_ended(pod));
        let retries = ended.filter_map(|pod| workers::step::retry_at(pod));
        let without_room = self.pods.iter().filter_map(|(_, pod)| workers::story::gives_up_at(pod));
        let retries = retries.chain(without_room);
        leases.chain(refusals).chain(rejected).chain(releases).chain(moves).chain(stalls).chain(retries).filter(|time| *time > now).min()
    }
}

/// Whether a ModelDeployment is to be acted for.
pub fn is_live(deployment: &ModelDeployment) -> bool {
    deployment.metadata.deletion_timestamp.is_none()
}
