//! What has no place says why, and has one as soon as it can.
#![allow(clippy::unwrap_used)]

use std::fs;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use stowage_crds::ModelDeployment;
use stowage_crds::conditions::ConditionType;
use stowage_end_to_end::idle_agents::IdleAgents;
use stowage_end_to_end::{AgentOptions, Cluster, Settings, manifest, models, watch};
use stowage_placement::{Bytes, Reason};

/// So many tokens that their keys and values, for as many sequences as there may be, take half a TiB.
const FAR_TOO_LONG: u32 = 1 << 24;

fn with(name: &str, spec: Value) -> ModelDeployment {
    let mut object = serde_json::to_value(manifest::with_policy(name, "RequireCPU")).unwrap();
    for (field, value) in spec.as_object().unwrap() {
        object["spec"][field] = value.clone();
    }
    serde_json::from_value(object).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn each_that_has_no_place_says_why_and_goes_where_it_can_when_that_changes() -> Result<()> {
    let folder = tempfile::tempdir()?;
    fs::copy(models::directory()?.join(models::SMOLLM2), folder.path().join(models::SMOLLM2)).context("copying the model")?;
    fs::write(folder.path().join("long.gguf"), models::tiny("llama", FAR_TOO_LONG).file(|_, _| 0))?;
    let mut cluster = Cluster::start(Settings::default()).await?;
    cluster.create(&with("m", json!({}))).await?;
    cluster.says("m", Reason::NoNodes, "").await?;
    cluster.start_agent(AgentOptions::new("node-a", folder.path())).await?;
    let before = cluster.until("m", watch::is_ready).await?;

    let long = json!({"model": {"path": "long.gguf"}, "parallel": 256, "parameters": {"num_ctx": FAR_TOO_LONG}});
    let refused = [
        ("on-gpu", json!({"placement": {"policy": "RequireGPU"}}), Reason::NoUsableGPU, "0 of 1 nodes: 1 NoUsableGPU"),
        ("elsewhere", json!({"placement": {"nodeSelector": {"disk": "fast"}}}), Reason::NoMatchingNode, "0 of 1 nodes: 1 NoMatchingNode"),
        ("too-long", long, Reason::InsufficientMemory, "missing"),
        ("of-no-class", json!({"priorityClassName": "nowhere"}), Reason::InvalidRequest, "there is no such PriorityClass"),
    ];
    for (name, spec, reason, words) in refused {
        cluster.create(&with(name, spec)).await?;
        cluster.says(name, reason, words).await?;
    }

    cluster.cordon("node-a", true).await?;
    cluster.create(&with("late", json!({}))).await?;
    cluster.says("late", Reason::NodeUnschedulable, "0 of 1 nodes: 1 NodeUnschedulable").await?;
    let stays = cluster.until("m", |m| watch::reason(m, ConditionType::Degraded) == Reason::NodeUnschedulable.as_str()).await?;
    ensure!(watch::is(&stays, ConditionType::Ready, "True") && watch::assignments(&stays) == watch::assignments(&before), "{stays:?}");
    cluster.cordon("node-a", false).await?;
    cluster.until("late", watch::is_ready).await?;
    cluster.change("late", json!({"replicas": 0})).await?;
    cluster.until("late", |late| watch::reason(late, ConditionType::Ready) == Reason::ScaledToZero.as_str()).await?;
    let after = cluster.until("m", |m| watch::is_ready(m) && watch::is(m, ConditionType::Degraded, "False")).await?;
    ensure!(watch::assignments(&after) == watch::assignments(&before), "it was never touched");
    cluster.stop()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deployment_and_a_node_have_only_so_many_places() -> Result<()> {
    let cluster = Cluster::start(Settings::default()).await?;
    let agents = IdleAgents::start(&cluster, &["node-a".to_owned()], manifest::room_for(80)).await?;
    let many = |name: &str, replicas: u32| {
        let mut deployment = manifest::on_gpu(name);
        deployment.spec.replicas = replicas;
        deployment
    };
    cluster.create(&many("m", 33)).await?;
    cluster.says("m", Reason::TooManyAssignments, "32 places are held already").await?;
    cluster.create(&many("n", 32)).await?;
    cluster.until_node("node-a", |node| node.spec.assignments.len() == 64).await?;
    cluster.create(&manifest::on_gpu("late")).await?;
    cluster.says("late", Reason::TooManyAssignments, "0 of 1 nodes: 1 TooManyAssignments").await?;
    cluster.delete("n").await?;
    cluster.until("late", |late| watch::is(late, ConditionType::Scheduled, "True")).await?;
    let node = cluster.until_node("node-a", |node| node.spec.assignments.len() == 33).await?;
    let promised: Bytes = node.spec.assignments.iter().flat_map(|on| &on.plan.devices).map(|on| on.total_bytes).sum();
    println!("33 replicas were promised {promised}");
    drop(agents);
    cluster.stop()
}
