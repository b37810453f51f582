//! An agent dies as the kernel ends it, and another comes: what runs goes on, and what changed meanwhile is carried out.
#![allow(clippy::unwrap_used)]

use anyhow::{Context, Result, ensure};
use k8s_openapi::jiff::Timestamp;
use kube::api::DeleteParams;
use serde_json::json;
use stowage_crds::model_node::AssignmentState;
use stowage_crds::{ModelDeployment, ModelNode};
use stowage_end_to_end::client::{Stream, worker_url};
use stowage_end_to_end::workers::{self, Worker};
use stowage_end_to_end::{Cluster, Settings, api, manifest, watch};

const NODE: &str = "node-a";

/// One node with room for one, and a replica of `m` that serves on it.
async fn serving(deployment: &ModelDeployment, room: u64) -> Result<(Cluster, ModelDeployment)> {
    let mut cluster = Cluster::start(Settings::default()).await?;
    cluster.start_gpu_nodes(&[(NODE, manifest::room_for(room))]).await?;
    cluster.create(deployment).await?;
    let ready = cluster.until("m", watch::is_ready).await?;
    Ok((cluster, ready))
}

fn only_worker(cluster: &Cluster) -> Result<Worker> {
    let running = workers::running(cluster.folder());
    ensure!(running.len() == 1, "one worker should run: {running:?}");
    Ok(running[0].clone())
}

/// Whether the replica at `url` knows its model by this name: what was written into the assignment has reached it.
async fn goes_by(url: &str, name: &str) -> Result<bool> {
    let tags: serde_json::Value = reqwest::get(format!("{url}/api/tags")).await?.json().await?;
    Ok(tags.to_string().contains(name))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_goes_on_while_its_agent_is_killed_and_the_next_agent_reports_the_same_replica() -> Result<()> {
    let mut deployment = manifest::on_gpu("m");
    deployment.spec.parameters.num_ctx = Some(stowage_placement::Tokens(8192));
    let (mut cluster, ready) = serving(&deployment, 2).await?;
    let (url, uid, worker) = (worker_url(&ready)?, watch::assignments(&ready)[0].clone(), only_worker(&cluster)?);
    let is_measured = |node: &ModelNode| api::replica(node, &uid).is_some_and(|replica| replica.speed.is_some());
    let before = cluster.until_node(NODE, is_measured).await?;

    let mut stream = Stream::start(&url, "m", "1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12,", 2000).await?;
    stream.next().await?;
    cluster.agents[0].process.kill();
    for _ in 0..20 {
        ensure!(stream.next().await?["done"] == false, "the stream should go on without an agent");
    }
    cluster.succeed_agent(0)?;
    cluster.change("m", json!({"aliases": ["another-name"]})).await?;
    // The operator writes it into the assignment, which only an agent passes on.
    while !goes_by(&url, "another-name").await? {
        ensure!(stream.next().await?["done"] == false, "the stream should be longer than an agent takes to come back");
    }
    let taken_over = Timestamp::now();
    let last = stream.rest().await?;
    let ended: Timestamp = last["created_at"].as_str().context("a message says when it was made")?.parse()?;
    println!(
        "{} tokens, the last {:.1} s after the next agent took over",
        last["eval_count"],
        ended.duration_since(taken_over).as_secs_f64()
    );
    ensure!(ended > taken_over, "the stream was over before the next agent had taken over");

    let after = cluster.model_nodes().get(NODE).await?;
    ensure!(api::replica(&after, &uid) == api::replica(&before, &uid), "{:?} was {:?}", after.status, before.status);
    let measured = |node: &ModelNode| api::replica(node, &uid).map(|replica| replica.devices.clone());
    ensure!(measured(&after).is_some_and(|devices| devices.iter().all(|on| on.measured_bytes.is_some())), "{:?}", measured(&after));
    ensure!(only_worker(&cluster)? == worker, "it should be the same process");
    cluster.stop()
}

#[tokio::test(flavor = "multi_thread")]
async fn what_changed_while_a_node_had_no_agent_is_carried_out_by_the_next_one() -> Result<()> {
    let (mut cluster, _) = serving(&manifest::on_gpu("m"), 1).await?;
    let old = only_worker(&cluster)?;
    cluster.agents[0].process.kill();
    cluster.delete("m").await?;
    cluster.create(&manifest::on_gpu("next")).await?;
    let is_released = |node: &ModelNode| api::assignments(node, "m").iter().any(|assignment| assignment.state == AssignmentState::Release);
    let node = cluster.until_node(NODE, is_released).await?;
    ensure!(old.lives() && api::assignments(&node, "next").is_empty(), "its bytes are held as long as its worker lives");
    cluster.succeed_agent(0)?;
    cluster.until("next", watch::is_ready).await?;
    ensure!(!old.lives(), "the worker of what was deleted should have ended");
    ensure!(only_worker(&cluster)?.deployment_uid != old.deployment_uid, "what runs is of the new ModelDeployment");
    cluster.stop()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_whose_assignment_is_gone_ends_before_its_bytes_are_promised_again() -> Result<()> {
    let (mut cluster, ready) = serving(&manifest::on_gpu("m"), 1).await?;
    let (old, claimed) = (only_worker(&cluster)?, watch::assignments(&ready));
    cluster.agents[0].process.kill();
    let node = cluster.model_nodes().get(NODE).await?;
    cluster.model_nodes().delete(NODE, &DeleteParams::default()).await?;
    cluster.until_node(NODE, |new| new.metadata.uid != node.metadata.uid).await?;
    ensure!(old.lives(), "nobody has told it to end yet");
    cluster.succeed_agent(0)?;
    let again = cluster.until("m", |m| watch::is_ready(m) && watch::assignments(m) != claimed).await?;
    ensure!(!old.lives(), "the worker that nobody assigned should have ended");
    ensure!(watch::assignments(&again) == [only_worker(&cluster)?.assignment_uid], "what runs is what was assigned");
    cluster.stop()
}
