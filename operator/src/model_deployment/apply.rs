//! Sends a write to the API server: all that the operator owns of the object, on the version that it was planned on.

use k8s_openapi::api::core::v1::{Node, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::api::{DeleteParams, Patch, PatchParams, Preconditions};
use kube::{Api, Client, Resource, ResourceExt};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use stowage_crds::{ModelDeployment, ModelNode, names};

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
    ModelNodeRemoved(String),
    SliceRemoved(Key),
}

#[derive(Debug, thiserror::Error)]
pub enum ApplyError {
    #[error("{}", told(.0))]
    Api(#[from] kube::Error),
    #[error("a Service {0} exists that is not Stowage's; the ModelDeployment needs another name, or the Service does")]
    ForeignService(Key),
}

/// The API server's own words, where it said something.
fn told(error: &kube::Error) -> String {
    match error {
        kube::Error::Api(status) => status.message.clone(),
        other => other.to_string(),
    }
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
            ApplyError::ForeignService(_) => Remedy::LeaveAlone,
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
            let body = new_model_node(name, node_uid);
            Ok(Answer::ModelNode(Box::new(apply(&Api::all(client.clone()), name, &body).await?)))
        }
        Write::RemoveModelNode { name, uid, version } => {
            let only = Preconditions { uid: Some(uid.clone()), resource_version: Some(version.clone()) };
            let api: Api<ModelNode> = Api::all(client.clone());
            unless_gone(api.delete(name, &DeleteParams::default().preconditions(only)).await)?;
            Ok(Answer::ModelNodeRemoved(name.clone()))
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
        Write::Service { key, service } => Ok(Answer::Service(Box::new(apply_service(client, key, service).await?))),
        Write::Slice { key, slice } => {
            let api: Api<EndpointSlice> = Api::namespaced(client.clone(), &key.namespace);
            Ok(Answer::Slice(Box::new(apply(&api, &key.name, slice.as_ref()).await?)))
        }
        Write::RemoveSlice { key, uid } => {
            let only = Preconditions { uid: Some(uid.clone()), resource_version: None };
            let api: Api<EndpointSlice> = Api::namespaced(client.clone(), &key.namespace);
            unless_gone(api.delete(&key.name, &DeleteParams::default().preconditions(only)).await)?;
            Ok(Answer::SliceRemoved(key.clone()))
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

/// Reads an object past the cache, and takes in what was found.
pub async fn confirm(client: &Client, state: &mut State, target: &Target, as_of: Revision) -> Result<(), kube::Error> {
    match target {
        Target::Deployment(key) => {
            let api: Api<ModelDeployment> = Api::namespaced(client.clone(), &key.namespace);
            state.deployments.confirm(key.clone(), api.get_opt(&key.name).await?, as_of);
        }
        Target::ModelNode(name) => {
            let api: Api<ModelNode> = Api::all(client.clone());
            state.model_nodes.confirm(Key::cluster(name), api.get_opt(name).await?, as_of);
        }
    }
    Ok(())
}

impl Write {
    /// What to read again where the write was planned on another version, and that version.
    pub fn planned_on(&self) -> Option<(Target, Revision)> {
        let revision = |version: &str| Revision(version.parse().unwrap_or(0));
        match self {
            Write::MakeModelNode { name, .. } => Some((Target::ModelNode(name.clone()), Revision::default())),
            Write::RemoveModelNode { name, version, .. } => Some((Target::ModelNode(name.clone()), revision(version))),
            Write::Promises(promises) => Some((Target::ModelNode(promises.node.clone()), revision(&promises.version))),
            Write::Status { key, version, .. } => Some((Target::Deployment(key.clone()), revision(version))),
            Write::Service { .. } | Write::Slice { .. } | Write::RemoveSlice { .. } => None,
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
            Answer::ModelNodeRemoved(name) => drop(self.model_nodes.confirm(Key::cluster(&name), None, Revision::default())),
            Answer::SliceRemoved(key) => drop(self.slices.confirm(key, None, Revision::default())),
        }
    }
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

/// A Service of that name that is not ours must not be taken over, so where none is known, it is looked for first.
async fn apply_service(client: &Client, key: &Key, service: &Service) -> Result<Service, ApplyError> {
    let api: Api<Service> = Api::namespaced(client.clone(), &key.namespace);
    let is_ours = |found: &Service| found.labels().get(names::MODEL_DEPLOYMENT_LABEL) == Some(&key.name);
    match api.get_opt(&key.name).await? {
        Some(found) if !is_ours(&found) => Err(ApplyError::ForeignService(key.clone())),
        _ => Ok(apply(&api, &key.name, service).await?),
    }
}

fn new_model_node(name: &str, node_uid: &str) -> Value {
    let owner = json!({"apiVersion": Node::api_version(&()), "kind": Node::kind(&()), "name": name, "uid": node_uid});
    json!({
        "apiVersion": ModelNode::api_version(&()),
        "kind": ModelNode::kind(&()),
        "metadata": {"name": name, "ownerReferences": [owner]},
        "spec": {"assignments": []},
    })
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
