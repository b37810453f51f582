//! Waiting for what a cluster comes to, by its own watch: never for a length of time.

use std::time::Duration;

use anyhow::{Result, bail};
use kube::runtime::wait::await_condition;
use kube::{Api, Client};
use stowage_crds::ModelDeployment;
use stowage_crds::conditions::{self, ConditionType};

/// How long a test waits for what must come. On a busy machine a minute is little; nothing waits longer than it has to.
pub const DEADLINE: Duration = Duration::from_secs(180);

/// The ModelDeployment `name` as soon as `holds` says yes of it; at the deadline, an error that shows it as it then was.
pub async fn model_deployment(
    client: &Client,
    namespace: &str,
    name: &str,
    holds: impl Fn(&ModelDeployment) -> bool + Send,
) -> Result<ModelDeployment> {
    let api: Api<ModelDeployment> = Api::namespaced(client.clone(), namespace);
    let condition = |object: Option<&ModelDeployment>| object.is_some_and(&holds);
    match tokio::time::timeout(DEADLINE, await_condition(api.clone(), name, condition)).await {
        Ok(Ok(Some(found))) => Ok(found),
        Ok(Ok(None)) => bail!("ModelDeployment {namespace}/{name} was deleted while it was waited for"),
        Ok(Err(error)) => bail!("watching ModelDeployment {namespace}/{name}: {error}"),
        Err(_) => {
            let status = api.get_opt(name).await?.map(|found| serde_json::to_string_pretty(&found.status)).transpose()?;
            bail!(
                "after {} s ModelDeployment {namespace}/{name} was: {}",
                DEADLINE.as_secs(),
                status.unwrap_or_else(|| "not there".to_owned())
            )
        }
    }
}

/// Whether the status speaks of the present spec and the condition is `status`.
pub fn is(object: &ModelDeployment, condition: ConditionType, status: &str) -> bool {
    let Some(found) = &object.status else { return false };
    found.observed_generation == object.metadata.generation
        && conditions::find(&found.conditions, condition)
            .is_some_and(|c| c.status == status && c.observed_generation == object.metadata.generation)
}

pub fn is_ready(object: &ModelDeployment) -> bool {
    is(object, ConditionType::Ready, "True") && is(object, ConditionType::Progressing, "True")
}

/// The message of a condition, empty where it isn't there.
pub fn message(object: &ModelDeployment, condition: ConditionType) -> String {
    let conditions = object.status.as_ref().map(|status| status.conditions.as_slice()).unwrap_or_default();
    conditions::find(conditions, condition).map(|c| c.message.clone()).unwrap_or_default()
}

/// The column of `kubectl get mdl` named by `pick`.
pub fn processor(object: &ModelDeployment) -> String {
    object.status.as_ref().and_then(|status| status.summary.as_ref()).map(|summary| summary.processor.clone()).unwrap_or_default()
}
