//! `kubectl stowage explain`: why a ModelDeployment is where it is, node by node, and what would change it.

mod events;
mod text;

use clap::Args;
use jiff::Timestamp;
use kube::ResourceExt;
use serde::Serialize;
use stowage_crds::ModelDeployment;
use stowage_crds::model_deployment::{ModelDeploymentSpec, ModelDeploymentStatus};

use super::Error;
use super::candidates::Seen;
use super::cluster::{Cluster, ClusterError};
use super::model::Question;
use super::output::{Format, print};
use super::plan::ClusterPlan;
use crate::plan::{DefaultsArgs, HubArgs};
use events::Told;

/// Say why a ModelDeployment is where it is, and what would change it.
#[derive(Args, Clone, Debug)]
pub struct ExplainArgs {
    /// mdl/NAME.
    pub deployment: String,
    #[command(flatten)]
    pub defaults: DefaultsArgs,
    #[command(flatten)]
    pub hub: HubArgs,
    #[arg(short, long, value_enum, default_value_t)]
    pub output: Format,
}

pub async fn run(cluster: &Cluster, args: &ExplainArgs) -> Result<(), Error> {
    let deployment = cluster.deployment(&args.deployment).await?;
    let (present, notes) = present(cluster, &deployment, args).await?;
    let events = match events::read(cluster, &deployment).await {
        Err(error) if error.is_forbidden() => Vec::new(),
        read => read?,
    };
    let explanation = Explanation::new(deployment, present, events, notes, Timestamp::now());
    print(args.output, &explanation, text::render)
}

/// What would be decided now. Where the caller may not see the nodes, or nobody can read the model's header, a note says so.
async fn present(cluster: &Cluster, deployment: &ModelDeployment, args: &ExplainArgs) -> Result<(Option<ClusterPlan>, Vec<String>), Error> {
    let seen = match Seen::read(cluster).await {
        Ok(seen) => seen,
        Err(error @ ClusterError::Forbidden { .. }) => return Ok((None, vec![format!("{error}; so the nodes are not gone through")])),
        Err(error) => return Err(error.into()),
    };
    match Question::about(deployment, &seen, None, &args.hub.hf_endpoint).await {
        Ok(question) => Ok((Some(ClusterPlan::new(&question, &seen, args.defaults)), seen.notes())),
        Err(error) => Ok((None, vec![format!("the nodes are not gone through: {error}")])),
    }
}

/// All that is known of why.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Explanation {
    pub namespace: String,
    pub name: String,
    pub spec: ModelDeploymentSpec,
    /// Of the spec; the status speaks of an older one where its `observedGeneration` is less.
    pub generation: Option<i64>,
    pub status: ModelDeploymentStatus,
    /// What would be decided on the nodes as they are now, its own replicas counted as gone.
    pub present: Option<ClusterPlan>,
    /// The newest last.
    pub events: Vec<Told>,
    /// What could not be seen.
    pub notes: Vec<String>,
    #[serde(skip)]
    pub now: Timestamp,
}

impl Explanation {
    pub fn new(
        deployment: ModelDeployment,
        present: Option<ClusterPlan>,
        events: Vec<Told>,
        notes: Vec<String>,
        now: Timestamp,
    ) -> Explanation {
        Explanation {
            namespace: deployment.namespace().unwrap_or_default(),
            name: deployment.name_any(),
            generation: deployment.metadata.generation,
            spec: deployment.spec,
            status: deployment.status.unwrap_or_default(),
            present,
            events,
            notes,
            now,
        }
    }

    /// Whether the operator has not looked at the present spec yet.
    fn is_behind(&self) -> bool {
        self.status.observed_generation < self.generation
    }
}

#[cfg(test)]
mod tests;
