//! What takes its time: a worker that will not die, and an agent that falls silent.
#![allow(clippy::unwrap_used)]

use anyhow::{Context, Result, ensure};
use k8s_openapi::jiff::Timestamp;
use rustix::process::Signal;
use stowage_crds::conditions::ConditionType;
use stowage_crds::model_deployment::PlacementState;
use stowage_crds::model_node::AssignmentState;
use stowage_crds::{ModelDeployment, ModelNode};
use stowage_end_to_end::{Cluster, Settings, api, manifest, watch, workers};
use stowage_placement::Reason;

#[tokio::test(flavor = "multi_thread")]
async fn the_bytes_of_a_deleted_replica_are_promised_again_only_when_its_worker_is_gone() -> Result<()> {
    let mut cluster = Cluster::start(Settings::default()).await?;
    cluster.start_gpu_nodes(&[("node-a", manifest::room_for(1))]).await?;
    let mut stubborn = manifest::on_gpu("stubborn");
    stubborn.spec.termination_grace_period_seconds = 20;
    cluster.create(&stubborn).await?;
    cluster.until("stubborn", watch::is_ready).await?;
    cluster.create(&manifest::on_gpu("next")).await?;
    let worker = workers::running(cluster.folder()).pop().context("a worker runs")?;
    // It hears neither that it should end nor SIGTERM, until SIGKILL comes after its grace period.
    worker.signal(Signal::STOP);
    let deleted = Timestamp::now();
    cluster.delete("stubborn").await?;
    let is_released =
        |node: &ModelNode| api::assignments(node, "stubborn").iter().any(|assignment| assignment.state == AssignmentState::Release);
    let node = cluster.until_node("node-a", is_released).await?;
    let deadline = api::assignments(&node, "stubborn")[0].deadline.clone().context("a release has a deadline")?.0;

    let node = cluster.until_node("node-a", |node| !api::assignments(node, "next").is_empty()).await?;
    let waited = Timestamp::now().duration_since(deleted).as_secs_f64();
    println!("its bytes were promised again {waited:.1} s after it was deleted");
    ensure!(!worker.lives(), "process {} still holds what was promised again", worker.pid);
    ensure!(Timestamp::now() >= deadline, "it should have had until {deadline}");
    let granted = deadline.duration_since(deleted).as_secs();
    ensure!((19..30).contains(&granted), "it was given {granted} s, and its ModelDeployment had asked for 20");
    ensure!(api::assignments(&node, "stubborn").is_empty(), "both are promised at once: {:?}", node.spec.assignments);
    cluster.until("next", watch::is_ready).await?;
    cluster.stop()
}

fn placed_on(deployment: &ModelDeployment) -> Vec<(&str, PlacementState, Reason)> {
    let placements = deployment.status.iter().flat_map(|status| &status.placements);
    placements.map(|placement| (placement.node.as_str(), placement.state, placement.reason)).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn what_runs_on_a_node_whose_agent_falls_silent_serves_on_while_it_answers_and_then_elsewhere_and_is_never_doubled() -> Result<()> {
    let mut cluster = Cluster::start(Settings::default()).await?;
    // The first node is the tighter fit, so it is where everything would go.
    cluster.start_gpu_nodes(&[("node-a", manifest::room_for(2)), ("node-b", manifest::room_for(4))]).await?;
    cluster.create(&manifest::on_gpu("early")).await?;
    let early = cluster.until("early", watch::is_ready).await?;
    ensure!(placed_on(&early) == [("node-a", PlacementState::Ready, Reason::Serving)], "{:?}", placed_on(&early));
    let worker = workers::running(cluster.folder()).pop().context("a worker runs")?;
    cluster.agents[0].process.signal(Signal::STOP);
    println!("{}", cluster.told("early", Reason::NodeNotReady).await?);
    let alone = cluster.until("early", |early| watch::reason(early, ConditionType::Degraded) == Reason::NodeNotReady.as_str()).await?;
    ensure!(placed_on(&alone) == [("node-a", PlacementState::Ready, Reason::NodeNotReady)], "{:?}", placed_on(&alone));
    ensure!(watch::is_ready(&alone), "what answers serves on: {:?}", alone.status);

    worker.signal(Signal::STOP);
    let serves_on_b = |deployment: &ModelDeployment| placed_on(deployment).contains(&("node-b", PlacementState::Ready, Reason::Serving));
    cluster.until("early", serves_on_b).await?;
    cluster.create(&manifest::on_gpu("late")).await?;
    let late = cluster.until("late", watch::is_ready).await?;
    ensure!(placed_on(&late)[0].0 == "node-b", "{:?}", placed_on(&late));

    worker.signal(Signal::CONT);
    cluster.agents[0].process.signal(Signal::CONT);
    let again = cluster.until("early", |early| placed_on(early).len() == 1 && watch::is_ready(early)).await?;
    ensure!(serves_on_b(&again), "{:?}", placed_on(&again));
    let node = cluster.until_node("node-a", |node| node.spec.assignments.is_empty()).await?;
    let left = workers::running(cluster.folder()).len();
    ensure!(left == 2, "early and late each have one worker, and there are {left}: {:?}", node.status.map(|status| status.replicas));
    cluster.stop()
}
