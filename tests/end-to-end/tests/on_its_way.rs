//! What is on its way to serving says at each step how far it is.
#![allow(clippy::unwrap_used)]

use anyhow::{Context, Result};
use rustix::process::Signal;
use serde_json::json;
use stowage_crds::ModelDeployment;
use stowage_crds::conditions::ConditionType;
use stowage_end_to_end::file_server::FileServer;
use stowage_end_to_end::{AgentOptions, Cluster, Settings, manifest, models, watch, workers};
use stowage_placement::Reason;

fn says(deployment: &ModelDeployment, condition: ConditionType, reason: Reason) -> bool {
    watch::reason(deployment, condition) == reason.as_str()
}

fn is_placed_as(deployment: &ModelDeployment, reason: Reason) -> bool {
    deployment.status.iter().flat_map(|status| &status.placements).any(|placement| placement.reason == reason)
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_paused_loads_or_is_rolled_out_says_so() -> Result<()> {
    let mut cluster = Cluster::start(Settings::default()).await?;
    cluster.start_gpu_nodes(&[("node-a", manifest::room_for(1))]).await?;
    let mut deployment = manifest::on_gpu("m");
    deployment.spec.paused = true;
    cluster.create(&deployment).await?;
    let waits =
        |m: &ModelDeployment| says(m, ConditionType::Scheduled, Reason::Paused) && says(m, ConditionType::ModelCached, Reason::Pending);
    cluster.until("m", waits).await?;
    cluster.change("m", json!({"paused": false})).await?;
    watch::until("its worker is there", || !workers::running(cluster.folder()).is_empty()).await?;
    let worker = workers::running(cluster.folder()).pop().context("it was there")?;
    worker.signal(Signal::STOP);
    let loads = |m: &ModelDeployment| is_placed_as(m, Reason::Loading) && says(m, ConditionType::Progressing, Reason::RollingOut);
    cluster.until("m", loads).await?;
    worker.signal(Signal::CONT);
    cluster.until("m", |m| watch::is_ready(m) && is_placed_as(m, Reason::Serving)).await?;
    cluster.stop()
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_downloaded_says_so() -> Result<()> {
    let server = FileServer::start(models::directory()?.join(models::SMOLLM2)).await?;
    let loopback = ["--allow-source-address".to_owned(), "127.0.0.0/8".to_owned()].to_vec();
    let mut cluster = Cluster::start(Settings { operator_flags: loopback.clone(), ..Settings::default() }).await?;
    cluster.start_agent(AgentOptions { flags: loopback, ..AgentOptions::new("node-a", models::directory()?) }).await?;
    let mut deployment = manifest::with_policy("m", "RequireCPU");
    // Its first connection breaks off, so that it takes long enough to be seen.
    deployment.spec.model = serde_json::from_value(json!({"http": {"url": server.url("dropped/a.gguf")}}))?;
    cluster.create(&deployment).await?;
    println!("{}", cluster.told("m", Reason::Downloading).await?);
    cluster.until("m", watch::is_ready).await?;
    cluster.stop()
}
