//! Which model is asked about, and what is asked for it.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use kube::ResourceExt;
use stowage_crds::candidate::{Meant, meant};
use stowage_crds::model_deployment::{ModelSource, PlacementSpec};
use stowage_crds::model_node::{Assignment, ModelFile};
use stowage_crds::{ModelDeployment, ModelNode};
use stowage_placement::{Asked, ModelSummary};

use super::Error;
use super::candidates::Seen;
use super::cluster::{Cluster, ClusterError, deployment_name};
use crate::plan::PlanError;
use crate::plan::source::{self, Input};

/// One replica of a model that is to have a place.
#[derive(Clone, Debug)]
pub struct Question {
    pub summary: ModelSummary,
    pub asked: Asked,
    pub placement: PlacementSpec,
    /// Whose replicas count as gone: namespace and name.
    pub own: Option<(String, String)>,
    /// The nodes that have the file. Where it is downloaded, all others can have it too.
    pub present_on: BTreeSet<String>,
    pub is_downloaded: bool,
}

impl Question {
    /// About the ModelDeployment `mdl/NAME` of the cluster, or what is in a file or behind a URL.
    pub async fn read(cluster: &Cluster, seen: &Seen, given: &str, hub: &str) -> Result<Question, Error> {
        if deployment_name(given).is_some() {
            let deployment = cluster.deployment(given).await?;
            return Question::about(&deployment, seen, None, hub).await;
        }
        if given.contains('/') && !Path::new(given).exists() && !given.contains("://") && given.split('/').count() == 2 {
            return Err(ClusterError::NotADeployment { given: given.to_owned() }.into());
        }
        match source::open(given).await? {
            Input::Model(summary) => Ok(Question::of_file(*summary)),
            Input::Deployment(mut deployment) => {
                deployment.metadata.namespace.get_or_insert_with(|| cluster.namespace.clone());
                Question::about(&deployment, seen, Some(Path::new(given)), hub).await
            }
        }
    }

    /// A file that no ModelDeployment names: as if it could be downloaded everywhere.
    fn of_file(summary: ModelSummary) -> Question {
        Question {
            summary,
            asked: Asked::default(),
            placement: PlacementSpec::default(),
            own: None,
            present_on: BTreeSet::new(),
            is_downloaded: true,
        }
    }

    /// A model of the agents' directories that no node has is looked for beside the ModelDeployment's file, where it is from one.
    pub async fn about(deployment: &ModelDeployment, seen: &Seen, file: Option<&Path>, hub: &str) -> Result<Question, Error> {
        let question = |summary: ModelSummary, present_on: BTreeSet<String>, is_downloaded: bool| Question {
            summary,
            asked: deployment.spec.asked(),
            placement: deployment.spec.placement.clone(),
            own: Some((deployment.namespace().unwrap_or_default(), deployment.name_any())),
            present_on,
            is_downloaded,
        };
        let ModelSource { path: Some(path), .. } = &deployment.spec.model else {
            let summary = source::downloaded(&deployment.spec.model, hub).await?;
            let name = file.map_or_else(|| format!("ModelDeployment {}", deployment.name_any()), |file| file.display().to_string());
            let summary = summary.ok_or_else(|| PlanError::Deployment { path: name, message: source::ONE_SOURCE.to_owned() })?;
            let present_on = holders(seen.model_nodes(), deployment);
            return Ok(question(summary, present_on, true));
        };
        if let Some(Meant { summary, nodes }) = meant(files(seen.model_nodes()), path) {
            return Ok(question(summary.clone(), nodes.into_keys().map(str::to_owned).collect(), false));
        }
        let beside = file.map(|file| source::beside(file, path)).filter(|beside| beside.is_file());
        match beside {
            // No node has it yet, but each might.
            Some(beside) => Ok(question(source::local_summary(&beside)?, BTreeSet::new(), true)),
            None => Err(Error::Model(not_found(seen.model_nodes(), path))),
        }
    }

    /// Whether the node can have the model.
    pub fn can_be_on(&self, node: &str) -> bool {
        self.is_downloaded || self.present_on.contains(node)
    }

    pub fn is_own(&self, assignment: &Assignment) -> bool {
        let owner = &assignment.model_deployment;
        self.own.as_ref().is_some_and(|(namespace, name)| (namespace, name) == (&owner.namespace, &owner.name))
    }
}

fn files(nodes: &[ModelNode]) -> impl Iterator<Item = (&str, &ModelFile)> {
    let named = nodes.iter().filter_map(|node| Some((node.metadata.name.as_deref()?, node)));
    named.flat_map(|(name, node)| node.status.iter().flat_map(|status| &status.models).map(move |file| (name, file)))
}

/// The nodes that have the file that was resolved, by its digest.
fn holders(nodes: &[ModelNode], deployment: &ModelDeployment) -> BTreeSet<String> {
    let resolved = deployment.status.as_ref().and_then(|status| status.resolved.as_ref());
    let digest =
        resolved.and_then(|resolved| resolved.source.as_ref()).map(|source| source.digest.as_str()).filter(|digest| !digest.is_empty());
    let has_it = |file: &ModelFile| digest.is_some_and(|digest| file.digest == digest);
    files(nodes).filter(|(_, file)| has_it(file)).map(|(name, _)| name.to_owned()).collect()
}

/// Why nobody knows the model, with what there is.
fn not_found(nodes: &[ModelNode], path: &str) -> String {
    if let Some((node, file)) = files(nodes).find(|(_, file)| file.path == path) {
        return format!("{path} on {node} can't be read: {}", file.message);
    }
    let mut there: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for (node, file) in files(nodes) {
        there.entry(&file.path).or_default().push(node);
    }
    let listed: Vec<String> = there.into_iter().map(|(file, nodes)| format!("{file} ({})", nodes.join(", "))).collect();
    let there = if listed.is_empty() { "no node has any model file".to_owned() } else { format!("there are {}", listed.join(", ")) };
    format!("{path} is in the model directory of none of {} nodes; {there}", nodes.len())
}
