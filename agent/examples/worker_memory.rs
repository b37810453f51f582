//! What a worker's process takes of the host beside what its plan says: `cargo run --release -p stowage-agent --example worker_memory -- AGENT MODEL...`.
//!
//! Each model is loaded and served by a worker of the agent's own binary, as on a node; its memory is looked at once all weights are in it, by the kernel's
//! count of what is resident (`VmRSS`).

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use clap::Parser;
use jiff::Timestamp;
use stowage_agent::model_header::{self, Data};
use stowage_agent::store::{Store, StoreConfig};
use stowage_agent::worker::{Supervisor, SupervisorConfig, WorkerLog, WorkerView};
use stowage_crds::model_deployment::{ModelSource, ReplicaState};
use stowage_crds::model_node::{AssignedSource, Assignment};
use stowage_crds::testing;
use stowage_placement::{Asked, Bytes, ModelSummary, NodeDevices, PlacementPolicy, Tokens, decide};
use stowage_sources::AddressPolicy;

const PATIENCE: Duration = Duration::from_secs(300);

#[derive(Parser)]
struct Arguments {
    agent: PathBuf,
    #[arg(required = true)]
    models: Vec<PathBuf>,
    #[arg(long, default_value_t = 2048)]
    num_ctx: u64,
}

#[tokio::main]
async fn main() -> Result<()> {
    let Arguments { agent, models, num_ctx } = Arguments::parse();
    println!("memory of a worker that serves, num_ctx {num_ctx}");
    println!("{:<34}{:>14}{:>14}{:>13}", "model", "planned MiB", "resident MiB", "of planned");
    for model in models {
        let assignment = assignment(&model, num_ctx)?;
        let planned: Bytes = assignment.plan.devices.iter().map(|device| device.total_bytes).sum();
        let resident = serve(&agent, &model, assignment).await.with_context(|| format!("serving {}", model.display()))?;
        let mib = |bytes: Bytes| bytes.0 as f64 / f64::from(1 << 20);
        let name = model.file_name().unwrap_or_default().to_string_lossy();
        println!("{name:<34}{:>14.1}{:>14.1}{:>12.1}%", mib(planned), mib(resident), 100.0 * mib(resident) / mib(planned));
    }
    Ok(())
}

fn assignment(model: &Path, num_ctx: u64) -> Result<Assignment> {
    let joined = model_header::read(model, Data::Needed)?;
    let summary = ModelSummary::from_header(&joined.header, joined.size())?;
    let asked = Asked { num_ctx: Some(Tokens(num_ctx)), num_gpu: 0, policy: PlacementPolicy::RequireCPU, ..Asked::default() };
    let refused = |refusal: stowage_placement::Refusal| anyhow::anyhow!(refusal.message);
    let decision = decide(&summary, &asked, &NodeDevices::new(Vec::new(), Bytes(u64::MAX / 2))).map_err(refused)?;
    decision.verdict.map_err(refused)?;
    let path = model.file_name().and_then(|name| name.to_str()).context("the model's name is no UTF-8")?;
    let model = ModelSource { path: Some(path.to_owned()), ..ModelSource::default() };
    Ok(Assignment {
        source: AssignedSource { model, ..AssignedSource::default() },
        request: decision.report.request,
        plan: decision.report.plan,
        ..testing::assignment("measured")
    })
}

/// What its worker has resident when it serves out of memory.
async fn serve(agent: &Path, model: &Path, assignment: Assignment) -> Result<Bytes> {
    let directory = tempfile::tempdir()?;
    let folder = model.parent().map(Path::to_owned);
    let store = Store::new(StoreConfig::new(folder, directory.path().join("cache"), AddressPolicy::public()));
    let config = SupervisorConfig {
        worker_log: WorkerLog::Directory(directory.path().join("logs")),
        ..SupervisorConfig::new(directory.path().join("run"), agent, [127, 0, 0, 1].into())
    };
    let supervisor = Supervisor::new(config, |_| std::future::ready(Ok(())), Arc::new(store))?;
    let uid = assignment.uid.clone();
    supervisor.start(&assignment);
    let mut views = supervisor.views();
    // Its speed is measured when all weights are in memory.
    let settled = |view: &WorkerView| match view.status.state {
        ReplicaState::Pending | ReplicaState::Downloading | ReplicaState::Loading => false,
        ReplicaState::Ready => view.status.speed.is_some(),
        _ => true,
    };
    let found = tokio::time::timeout(PATIENCE, views.wait_for(|views| views.get(&uid).is_some_and(settled))).await;
    let view = found.context("it took too long")?.context("the supervisor ended")?.get(&uid).cloned().unwrap_or_default();
    let resident = view.pid.filter(|_| view.is_ready()).map(resident);
    supervisor.end_all(Some(Timestamp::now())).await;
    match resident {
        Some(resident) => resident,
        None => bail!("it does not serve: {:?} {}", view.status.reason, view.status.message),
    }
}

fn resident(pid: u32) -> Result<Bytes> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("there is no VmRSS in its status")?;
    Ok(Bytes(line.trim().trim_end_matches(" kB").parse::<u64>()? << 10))
}
