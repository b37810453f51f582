//! Whether everything has come to rest as it should.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use futures::stream::{BoxStream, select_all};
use futures::{FutureExt, StreamExt};
use k8s_openapi::api::core::v1::Node;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::api::ListParams;
use kube::runtime::WatchStreamExt;
use kube::runtime::watcher::{self, watcher};
use kube::{Api, ResourceExt};
use stowage_crds::conditions::ConditionType;
use stowage_crds::model_deployment::PlacementState;
use stowage_crds::{ModelDeployment, ModelNode, names};
use stowage_placement::Reason;

use super::fresh::Fresh;
use crate::{Cluster, watch, workers};

const DEADLINE: Duration = Duration::from_secs(240);
/// A process's end is announced by nothing.
const AT_LEAST_EVERY: Duration = Duration::from_secs(1);

/// What everything came to.
#[derive(Clone, Debug, Default)]
pub struct Settled {
    pub ready: usize,
    /// ModelDeployments with replicas that have no place, by the reason.
    pub refused: BTreeMap<String, usize>,
    pub workers: usize,
}

impl fmt::Display for Settled {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ready with {} workers, {:?} refused", self.ready, self.workers, self.refused)
    }
}

/// Waits until a look finds everything as it should be; at the deadline, an error that says what was not.
pub async fn wait(cluster: &Cluster, wanted: BTreeSet<String>) -> Result<Settled> {
    let mut changes = changes(cluster);
    let deadline = tokio::time::Instant::now() + DEADLINE;
    loop {
        let found = look(cluster, &wanted).await;
        let Err(error) = found else { return found };
        if tokio::time::Instant::now() >= deadline {
            return Err(error.context(format!("not settled {} s after all was calm", DEADLINE.as_secs())));
        }
        let _ = tokio::time::timeout(AT_LEAST_EVERY, changes.next()).await;
        // Changes that came together are looked at together.
        while changes.next().now_or_never().is_some() {}
    }
}

fn changes(cluster: &Cluster) -> BoxStream<'static, ()> {
    let deployments = watcher(cluster.deployments(), watcher::Config::default()).default_backoff().map(drop);
    let nodes = watcher(cluster.model_nodes(), watcher::Config::default()).default_backoff().map(drop);
    select_all([deployments.boxed(), nodes.boxed()]).boxed()
}

async fn look(cluster: &Cluster, wanted: &BTreeSet<String>) -> Result<Settled> {
    let deployments = cluster.deployments().list(&ListParams::default()).await?.items;
    let nodes = cluster.model_nodes().list(&ListParams::default()).await?.items;
    let slices: Api<EndpointSlice> = Api::namespaced(cluster.client.clone(), "default");
    let slices = slices.list(&ListParams::default().labels(names::MODEL_DEPLOYMENT_LABEL)).await?.items;
    let names: BTreeSet<String> = deployments.iter().map(ResourceExt::name_any).collect();
    ensure!(names == *wanted, "there are {names:?}, and there should be {wanted:?}");
    let mut settled = Settled::default();
    for deployment in &deployments {
        settled.take_in(deployment)?;
    }
    check_assignments(&nodes, &deployments)?;
    check_endpoints(&slices, &deployments)?;
    let cordoned = cordoned(cluster).await?;
    Fresh { nodes: &nodes, deployments: &deployments, cordoned: &cordoned }.check()?;
    settled.workers = check_workers(cluster, &nodes, &deployments)?;
    Ok(settled)
}

async fn cordoned(cluster: &Cluster) -> Result<BTreeSet<String>> {
    let nodes = Api::<Node>::all(cluster.client.clone()).list(&ListParams::default()).await?.items;
    let is_cordoned = |node: &Node| node.spec.as_ref().is_some_and(|spec| spec.unschedulable == Some(true));
    Ok(nodes.iter().filter(|node| is_cordoned(node)).map(ResourceExt::name_any).collect())
}

impl Settled {
    pub fn deployments(&self) -> usize {
        self.ready + self.refused.values().sum::<usize>()
    }

    fn take_in(&mut self, deployment: &ModelDeployment) -> Result<()> {
        if is_as_asked(deployment) {
            self.ready += 1;
            return Ok(());
        }
        let refusal = refusal(deployment);
        let reason =
            refusal.with_context(|| format!("{} is neither ready nor says why not: {}", deployment.name_any(), told(deployment)))?;
        *self.refused.entry(reason).or_default() += 1;
        Ok(())
    }
}

