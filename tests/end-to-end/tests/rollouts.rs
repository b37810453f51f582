//! A rollout for which there is no room beside the old revision: the old one goes first, or the new one waits, as the spec says; one that can't come further says
//! so, and can be taken back.

use anyhow::{Result, ensure};
use serde_json::json;
use stowage_crds::ModelDeployment;
use stowage_crds::conditions::ConditionType;
use stowage_end_to_end::{Cluster, Settings, manifest, watch};
use stowage_placement::{Reason, Tokens};

fn serves_at(num_ctx: u64) -> impl Fn(&ModelDeployment) -> bool + Send {
    move |m| {
        let summary = m.status.as_ref().and_then(|status| status.summary.as_ref());
        watch::is_ready(m) && summary.is_some_and(|summary| summary.num_ctx == Some(Tokens(num_ctx)))
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn without_room_for_both_the_old_revision_goes_first_or_the_new_one_waits_and_stops_with_the_old_one_serving() -> Result<()> {
    let mut cluster = Cluster::start(Settings::default()).await?;
    cluster.start_gpu_nodes(&[("node-a", manifest::room_for(1))]).await?;
    cluster.create(&manifest::on_gpu("m")).await?;
    cluster.until("m", serves_at(512)).await?;
    cluster.change("m", json!({"parameters": {"num_ctx": 768}})).await?;
    println!("{}", cluster.told("m", Reason::ReplacingForRoom).await?);
    let replaced = cluster.until("m", serves_at(768)).await?;

    let waits = json!({"updateStrategy": {"whenNoRoom": "Wait"}, "parameters": {"num_ctx": 1024}, "progressDeadlineSeconds": 3});
    cluster.change("m", waits).await?;
    cluster.says("m", Reason::WaitingForRoom, "Bytes on node-a are not free yet").await?;
    let message = cluster.says("m", Reason::ProgressDeadlineExceeded, "").await?;
    ensure!(message.contains("Bytes on node-a are not free yet"), "it says what stands in the way: {message}");
    let stuck = cluster.until("m", |m| watch::is(m, ConditionType::Progressing, "False")).await?;
    ensure!(watch::is(&stuck, ConditionType::Ready, "True"), "the old revision serves: {:?}", stuck.status);
    ensure!(watch::assignments(&stuck) == watch::assignments(&replaced), "the same one");

    cluster.change("m", json!({"parameters": {"num_ctx": 768}})).await?;
    let back = cluster.until("m", serves_at(768)).await?;
    ensure!(watch::assignments(&back) == watch::assignments(&replaced), "taken back, nothing was loaded anew");
    cluster.stop()
}
