//! What a worker's process takes of the host's memory, by the kernel's count, beside what was promised for it.
#![allow(clippy::unwrap_used)]

use anyhow::{Context, Result};
use stowage_crds::ModelNode;
use stowage_end_to_end::{AgentOptions, Cluster, Settings, api, manifest, models, watch, workers};
use stowage_placement::{Bytes, DeviceKind, Tokens};

/// A figure of `/proc/PID/status`, which counts in KiB.
fn of_process(pid: u32, name: &str) -> Result<Bytes> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix(name)).with_context(|| format!("there is no {name} of {pid}"))?;
    Ok(Bytes(line.trim_matches([':', ' ', '\t']).trim_end_matches(" kB").parse::<u64>()? << 10))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_has_the_memory_that_was_promised_and_had_hardly_more_while_it_loaded() -> Result<()> {
    let mut cluster = Cluster::start(Settings::default()).await?;
    cluster.start_agent(AgentOptions::new("node-a", models::directory()?)).await?;
    let mut deployment = manifest::with_policy("m", "RequireCPU");
    deployment.spec.parameters.num_ctx = Some(Tokens(2048));
    cluster.create(&deployment).await?;
    cluster.until("m", watch::is_ready).await?;
    // It is measured when all weights are in memory.
    let is_measured =
        |node: &ModelNode| node.status.as_ref().is_some_and(|status| status.replicas.iter().any(|replica| replica.speed.is_some()));
    let node = cluster.until_node("node-a", is_measured).await?;
    let assignment = api::assignments(&node, "m").pop().context("it serves, so it was promised")?.clone();
    let host = assignment.plan.devices.iter().find(|device| device.kind == DeviceKind::Host).context("every plan has the host")?;
    let worker = workers::running(cluster.folder()).pop().context("it serves, so it runs")?;
    let (resident, most) = (of_process(worker.pid, "VmRSS")?, of_process(worker.pid, "VmHWM")?);
    let (of_promised, of_settled) = (resident.0 as f64 / host.total_bytes.0 as f64, most.0 as f64 / resident.0 as f64);
    println!(
        "resident {resident}, promised {}: {:.1} %; at most {most} while loading: {of_settled:.3} x",
        host.total_bytes,
        100.0 * of_promised
    );
    // The program's own pages are counted too, and are not the same in every build of it.
    assert!((0.95..1.03).contains(&of_promised), "{resident} resident, {} promised", host.total_bytes);
    assert!(of_settled < 1.15, "{most} while loading, {resident} after");
    cluster.stop()
}