fn is_as_asked(deployment: &ModelDeployment) -> bool {
    watch::is_ready(deployment) && watch::reason(deployment, ConditionType::Progressing) == Reason::RolledOut.as_str()
}

/// Why a replica has no place, or serves where it can't stay. That it is being rolled out is no reason to stay so.
fn refusal(deployment: &ModelDeployment) -> Option<String> {
    if on_the_way(deployment).next().is_some() {
        return None;
    }
    // That there is no other place for it is seen to by `Fresh`.
    let stays = watch::reason(deployment, ConditionType::Degraded) == Reason::NodeUnschedulable.as_str();
    if stays && watch::is(deployment, ConditionType::Degraded, "True") {
        return Some(Reason::NodeUnschedulable.to_string());
    }
    let (reason, message) = (watch::reason(deployment, ConditionType::Scheduled), watch::message(deployment, ConditionType::Scheduled));
    let passing = [Reason::RollingOut, Reason::Pending, Reason::ReplacingForRoom, Reason::Preempting].map(Reason::as_str);
    let says = watch::is(deployment, ConditionType::Scheduled, "False") && !message.is_empty() && !passing.contains(&reason.as_str());
    says.then_some(reason)
}

/// Placements that will be something else soon.
fn on_the_way(deployment: &ModelDeployment) -> impl Iterator<Item = &str> {
    let placements = deployment.status.iter().flat_map(|status| &status.placements);
    placements.filter(|placement| placement.state != PlacementState::Ready).map(|placement| placement.replica.as_str())
}

fn told(deployment: &ModelDeployment) -> String {
    let conditions = deployment.status.iter().flat_map(|status| &status.conditions);
    let each: Vec<String> = conditions.map(|c| format!("{}={} {}: {}", c.type_, c.status, c.reason, c.message)).collect();
    format!("{}; on the way: {:?}", each.join("; "), on_the_way(deployment).collect::<Vec<_>>())
}

/// Every assignment is of a replica that its ModelDeployment has.
fn check_assignments(nodes: &[ModelNode], deployments: &[ModelDeployment]) -> Result<()> {
    let claimed: BTreeSet<String> = deployments.iter().flat_map(watch::assignments).collect();
    for node in nodes {
        for assignment in &node.spec.assignments {
            ensure!(claimed.contains(&assignment.uid), "{} on {} belongs to no ModelDeployment", assignment.replica, node.name_any());
        }
        for replica in node.status.iter().flat_map(|status| &status.replicas) {
            let assigned = node.spec.assignments.iter().any(|assignment| assignment.uid == replica.uid);
            ensure!(assigned, "{} reports {} ({:?}), which is assigned to it no more", node.name_any(), replica.uid, replica.state);
        }
    }
    Ok(())
}

/// An endpoint for each replica that serves, and no other.
fn check_endpoints(slices: &[EndpointSlice], deployments: &[ModelDeployment]) -> Result<()> {
    let present: BTreeSet<String> = slices.iter().map(ResourceExt::name_any).collect();
    let placements = deployments.iter().flat_map(|deployment| &deployment.status).flat_map(|status| &status.placements);
    let ready: BTreeSet<String> =
        placements.filter(|on| on.state == PlacementState::Ready).map(|placement| placement.replica.clone()).collect();
    ensure!(present == ready, "the endpoints are {present:?}, and these serve: {ready:?}");
    Ok(())
}

/// A process for each replica that serves, and no other.
fn check_workers(cluster: &Cluster, nodes: &[ModelNode], deployments: &[ModelDeployment]) -> Result<usize> {
    let running = workers::running(cluster.folder());
    let assigned: BTreeSet<&str> = nodes.iter().flat_map(|node| &node.spec.assignments).map(|assignment| assignment.uid.as_str()).collect();
    if let Some(orphan) = running.iter().find(|worker| !assigned.contains(worker.assignment_uid.as_str())) {
        bail!("process {} runs {}, which is assigned nowhere", orphan.pid, orphan.replica);
    }
    let processes: BTreeSet<&str> = running.iter().map(|worker| worker.assignment_uid.as_str()).collect();
    let lacking = deployments.iter().flat_map(watch::assignments).find(|uid| !processes.contains(uid.as_str()));
    ensure!(lacking.is_none(), "no process runs what is claimed as {lacking:?}");
    Ok(running.len())
}
