//! Waiting for what a cluster comes to, by its own watch: never for a length of time.

use std::fmt::Debug;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use futures::StreamExt;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::runtime::WatchStreamExt;
use kube::runtime::wait::await_condition;
use kube::runtime::watcher::{self, watcher};
use kube::{Api, Client, Resource};
use serde::Serialize;
use serde::de::DeserializeOwned;
use stowage_control_plane::processes::wait_for;
use stowage_crds::conditions::{self, ConditionType};
use stowage_crds::model_deployment::PlacementState;
use stowage_crds::{ModelDeployment, ModelNode};
use stowage_placement::{Reason, Tokens};

/// How long a test waits for what must come. On a busy machine a minute is little; nothing waits longer than it has to.
pub const DEADLINE: Duration = Duration::from_secs(180);

/// The ModelDeployment `name` as soon as `holds` says yes of it; at the deadline, an error that shows it as it then was.
pub async fn model_deployment(
    client: &Client,
    namespace: &str,
    name: &str,
    holds: impl Fn(&ModelDeployment) -> bool + Send,
) -> Result<ModelDeployment> {
    object(Api::namespaced(client.clone(), namespace), name, holds).await
}

/// The ModelNode `name` as soon as `holds` says yes of it.
pub async fn model_node(client: &Client, name: &str, holds: impl Fn(&ModelNode) -> bool + Send) -> Result<ModelNode> {
    object(Api::all(client.clone()), name, holds).await
}

async fn object<K>(api: Api<K>, name: &str, holds: impl Fn(&K) -> bool + Send) -> Result<K>
where
    K: Resource<DynamicType = ()> + Clone + DeserializeOwned + Serialize + Debug + Send + 'static,
{
    let condition = |object: Option<&K>| object.is_some_and(&holds);
    let kind = K::kind(&());
    match tokio::time::timeout(DEADLINE, await_condition(api.clone(), name, condition)).await {
        Ok(Ok(Some(found))) => Ok(found),
        Ok(Ok(None)) => bail!("{kind} {name} was deleted while it was waited for"),
        Ok(Err(error)) => bail!("watching {kind} {name}: {error}"),
        Err(_) => {
            let found = api.get_opt(name).await?.map(|found| serde_json::to_string_pretty(&found)).transpose()?;
            bail!("after {} s {kind} {name} was: {}", DEADLINE.as_secs(), found.unwrap_or_else(|| "not there".to_owned()))
        }
    }
}

/// The first object, of those there are and those that come, for which `holds` says yes.
pub async fn first<K>(api: Api<K>, holds: impl Fn(&K) -> bool + Send) -> Result<K>
where
    K: Resource<DynamicType = ()> + Clone + DeserializeOwned + Debug + Send + 'static,
{
    let objects = watcher(api, watcher::Config::default()).default_backoff().applied_objects();
    let mut wanted = std::pin::pin!(objects.filter_map(async |object| object.ok().filter(&holds)));
    let found = tokio::time::timeout(DEADLINE, wanted.next()).await;
    found.ok().flatten().with_context(|| format!("none came in {} s", DEADLINE.as_secs()))
}

/// Waits until `holds`, which nothing announces: a file of a process, a process's end.
pub async fn until(what: &str, mut holds: impl FnMut() -> bool) -> Result<()> {
    let found = wait_for(DEADLINE, async || holds().then_some(())).await;
    found.with_context(|| format!("after {} s still not: {what}", DEADLINE.as_secs()))
}

/// Whether the status speaks of the present spec and the condition is `status`.
pub fn is(object: &ModelDeployment, condition: ConditionType, status: &str) -> bool {
    let generation = object.metadata.generation;
    object.status.as_ref().is_some_and(|found| found.observed_generation == generation)
        && found(object, condition).is_some_and(|c| c.status == status && c.observed_generation == generation)
}

fn found(object: &ModelDeployment, condition: ConditionType) -> Option<&Condition> {
    conditions::find(&object.status.as_ref()?.conditions, condition)
}

pub fn is_ready(object: &ModelDeployment) -> bool {
    is(object, ConditionType::Ready, "True") && is(object, ConditionType::Progressing, "True")
}

/// So many replicas with this context serve, none is on its way or going, and status speaks of the present spec.
pub fn is_settled(object: &ModelDeployment, replicas: usize, num_ctx: u64) -> bool {
    let placements = object.status.as_ref().map(|status| status.placements.as_slice()).unwrap_or_default();
    let serves = placements.iter().all(|on| on.state == PlacementState::Ready && on.num_ctx == Tokens(num_ctx));
    is_ready(object) && placements.len() == replicas && serves
}

/// The message of a condition, empty where it isn't there.
pub fn message(object: &ModelDeployment, condition: ConditionType) -> String {
    found(object, condition).map(|c| c.message.clone()).unwrap_or_default()
}

/// The column of `kubectl get mdl` named by `pick`.
pub fn processor(object: &ModelDeployment) -> String {
    object.status.as_ref().and_then(|status| status.summary.as_ref()).map(|summary| summary.processor.clone()).unwrap_or_default()
}

/// The reason of a condition, empty where it isn't there.
pub fn reason(object: &ModelDeployment, condition: ConditionType) -> String {
    found(object, condition).map(|c| c.reason.clone()).unwrap_or_default()
}

/// What the status says where it gives this reason, in a condition or for a placement; empty where it does not.
pub fn told(object: &ModelDeployment, reason: Reason) -> String {
    let Some(status) = &object.status else { return String::new() };
    let conditions = status.conditions.iter().filter(|c| c.reason == reason.as_str()).map(|c| c.message.clone());
    let placements = status.placements.iter().filter(|placement| placement.reason == reason).map(|placement| placement.message.clone());
    conditions.chain(placements).find(|words| !words.is_empty()).unwrap_or_default()
}

/// Uids of the assignments that its placements claim.
pub fn assignments(object: &ModelDeployment) -> Vec<String> {
    object.status.iter().flat_map(|status| &status.placements).map(|placement| placement.assignment_uid.clone()).collect()
}
