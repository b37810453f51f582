//! Sends a write to the API server: all that the operator owns of the object, on the version that it was planned on.

use k8s_openapi::api::core::v1::{Node, Pod, Service, ServiceAccount};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use kube::api::{DeleteParams, Patch, PatchParams, PostParams, Preconditions};
use kube::{Api, Client, Resource, ResourceExt};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use stowage_crds::{ModelDeployment, ModelNode, ModelNodeSpec, names, refusal};

use crate::cache::{Key, Revision};
use crate::model_node::promises::WITHDRAWN_ANNOTATION;
use crate::state::State;
use crate::step::{Promises, Target, Write};

/// What the API server has now.
#[derive(Clone, Debug)]
pub enum Answer {
    Deployment(Box<ModelDeployment>),
    ModelNode(Box<ModelNode>),
    Service(Box<Service>),
    Slice(Box<EndpointSlice>),
    Pod(Box<Pod>),
    PodRemoved { key: Key, uid: String },
    ModelNodeRemoved { name: String, version: String },
    SliceRemoved { key: Key, version: String },
}

/// What an uncached read found of an object.
#[derive(Clone, Debug)]
pub enum Found {
    Deployment(Key, Option<Box<ModelDeployment>>),
    ModelNode(Key, Option<Box<ModelNode>>),
    Slice(Key, Option<Box<EndpointSlice>>),
    Pod(Key, Option<Box<Pod>>),
}

#[derive(Debug, thiserror::Error)]
pub enum ApplyError {
    #[error("{}", refusal::told(.0))]
    Api(#[from] kube::Error),
    #[error("a Service {0} exists that is not Stowage's; the ModelDeployment needs another name, or the Service does")]
    ForeignService(Key),
    #[error("there is no ServiceAccount {0}, which the Pods of workers are to go with; the chart makes it")]
    NoServiceAccount(Key),
}

/// What to do about a write that failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Remedy {
    /// The object is not as it was planned on: read it again, and decide again.
    ReadAgain,
    /// The API server will not take it; leave this one for a while.
    LeaveAlone,
    /// The API server is not to be reached, or too busy.
    TryLater,
}

impl ApplyError {
    pub fn remedy(&self) -> Remedy {
        match self {
            ApplyError::ForeignService(_) | ApplyError::NoServiceAccount(_) => Remedy::LeaveAlone,
            ApplyError::Api(kube::Error::Api(status)) => match status.code {
                404 | 409 => Remedy::ReadAgain,
                400 | 403 | 405 | 413 | 415 | 422 => Remedy::LeaveAlone,
                _ => Remedy::TryLater,
            },
            ApplyError::Api(_) => Remedy::TryLater,
        }
    }
}

pub async fn send(client: &Client, write: &Write) -> Result<Answer, ApplyError> {
    match write {
        Write::MakeModelNode { name, node_uid } => {
            let api: Api<ModelNode> = Api::all(client.clone());
            let parameters = PostParams { field_manager: Some(names::OPERATOR_MANAGER.to_owned()), ..PostParams::default() };
            // Not an apply: to a ModelNode that another leader has made since, that would say that nothing is promised there.
            Ok(Answer::ModelNode(Box::new(api.create(&parameters, &new_model_node(name, node_uid)).await?)))
        }
        Write::RemoveModelNode { name, uid, version } => {
            let only = Preconditions { uid: Some(uid.clone()), resource_version: Some(version.clone()) };
            let api: Api<ModelNode> = Api::all(client.clone());
            unless_gone(api.delete(name, &DeleteParams::default().preconditions(only)).await)?;
            Ok(Answer::ModelNodeRemoved { name: name.clone(), version: version.clone() })
        }
        Write::Promises(promises) => {
            let api: Api<ModelNode> = Api::all(client.clone());
            let manager = PatchParams { field_manager: Some(names::OPERATOR_MANAGER.to_owned()), ..PatchParams::default() };
            Ok(Answer::ModelNode(Box::new(api.patch(&promises.node, &manager, &Patch::Merge(promised(promises))).await?)))
        }
        Write::Status { key, version, status } => {
            let body = json!({
                "apiVersion": ModelDeployment::api_version(&()),
                "kind": ModelDeployment::kind(&()),
                "metadata": {"name": key.name, "namespace": key.namespace, "resourceVersion": version},
                "status": status,
            });
            let api: Api<ModelDeployment> = Api::namespaced(client.clone(), &key.namespace);
            Ok(Answer::Deployment(Box::new(api.patch_status(&key.name, &params(), &Patch::Apply(&body)).await?)))
        }
        Write::Service { key, version, service } => {
            Ok(Answer::Service(Box::new(apply_service(client, key, version.as_deref(), service).await?)))
        }
        Write::Slice { key, version, slice } => {
            let api: Api<EndpointSlice> = Api::namespaced(client.clone(), &key.namespace);
            Ok(Answer::Slice(Box::new(write_slice(&api, version.as_deref(), slice).await?)))
        }
        Write::RemoveSlice { key, uid, version } => {
            let only = Preconditions { uid: Some(uid.clone()), resource_version: Some(version.clone()) };
            let api: Api<EndpointSlice> = Api::namespaced(client.clone(), &key.namespace);
            unless_gone(api.delete(&key.name, &DeleteParams::default().preconditions(only)).await)?;
            Ok(Answer::SliceRemoved { key: key.clone(), version: version.clone() })
        }
        Write::MakePod { pod, owner } => Ok(Answer::Pod(Box::new(make_pod(client, pod, owner).await?))),
        Write::RemovePod { key, uid } => {
            let only = Preconditions { uid: Some(uid.clone()), resource_version: None };
            let api: Api<Pod> = Api::namespaced(client.clone(), &key.namespace);
            match api.delete(&key.name, &DeleteParams::default().preconditions(only)).await.map(|answer| answer.left()) {
                // It ends, and is gone when the watch says so.
                Ok(Some(pod)) => Ok(Answer::Pod(Box::new(pod))),
                other => unless_gone(other).map(|()| Answer::PodRemoved { key: key.clone(), uid: uid.clone() }).map_err(ApplyError::from),
            }
        }
    }
}

