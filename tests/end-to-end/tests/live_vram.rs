//! What others take and free of a GPU counts: it is published with their names, and the next decision is made on it.
#![allow(clippy::unwrap_used)]

use anyhow::{Context, Result, ensure};
use rustix::process::Signal;
use stowage_crds::conditions::ConditionType;
use stowage_crds::{ModelDeployment, ModelNode};
use stowage_end_to_end::{AgentOptions, Cluster, Settings, SimulatedGpu, Stranger, api, manifest, models, watch};
use stowage_placement::{Bytes, Reason};

fn used_by_others(node: &ModelNode) -> Bytes {
    node.status.as_ref().and_then(|status| status.devices.first()).map(|device| device.used_by_others_bytes).unwrap_or_default()
}

fn is_refused(deployment: &ModelDeployment) -> bool {
    watch::reason(deployment, ConditionType::Scheduled) == Reason::InsufficientVRAM.as_str()
}

#[tokio::test(flavor = "multi_thread")]
async fn what_another_process_takes_is_told_with_its_name_and_keeps_replicas_away_until_it_is_freed() -> Result<()> {
    let mut cluster = Cluster::start(Settings::default()).await?;
    let total = manifest::room_for(2);
    cluster.start_gpu_nodes(&[("node-a", total)]).await?;
    let stranger = Stranger::start()?;
    let taken = Bytes::mib(1000);
    stranger.takes(&mut cluster.agents[0], taken)?;
    let node = cluster.until_node("node-a", |node| used_by_others(node) == taken).await?;
    let device = node.status.context("it was reported")?.devices.remove(0);
    let process = &device.used_by[0];
    ensure!((process.pid, process.name.as_str(), process.bytes) == (stranger.id(), "sleep", taken), "{:?}", device.used_by);
    ensure!(device.free_bytes == total.saturating_sub(taken), "{} are free", device.free_bytes);

    cluster.create(&manifest::on_gpu("m")).await?;
    let refused = cluster.until("m", is_refused).await?;
    println!("{}", watch::message(&refused, ConditionType::Scheduled));
    let suggestions = refused.status.and_then(|status| status.fit).map(|fit| fit.fit.suggestions).unwrap_or_default();
    let release = suggestions.iter().find(|suggestion| suggestion.change == "release").context("who would have to leave is suggested")?;
    println!("release {}: {}, {}", release.value, release.processor, release.message);
    ensure!(
        (release.value.as_str(), release.processor.as_str()) == (&*format!("process {} (sleep)", stranger.id()), "100% GPU"),
        "{release:?}"
    );
    stranger.takes(&mut cluster.agents[0], Bytes::ZERO)?;
    let ready = cluster.until("m", watch::is_ready).await?;
    ensure!(watch::processor(&ready) == "100% GPU", "{}", watch::processor(&ready));
    let node = cluster.model_nodes().get("node-a").await?;
    ensure!(used_by_others(&node) == Bytes::ZERO, "its own worker counts as nobody else's");
    cluster.stop()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replica_on_a_lost_gpu_is_started_elsewhere_and_it_is_said_why() -> Result<()> {
    let mut cluster = Cluster::start(Settings::default()).await?;
    // The first node is the tighter fit, so it is where the replica goes.
    cluster.start_gpu_nodes(&[("node-a", manifest::room_for(1)), ("node-b", manifest::room_for(2))]).await?;
    cluster.create(&manifest::on_gpu("m")).await?;
    let on = |deployment: &ModelDeployment, node: &str| {
        deployment.status.as_ref().is_some_and(|status| status.placements.iter().any(|placement| placement.node == node))
    };
    let ready = cluster.until("m", watch::is_ready).await?;
    ensure!(on(&ready, "node-a"), "{:?}", ready.status);
    let agent = &mut cluster.agents[0];
    agent.options.gpus[0].xid = Some(79);
    agent.machine.write(&agent.options.gpus)?;
    let message = cluster.told("m", Reason::DeviceLost).await?;
    println!("{message}");
    ensure!(message.contains("on node-a can't be used any more: its driver reported the critical error XID 79"), "{message}");
    cluster.until("m", |m| watch::is_ready(m) && on(m, "node-b") && !on(m, "node-a")).await?;
    cluster.stop()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_plan_made_on_figures_that_no_longer_hold_is_refused_with_what_was_seen_and_another_is_made() -> Result<()> {
    let mut cluster = Cluster::start(Settings::default()).await?;
    // The first node is the tighter fit, so it is where the replica would go.
    cluster.start_gpu_nodes(&[("node-a", manifest::room_for(1)), ("node-b", manifest::room_for(2))]).await?;
    let stranger = Stranger::start()?;
    cluster.agents[0].process.signal(Signal::STOP);
    stranger.takes(&mut cluster.agents[0], Bytes::mib(900))?;
    cluster.create(&manifest::on_gpu("m")).await?;
    cluster.until_node("node-a", |node| !node.spec.assignments.is_empty()).await?;
    cluster.agents[0].process.signal(Signal::CONT);
    let message = cluster.told("m", Reason::DeviceChanged).await?;
    println!("{message}");
    ensure!(message.contains(&format!("sleep (process {}) holds 900.0 MiB", stranger.id())), "{message}");
    let node = cluster.model_nodes().get("node-a").await?;
    ensure!(used_by_others(&node) == Bytes::mib(900), "what was seen is published with the refusal: {:?}", node.status);
    let ready = cluster.until("m", watch::is_ready).await?;
    ensure!(ready.status.as_ref().unwrap().placements[0].node == "node-b", "{:?}", ready.status);
    cluster.stop()
}

#[tokio::test(flavor = "multi_thread")]
async fn what_others_take_of_promised_vram_is_told_with_their_names_and_the_replica_serves_on() -> Result<()> {
    let mut cluster = Cluster::start(Settings::default()).await?;
    // The driver's context takes less than was planned for, so not all that was promised is held.
    let gpus = vec![SimulatedGpu { context: Bytes::mib(100), ..SimulatedGpu::new("node-a", 0, manifest::room_for(2)) }];
    cluster.start_agent(AgentOptions { gpus, ..AgentOptions::new("node-a", models::directory()?) }).await?;
    cluster.until_node("node-a", api::reports).await?;
    cluster.create(&manifest::on_gpu("m")).await?;
    let before = cluster.until("m", watch::is_ready).await?;
    let stranger = Stranger::start()?;
    stranger.takes(&mut cluster.agents[0], Bytes::mib(1500))?;
    let message = cluster.says("m", Reason::VRAMTakenByOthers, &format!("sleep (process {})", stranger.id())).await?;
    ensure!(message.contains("are promised to replicas and used by others"), "{message}");
    let crowded = cluster.deployments().get("m").await?;
    ensure!(watch::is_ready(&crowded) && watch::assignments(&crowded) == watch::assignments(&before), "it serves on: {:?}", crowded.status);
    stranger.takes(&mut cluster.agents[0], Bytes::ZERO)?;
    cluster.until("m", |m| watch::reason(m, ConditionType::Degraded) == Reason::AsAsked.as_str()).await?;
    cluster.stop()
}
