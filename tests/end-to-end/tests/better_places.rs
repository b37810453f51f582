//! A replica that runs on CPU moves to the GPU that it prefers once that has room, and makes way for one of higher priority.
#![allow(clippy::unwrap_used)]

use anyhow::{Result, ensure};
use stowage_crds::ModelDeployment;
use stowage_end_to_end::{Cluster, Settings, Stranger, manifest, watch};
use stowage_placement::{Bytes, Reason};

const URGENT: &str = "urgent";

fn runs_on(processor: &'static str) -> impl Fn(&ModelDeployment) -> bool + Send {
    move |deployment| watch::is_ready(deployment) && watch::processor(deployment) == processor
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replica_on_cpu_moves_to_a_gpu_that_frees_and_makes_way_for_one_of_higher_priority() -> Result<()> {
    let operator_flags = vec!["--move-up-after=1".to_owned()];
    let mut cluster = Cluster::start(Settings { operator_flags, ..Settings::default() }).await?;
    cluster.start_gpu_nodes(&[("node-a", manifest::room_for(1))]).await?;
    let stranger = Stranger::start()?;
    stranger.takes(&mut cluster.agents[0], Bytes::mib(800))?;
    cluster.until_node("node-a", |node| node.status.as_ref().is_some_and(|status| !status.devices[0].used_by.is_empty())).await?;
    cluster.create(&manifest::with_policy("m", "PreferGPU")).await?;
    cluster.until("m", runs_on("100% CPU")).await?;

    stranger.takes(&mut cluster.agents[0], Bytes::ZERO)?;
    cluster.until("m", runs_on("100% GPU")).await?;
    println!("{}", cluster.told("m", Reason::MovingUp).await?);

    cluster.make_priority_class(URGENT, 1000).await?;
    let mut urgent = manifest::on_gpu("u");
    urgent.spec.priority_class_name = URGENT.into();
    cluster.create(&urgent).await?;
    cluster.until("u", runs_on("100% GPU")).await?;
    let (takes, taken) = (cluster.told("u", Reason::Preempting).await?, cluster.told("m", Reason::Preempted).await?);
    println!("{takes}\n{taken}");
    ensure!(taken.contains("default/u, whose priority is 1000"), "{taken}");
    cluster.until("m", runs_on("100% CPU")).await?;

    cluster.delete("u").await?;
    cluster.until("m", runs_on("100% GPU")).await?;
    cluster.stop()
}