/// To find gone what was to be removed is success.
fn unless_gone<T>(removed: Result<T, kube::Error>) -> Result<(), kube::Error> {
    match removed {
        Err(kube::Error::Api(status)) if status.code == 404 => Ok(()),
        other => other.map(drop),
    }
}

/// Reads an object past the cache.
pub async fn read(client: &Client, target: Target) -> Result<Found, kube::Error> {
    async fn get<K>(api: Api<K>, name: &str) -> Result<Option<Box<K>>, kube::Error>
    where
        K: Clone + DeserializeOwned + std::fmt::Debug,
    {
        Ok(api.get_opt(name).await?.map(Box::new))
    }
    let client = client.clone();
    Ok(match target {
        Target::Deployment(key) => Found::Deployment(key.clone(), get(Api::namespaced(client, &key.namespace), &key.name).await?),
        Target::ModelNode(name) => Found::ModelNode(Key::cluster(&name), get(Api::all(client), &name).await?),
        Target::Slice(key) => Found::Slice(key.clone(), get(Api::namespaced(client, &key.namespace), &key.name).await?),
        Target::Pod(key) => Found::Pod(key.clone(), get(Api::namespaced(client, &key.namespace), &key.name).await?),
    })
}

impl Write {
    /// What to read again where the write was planned on another version, and that version.
    pub fn planned_on(&self) -> Option<(Target, Revision)> {
        match self {
            Write::MakeModelNode { name, .. } => Some((Target::ModelNode(name.clone()), Revision::default())),
            Write::RemoveModelNode { name, version, .. } => Some((Target::ModelNode(name.clone()), revision(version))),
            Write::Promises(promises) => Some((Target::ModelNode(promises.node.clone()), revision(&promises.version))),
            Write::Status { key, version, .. } => Some((Target::Deployment(key.clone()), revision(version))),
            Write::Slice { key, version, .. } => Some((Target::Slice(key.clone()), version.as_deref().map(revision).unwrap_or_default())),
            Write::RemoveSlice { key, version, .. } => Some((Target::Slice(key.clone()), revision(version))),
            Write::MakePod { pod, .. } => Some((Target::Pod(Key::of(pod.as_ref())), Revision::default())),
            Write::RemovePod { key, .. } => Some((Target::Pod(key.clone()), Revision::default())),
            // Its step looks for itself before it writes.
            Write::Service { .. } => None,
        }
    }

    pub fn kind(&self) -> &'static str {
        match self {
            Write::MakeModelNode { .. } => "make ModelNode",
            Write::RemoveModelNode { .. } => "remove ModelNode",
            Write::Promises(_) => "promises",
            Write::Status { .. } => "status",
            Write::Service { .. } => "Service",
            Write::Slice { .. } => "EndpointSlice",
            Write::RemoveSlice { .. } => "remove EndpointSlice",
            Write::MakePod { .. } => "make Pod",
            Write::RemovePod { .. } => "remove Pod",
        }
    }
}

impl State {
    /// Takes in the answer to an own write.
    pub fn assume(&mut self, answer: Answer) {
        match answer {
            Answer::Deployment(deployment) => drop(self.deployments.assume(*deployment)),
            Answer::ModelNode(node) => drop(self.model_nodes.assume(*node)),
            Answer::Service(service) => drop(self.services.assume(*service)),
            Answer::Slice(slice) => drop(self.slices.assume(*slice)),
            Answer::Pod(pod) => drop(self.pods.assume(*pod)),
            Answer::PodRemoved { key, uid } => {
                let known = self.pods.get(&key).filter(|pod| pod.metadata.uid.as_ref() == Some(&uid));
                if let Some(version) = known.map(|pod| Revision::of(pod.as_ref())) {
                    self.pods.confirm(key, None, version);
                }
            }
            Answer::ModelNodeRemoved { name, version } => drop(self.model_nodes.confirm(Key::cluster(&name), None, revision(&version))),
            Answer::SliceRemoved { key, version } => drop(self.slices.confirm(key, None, revision(&version))),
        }
    }

