//! The cluster's objects, as tests make, change and remove them.

use anyhow::{Context, Result};
use k8s_openapi::api::core::v1::Node;
use k8s_openapi::api::events::v1::Event;
use k8s_openapi::api::scheduling::v1::PriorityClass;
use kube::Api;
use kube::api::{DeleteParams, ObjectMeta, Patch, PatchParams, PostParams};
use serde_json::Value;
use stowage_crds::model_node::{Assignment, ReplicaStatus};
use stowage_crds::{ModelDeployment, ModelNode};
use stowage_placement::Reason;

use crate::{Cluster, watch};

impl Cluster {
    pub fn deployments(&self) -> Api<ModelDeployment> {
        Api::namespaced(self.client.clone(), "default")
    }

    pub fn model_nodes(&self) -> Api<ModelNode> {
        Api::all(self.client.clone())
    }

    pub async fn create(&self, deployment: &ModelDeployment) -> Result<ModelDeployment> {
        let created = self.deployments().create(&PostParams::default(), deployment).await;
        created.with_context(|| format!("making ModelDeployment {:?}", deployment.metadata.name))
    }

    pub async fn make_priority_class(&self, name: &str, value: i32) -> Result<()> {
        let metadata = ObjectMeta { name: Some(name.to_owned()), ..ObjectMeta::default() };
        let class = PriorityClass { metadata, value: Some(value), ..PriorityClass::default() };
        let made = Api::all(self.client.clone()).create(&PostParams::default(), &class).await;
        made.map(drop).with_context(|| format!("making PriorityClass {name}"))
    }

    /// Merges this into the ModelDeployment's spec.
    pub async fn change(&self, name: &str, spec: Value) -> Result<ModelDeployment> {
        let patch = Patch::Merge(serde_json::json!({"spec": spec}));
        self.deployments().patch(name, &PatchParams::default(), &patch).await.with_context(|| format!("changing ModelDeployment {name}"))
    }

    /// Cordons a Node, or ends that.
    pub async fn cordon(&self, node: &str, unschedulable: bool) -> Result<()> {
        let patch = Patch::Merge(serde_json::json!({"spec": {"unschedulable": unschedulable}}));
        let nodes: Api<Node> = Api::all(self.client.clone());
        nodes.patch(node, &PatchParams::default(), &patch).await.map(drop).with_context(|| format!("cordoning {node}"))
    }

    /// What the first Event of this reason says of the ModelDeployment, once there is one. A state that lasts for a moment leaves its Event behind.
    pub async fn told(&self, name: &str, reason: Reason) -> Result<String> {
        let events: Api<Event> = Api::namespaced(self.client.clone(), "default");
        let is_it = |event: &Event| {
            let about = event.regarding.as_ref().and_then(|regarding| regarding.name.as_deref());
            about == Some(name) && event.reason.as_deref() == Some(reason.as_str())
        };
        let event = watch::first(events, is_it).await.with_context(|| format!("waiting for an Event {reason}\n{}", self.logs()))?;
        Ok(event.note.unwrap_or_default())
    }

    /// Waits until the ModelDeployment's status gives this reason, in words that hold `words`; gives all of them.
    pub async fn says(&self, name: &str, reason: Reason, words: &str) -> Result<String> {
        let holds = |deployment: &ModelDeployment| {
            let told = watch::told(deployment, reason);
            !told.is_empty() && told.contains(words)
        };
        let found = self.until(name, holds).await.with_context(|| format!("{name} should be {reason}, saying `{words}`"))?;
        let told = watch::told(&found, reason);
        println!("{name}: {reason}: {told}");
        Ok(told)
    }

    pub async fn delete(&self, name: &str) -> Result<()> {
        let deleted = self.deployments().delete(name, &DeleteParams::default()).await;
        deleted.map(drop).with_context(|| format!("deleting ModelDeployment {name}"))
    }
}

/// What is promised on the node to replicas of this ModelDeployment.
pub fn assignments<'a>(node: &'a ModelNode, deployment: &str) -> Vec<&'a Assignment> {
    node.spec.assignments.iter().filter(|assignment| assignment.model_deployment.name == deployment).collect()
}

/// What the node's agent says of an assignment.
pub fn replica<'a>(node: &'a ModelNode, uid: &str) -> Option<&'a ReplicaStatus> {
    node.status.as_ref()?.replicas.iter().find(|replica| replica.uid == uid)
}

/// Whether the agent has reported the node's devices and models.
pub fn reports(node: &ModelNode) -> bool {
    node.status.as_ref().is_some_and(|status| status.system.is_some() && !status.models.is_empty())
}
