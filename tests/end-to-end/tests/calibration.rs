//! What one load shows of a kind of GPU makes the next prediction better, and status says both.
#![allow(clippy::unwrap_used)]

use anyhow::{Context, Result, ensure};
use stowage_crds::ModelDeployment;
use stowage_crds::model_deployment::PlacementStatus;
use stowage_end_to_end::{AgentOptions, Cluster, Settings, SimulatedGpu, api, manifest, models, watch};
use stowage_placement::{Bytes, Defaults};

/// What the driver's context takes in each process on this kind of GPU, which nobody has told Stowage.
const CONTEXT: Bytes = Bytes::mib(300);

fn placement(deployment: &ModelDeployment) -> Result<&PlacementStatus> {
    deployment.status.as_ref().and_then(|status| status.placements.first()).context("it is placed")
}

/// By how much the prediction was off.
fn error(placement: &PlacementStatus) -> Result<u64> {
    let measured = placement.measured_bytes.context("it is measured")?;
    Ok(measured.0.abs_diff(placement.predicted_bytes.0))
}

#[tokio::test(flavor = "multi_thread")]
async fn after_the_first_load_the_next_on_that_kind_of_gpu_is_predicted_better_and_status_shows_it() -> Result<()> {
    let mut cluster = Cluster::start(Settings::default()).await?;
    let gpus = vec![SimulatedGpu { context: CONTEXT, ..SimulatedGpu::new("node-a", 0, manifest::room_for(3)) }];
    cluster.start_agent(AgentOptions { gpus, ..AgentOptions::new("node-a", models::directory()?) }).await?;
    cluster.until_node("node-a", api::reports).await?;

    cluster.create(&manifest::on_gpu("first")).await?;
    let first = cluster.until("first", watch::is_ready).await?;
    let by_default = placement(&first)?;
    let default = Defaults::default();
    ensure!(by_default.uncertainty_bytes == default.uncertainty(), "{by_default:?}");
    ensure!(error(by_default)? == default.overhead_bytes.0 - CONTEXT.0, "off by {}", error(by_default)?);

    let calibrated = |node: &stowage_crds::ModelNode| node.status.as_ref().is_some_and(|status| status.devices[0].calibration.is_some());
    let node = cluster.until_node("node-a", calibrated).await?;
    let calibration = node.status.unwrap().devices.remove(0).calibration.unwrap();
    ensure!((calibration.loads, calibration.overhead_bytes) == (1, CONTEXT), "{calibration:?}");
    ensure!(calibration.last_error_bytes.unsigned_abs() == error(by_default)?, "{calibration:?}");

    cluster.create(&manifest::on_gpu("second")).await?;
    let second = cluster.until("second", watch::is_ready).await?;
    let by_measure = placement(&second)?;
    ensure!(error(by_measure)? == 0, "off by {}", error(by_measure)?);
    ensure!(by_measure.uncertainty_bytes < by_default.uncertainty_bytes, "{by_measure:?}");
    let wide = cluster.kubectl_output(&["get", "mdl", "-o", "wide"])?;
    println!("{wide}");
    for placement in [by_default, by_measure] {
        let shown = format!("{} ± {}", placement.predicted_bytes, placement.uncertainty_bytes);
        ensure!(wide.contains(&shown) && wide.contains(&placement.measured_bytes.unwrap().to_string()), "{shown} is not in {wide}");
    }

    // What was learnt outlives the agent.
    cluster.agents[0].process.kill();
    cluster.succeed_agent(0)?;
    cluster.create(&manifest::on_gpu("third")).await?;
    let third = cluster.until("third", watch::is_ready).await?;
    ensure!(error(placement(&third)?)? == 0, "{third:?}");
    cluster.stop()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_kind_of_gpu_of_which_nothing_is_known_is_measured_when_an_agent_starts_and_the_first_load_is_predicted_with_it() -> Result<()> {
    let mut cluster = Cluster::start(Settings::default()).await?;
    let gpus = vec![SimulatedGpu { context: CONTEXT, ..SimulatedGpu::new("node-a", 0, Bytes::gib(4)) }];
    cluster.start_agent(AgentOptions { gpus, ..AgentOptions::new("node-a", models::directory()?) }).await?;
    let node = cluster.until_node("node-a", api::reports).await?;
    ensure!(calibration(&node).is_none(), "nothing was loaded, and this agent does not calibrate: {node:?}");

    cluster.agents[0].options.calibrates = true;
    cluster.agents[0].process.kill();
    cluster.succeed_agent(0)?;
    let node = cluster.until_node("node-a", |node| calibration(node).is_some()).await?;
    let known = calibration(&node).context("it is calibrated")?;
    ensure!((known.loads, known.overhead_bytes) == (1, CONTEXT), "{known:?}");
    let free = node.status.context("it reports")?.devices[0].free_bytes;
    ensure!(free == Bytes::gib(4), "{free} are free, and nothing else was there but what was calibrated by");
    let events = cluster.kubectl_output(&["get", "events", "--all-namespaces", "--field-selector", "reason=Calibrated"])?;
    ensure!(events.contains("300.0 MiB is what its driver takes"), "{events}");

    cluster.create(&manifest::on_gpu("first")).await?;
    let first = cluster.until("first", watch::is_ready).await?;
    ensure!(error(placement(&first)?)? == 0, "{first:?}");

    // The next agent knows it, and so does not measure it again.
    cluster.agents[0].process.kill();
    cluster.succeed_agent(0)?;
    cluster.create(&manifest::on_gpu("second")).await?;
    let second = cluster.until("second", watch::is_ready).await?;
    ensure!(error(placement(&second)?)? == 0, "{second:?}");
    let log = std::fs::read_to_string(cluster.node_folder("node-a").join("agent.log"))?;
    ensure!(log.matches("calibrating a kind of GPU").count() <= 1, "{log}");
    cluster.stop()
}

fn calibration(node: &stowage_crds::ModelNode) -> Option<stowage_crds::model_node::Calibration> {
    node.status.as_ref()?.devices.first()?.calibration.clone()
}