    /// Takes in what a read found that was made when `as_of` was already known to be written.
    pub fn confirm(&mut self, found: Found, as_of: Revision) {
        match found {
            Found::Deployment(key, found) => drop(self.deployments.confirm(key, found.map(|found| *found), as_of)),
            Found::ModelNode(key, found) => drop(self.model_nodes.confirm(key, found.map(|found| *found), as_of)),
            Found::Slice(key, found) => drop(self.slices.confirm(key, found.map(|found| *found), as_of)),
            Found::Pod(key, found) => drop(self.pods.confirm(key, found.map(|found| *found), as_of)),
        }
    }
}

fn revision(version: &str) -> Revision {
    Revision(version.parse().unwrap_or(0))
}

fn params() -> PatchParams {
    PatchParams::apply(names::OPERATOR_MANAGER).force()
}

async fn apply<K, B>(api: &Api<K>, name: &str, body: &B) -> Result<K, kube::Error>
where
    K: Clone + DeserializeOwned + std::fmt::Debug,
    B: Serialize + std::fmt::Debug,
{
    api.patch(name, &params(), &Patch::Apply(body)).await
}

/// A Service of that name that is not ours must not be taken over, so it is looked for first.
async fn apply_service(client: &Client, key: &Key, version: Option<&str>, service: &Service) -> Result<Service, ApplyError> {
    let api: Api<Service> = Api::namespaced(client.clone(), &key.namespace);
    let is_ours = |found: &Service| found.labels().get(names::MODEL_DEPLOYMENT_LABEL) == Some(&key.name);
    match api.get_opt(&key.name).await? {
        Some(found) if !is_ours(&found) => Err(ApplyError::ForeignService(key.clone())),
        _ => {
            let mut service = service.clone();
            service.metadata.resource_version = version.map(str::to_owned);
            Ok(apply(&api, &key.name, &service).await?)
        }
    }
}

/// Makes the slice, or changes the one that it was planned on. Not an apply, which would make one anew that was removed since.
async fn write_slice(api: &Api<EndpointSlice>, version: Option<&str>, slice: &EndpointSlice) -> Result<EndpointSlice, kube::Error> {
    let manager = || Some(names::OPERATOR_MANAGER.to_owned());
    let Some(version) = version else {
        let parameters = PostParams { field_manager: manager(), ..PostParams::default() };
        return api.create(&parameters, slice).await;
    };
    let mut slice = slice.clone();
    slice.metadata.resource_version = Some(version.to_owned());
    let parameters = PatchParams { field_manager: manager(), ..PatchParams::default() };
    api.patch(&slice.name_any(), &parameters, &Patch::Merge(&slice)).await
}

/// The owner's uid is asked for each time: with one that is no more, the Pod would be removed at once.
async fn make_pod(client: &Client, pod: &Pod, owner: &str) -> Result<Pod, ApplyError> {
    let namespace = pod.namespace().unwrap_or_default();
    let accounts: Api<ServiceAccount> = Api::namespaced(client.clone(), &namespace);
    let account = accounts.get_opt(owner).await?.ok_or_else(|| ApplyError::NoServiceAccount(Key::new(&namespace, owner)))?;
    let mut pod = pod.clone();
    // A controller, so that draining a node takes the Pod for one that comes again.
    pod.metadata.owner_references =
        account.controller_owner_ref(&()).map(|owner| vec![OwnerReference { block_owner_deletion: None, ..owner }]);
    let pods: Api<Pod> = Api::namespaced(client.clone(), &namespace);
    let parameters = PostParams { field_manager: Some(names::OPERATOR_MANAGER.to_owned()), ..PostParams::default() };
    Ok(pods.create(&parameters, &pod).await?)
}

fn new_model_node(name: &str, node_uid: &str) -> ModelNode {
    let owner = OwnerReference {
        api_version: Node::api_version(&()).into_owned(),
        kind: Node::kind(&()).into_owned(),
        name: name.to_owned(),
        uid: node_uid.to_owned(),
        ..OwnerReference::default()
    };
    let mut node = ModelNode::new(name, ModelNodeSpec::default());
    node.metadata.owner_references = Some(vec![owner]);
    node
}

/// A merge, not an apply: an apply would make a ModelNode anew that is gone, and leaves none of `spec` when it takes back the last assignment, which the
/// API server then rejects (seen with 1.37). The list is replaced as a whole, by its only writer, on the version that it was planned on.
fn promised(promises: &Promises) -> Value {
    let Promises { node: _, version, assignments, withdrawn } = promises;
    let withdrawn = if withdrawn.is_empty() { Value::Null } else { withdrawn.as_str().into() };
    json!({
        "metadata": {"resourceVersion": version, "annotations": {WITHDRAWN_ANNOTATION: withdrawn}},
        "spec": {"assignments": assignments},
    })
}
