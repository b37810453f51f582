//! The watches that feed the assumed state. They begin with a term of leadership, so its first decision is made on lists that no cache answered.

use std::fmt::Debug;

use futures::{StreamExt, pin_mut};
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{Node, Pod, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::api::scheduling::v1::PriorityClass;
use kube::runtime::WatchStreamExt;
use kube::runtime::watcher::{Config, Event, watcher};
use kube::{Api, Client, Resource, ResourceExt};
use serde::de::DeserializeOwned;
use stowage_crds::{ModelDeployment, ModelNode, names};
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use crate::model_deployment::validate::Origin;
use crate::state::{HeaderRead, State};

/// Something that may change what is decided.
// One at a time goes through a channel.
#[allow(clippy::large_enum_variant)]
pub enum Change {
    Deployment(Event<ModelDeployment>),
    ModelNode(Event<ModelNode>),
    Node(Event<Node>),
    Lease(Event<Lease>),
    Service(Event<Service>),
    Slice(Event<EndpointSlice>),
    Pod(Event<Pod>),
    PriorityClass(Event<PriorityClass>),
    Header(Origin, HeaderRead),
    /// Of a replica whose agent is silent, by its assignment's uid.
    Answer {
        uid: String,
        serves: bool,
    },
}

impl State {
    /// Takes in a change; says whether anything is different now.
    pub fn take_in(&mut self, change: Change) -> bool {
        match change {
            Change::Deployment(event) => self.deployments.take_in(event),
            Change::ModelNode(event) => self.model_nodes.take_in(event),
            Change::Node(event) => self.nodes.take_in(event),
            Change::Lease(event) => self.leases.take_in(event),
            Change::Service(event) => self.services.take_in(event),
            Change::Slice(event) => self.slices.take_in(event),
            Change::Pod(event) => self.pods.take_in(event),
            Change::PriorityClass(event) => self.priority_classes.take_in(event),
            Change::Answer { uid, serves: true } => self.unanswering.remove(&uid),
            Change::Answer { uid, serves: false } => self.unanswering.insert(uid),
            Change::Header(origin, read) => {
                let news = self.headers.get(&origin) != Some(&read);
                // From the moment at which its commit is written down, it is asked for by that.
                if let Ok(model) = &read {
                    self.headers.insert(origin.clone().at(&model.source.commit), read.clone());
                }
                self.headers.insert(origin, read);
                news
            }
        }
    }
}

/// Starts all watches; dropping what is returned ends them. `pods`: whether workers are in Pods.
pub fn start(client: &Client, system_namespace: &str, pods: bool, changes: &mpsc::Sender<Change>) -> JoinSet<()> {
    let mut watches = JoinSet::new();
    let ours = Config::default().labels(names::MODEL_DEPLOYMENT_LABEL);
    let slices = Config::default().labels(&format!("endpointslice.kubernetes.io/managed-by={}", names::ENDPOINT_SLICE_MANAGER));
    let leases = Config::default().labels(names::NODE_LEASE_LABEL);
    watches.spawn(watch(Api::all(client.clone()), Config::default(), Change::Deployment, changes.clone()));
    watches.spawn(watch(Api::all(client.clone()), Config::default(), Change::ModelNode, changes.clone()));
    watches.spawn(watch(Api::all(client.clone()), Config::default(), Change::Node, changes.clone()));
    watches.spawn(watch(Api::namespaced(client.clone(), system_namespace), leases, Change::Lease, changes.clone()));
    watches.spawn(watch(Api::all(client.clone()), ours, Change::Service, changes.clone()));
    watches.spawn(watch(Api::all(client.clone()), slices, Change::Slice, changes.clone()));
    watches.spawn(watch(Api::all(client.clone()), Config::default(), Change::PriorityClass, changes.clone()));
    if pods {
        let workers = Config::default().labels(names::ASSIGNMENT_LABEL);
        watches.spawn(watch(Api::namespaced(client.clone(), system_namespace), workers, Change::Pod, changes.clone()));
    }
    watches
}

async fn watch<K>(api: Api<K>, config: Config, wrap: fn(Event<K>) -> Change, changes: mpsc::Sender<Change>)
where
    K: Resource<DynamicType = ()> + Clone + DeserializeOwned + Debug + Send + 'static,
{
    // Nobody reads who owns which field, and it is the larger part of some objects.
    let events = watcher(api, config).default_backoff().modify(|object| object.managed_fields_mut().clear());
    pin_mut!(events);
    while let Some(event) = events.next().await {
        match event {
            Ok(event) => {
                if changes.send(wrap(event)).await.is_err() {
                    return;
                }
            }
            Err(error) => tracing::warn!(kind = %K::kind(&()), "watching: {error}"),
        }
    }
}
