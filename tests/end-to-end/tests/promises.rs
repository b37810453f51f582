//! No byte is promised twice and no replica placed twice, whoever dies or is paused in the middle. The observer of every cluster looks on; what these
//! tests add is the trouble.
#![allow(clippy::unwrap_used)]

use anyhow::{Context, Result, ensure};
use futures::future::{select_ok, try_join_all};
use k8s_openapi::jiff::Timestamp;
use rustix::process::Signal;
use stowage_crds::ModelDeployment;
use stowage_crds::conditions::ConditionType;
use stowage_end_to_end::{Cluster, Leader, Settings, manifest, watch};
use stowage_placement::Reason;

const DEPLOYMENTS: usize = 20;
/// Replicas that the nodes' GPUs have room for.
const ROOM: [(&str, u64); 2] = [("node-a", 4), ("node-b", 3)];
const PLACES: usize = 7;

async fn start() -> Result<Cluster> {
    let mut cluster = Cluster::start(Settings::default()).await?;
    for _ in 0..2 {
        cluster.start_operator()?;
    }
    cluster.start_gpu_nodes(&ROOM.map(|(node, room)| (node, manifest::room_for(room)))).await?;
    Ok(cluster)
}

fn name(index: usize) -> String {
    format!("m-{index:02}")
}

async fn apply_all(cluster: &Cluster) -> Result<()> {
    let all: Vec<ModelDeployment> = (0..DEPLOYMENTS).map(|index| manifest::on_gpu(&name(index))).collect();
    try_join_all(all.iter().map(|deployment| cluster.create(deployment))).await.map(drop)
}

/// Waits until at least so many promises stand at once.
async fn promised(cluster: &Cluster, at_least: usize) -> Result<usize> {
    let observer = cluster.observer.as_ref().context("the cluster is ours, so it is observed")?;
    watch::until(&format!("{at_least} promises"), || observer.promised() >= at_least).await.with_context(|| cluster.logs())?;
    Ok(observer.promised())
}

/// A successor of `old`, which leads no more; says how long that took by the Lease's own times.
async fn successor(cluster: &Cluster, old: &Leader, last_sign: Timestamp) -> Result<Leader> {
    let new = cluster.leader(Some(&old.name)).await?;
    println!("{} leads {:.1} s after {} was last able to", new.name, new.acquired.duration_since(last_sign).as_secs_f64(), old.name);
    Ok(new)
}

fn is_refused(deployment: &ModelDeployment) -> bool {
    let reason = watch::reason(deployment, ConditionType::Scheduled);
    watch::is(deployment, ConditionType::Scheduled, "False") && reason == Reason::InsufficientVRAM.as_str()
}

fn is_settled(deployment: &ModelDeployment) -> bool {
    watch::is_ready(deployment) || is_refused(deployment)
}

/// Waits until each runs or says why not; gives the names of those that run.
async fn settled(cluster: &Cluster, names: &[String]) -> Result<Vec<String>> {
    let mut running = Vec::new();
    for name in names {
        if watch::is_ready(&cluster.until(name, is_settled).await?) {
            running.push(name.clone());
        }
    }
    Ok(running)
}

/// `InsufficientVRAM` with the nodes counted and the bytes that the best of them lacks.
async fn check_refusals(cluster: &Cluster, names: &[String]) -> Result<()> {
    for name in names {
        let message = watch::message(&cluster.deployments().get(name).await?, ConditionType::Scheduled);
        for part in ["0 of 2 nodes", "2 InsufficientVRAM", "MiB are missing"] {
            ensure!(message.contains(part), "{name} should say `{part}`: {message}");
        }
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn twenty_deployments_for_seven_places_are_placed_once_though_one_leader_is_killed_and_another_paused() -> Result<()> {
    let mut cluster = start().await?;
    let first = cluster.leader(None).await?;
    apply_all(&cluster).await?;
    promised(&cluster, 1).await?;
    cluster.operators[first.index].kill();
    let (killed_at, at_kill) = (Timestamp::now(), promised(&cluster, 1).await?);
    println!("{} was killed when {at_kill} of {PLACES} places were promised", first.name);
    ensure!(at_kill < PLACES, "the leader was through before it could be killed");

    let second = successor(&cluster, &first, killed_at).await?;
    promised(&cluster, at_kill + 1).await?;
    cluster.operators[second.index].signal(Signal::STOP);
    let (paused_at, at_pause) = (Timestamp::now(), promised(&cluster, 1).await?);
    println!("{} was paused when {at_pause} of {PLACES} places were promised", second.name);
    let third = successor(&cluster, &second, paused_at).await?;
    promised(&cluster, PLACES).await?;
    cluster.operators[second.index].signal(Signal::CONT);

    let names: Vec<String> = (0..DEPLOYMENTS).map(name).collect();
    let running = settled(&cluster, &names).await?;
    ensure!(running.len() == PLACES, "{} of {PLACES} run: {running:?}", running.len());
    let waiting: Vec<String> = names.into_iter().filter(|name| !running.contains(name)).collect();
    check_refusals(&cluster, &waiting).await?;
    let awake = &cluster.operators[second.index];
    watch::until("the paused leader sees that it leads no more", || awake.log_tail(1000).contains("no longer leading")).await?;
    ensure!(cluster.leader(None).await?.name == third.name, "{} should lead still", third.name);

    cluster.delete(&running[0]).await?;
    let ready = waiting.iter().map(|name| Box::pin(cluster.until(name, watch::is_ready)));
    let (next, _) = select_ok(ready).await?;
    println!("{} was deleted, and {} runs in its place", running[0], next.metadata.name.unwrap_or_default());
    cluster.stop()
}
