//! Where a decision made afresh, by nothing but the objects that there are now, would put each replica.

use std::collections::BTreeSet;

use anyhow::{Context, Result, bail, ensure};
use kube::ResourceExt;
use stowage_crds::ledger::Ledger;
use stowage_crds::model_deployment::DeviceSelector;
use stowage_crds::model_node::Assignment;
use stowage_crds::{ModelDeployment, ModelNode};
use stowage_placement::{Choice, Defaults, ModelSummary, Node, PlacementPolicy, PlanReport, choose};

use super::URGENT;

/// What a decision is made on: all agents are heard, and the operator has the flags that chaos gives it.
pub(super) struct Fresh<'a> {
    pub nodes: &'a [ModelNode],
    pub deployments: &'a [ModelDeployment],
    /// Names of the nodes that are cordoned.
    pub cordoned: &'a BTreeSet<String>,
}

impl<'a> Fresh<'a> {
    /// An error: a replica without a place would have one, one on a cordoned node another, or one on CPU a GPU that it prefers.
    pub fn check(&self) -> Result<()> {
        self.deployments.iter().try_for_each(|deployment| self.check_one(deployment))
    }

    fn check_one(&self, deployment: &ModelDeployment) -> Result<()> {
        let name = deployment.name_any();
        let placements = deployment.status.as_ref().map(|status| status.placements.as_slice()).unwrap_or_default();
        let wanted = usize::try_from(deployment.spec.replicas).unwrap_or(usize::MAX);
        let now = self.place(deployment, &|_| false)?;
        if placements.len() < wanted {
            if let Some(report) = now {
                bail!("{name} lacks a replica, and there is room for it: {}", report.fit.message);
            }
            let lower = |assignment: &Assignment| self.is_below(assignment, deployment);
            if let Some(report) = self.place(deployment, &lower)?.filter(|report| report.fit.fits) {
                bail!("{name} lacks a replica, and has room where those of lower priority leave: {}", report.fit.message);
            }
            return Ok(());
        }
        ensure!(placements.len() == wanted, "{name} is to have {wanted} replicas and has {placements:?}");
        if let Some(left) = placements.iter().find(|placement| self.cordoned.contains(&placement.node))
            && let Some(report) = &now
        {
            bail!("{} stays on {}, which is cordoned, and there is room elsewhere: {}", left.replica, left.node, report.fit.message);
        }
        let prefers_gpu = deployment.spec.asked().policy == PlacementPolicy::PreferGPU;
        if !prefers_gpu || placements.iter().all(|placement| placement.gpu_layers == placement.total_layers) {
            return Ok(());
        }
        let better = now.filter(|report| report.plan.gpu_layers == report.plan.total_layers);
        better.map_or(Ok(()), |report| bail!("{name} has a replica on CPU, and a GPU has room for it: {}", report.fit.message))
    }

    /// Where one replica more would go, were the assignments gone of which `leaves` is true.
    fn place(&self, deployment: &ModelDeployment, leaves: &dyn Fn(&Assignment) -> bool) -> Result<Option<PlanReport>> {
        let nodes: Vec<Node> = self.nodes.iter().map(|node| self.candidate(node, leaves)).collect();
        match choose(self.summary(deployment)?, &deployment.spec.asked(), &nodes) {
            Choice::Placed { report, .. } => Ok(Some(report)),
            Choice::Refused { .. } => Ok(None),
        }
    }

    fn candidate(&self, node: &ModelNode, leaves: &dyn Fn(&Assignment) -> bool) -> Node {
        let ledger = Ledger::without(node, Defaults::default(), leaves);
        Node {
            name: node.name_any(),
            ready: true,
            schedulable: !self.cordoned.contains(&node.name_any()),
            selector_matches: true,
            assignments: ledger.assignments(),
            has_model_file: true,
            siblings: 0,
            devices: ledger.devices(&DeviceSelector::default()),
        }
    }

    fn summary(&self, deployment: &ModelDeployment) -> Result<&'a ModelSummary> {
        let path = deployment.spec.model.path.as_deref().context("its model is a file on the nodes")?;
        let files = self.nodes.iter().flat_map(|node| &node.status).flat_map(|status| &status.models);
        let summary = files.filter(|file| file.path == path).find_map(|file| file.summary.as_ref());
        summary.with_context(|| format!("no node has read {path}"))
    }

    fn is_below(&self, assignment: &Assignment, deployment: &ModelDeployment) -> bool {
        let is_urgent = |deployment: &ModelDeployment| deployment.spec.priority_class_name == URGENT;
        let owner = self.deployments.iter().find(|owner| owner.name_any() == assignment.model_deployment.name);
        is_urgent(deployment) && owner.is_some_and(|owner| !is_urgent(owner))
    }
}
