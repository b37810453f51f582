//! Behind `make fleet`: how long it takes from a ModelDeployment's being there to its having a place, on a cluster of many nodes. A measurement: it holds nothing to a limit.
//!
//! The nodes' agents share this process, and carry nothing out ([`IdleAgents`]).

use std::collections::BTreeMap;
use std::fs;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use futures::future::try_join_all;
use futures::{StreamExt, pin_mut};
use kube::ResourceExt;
use kube::api::{Patch, PatchParams};
use kube::runtime::{WatchStreamExt, watcher};
use stowage_control_plane::processes::wait_for;
use stowage_crds::ModelDeployment;
use stowage_crds::conditions::ConditionType;
use stowage_end_to_end::idle_agents::IdleAgents;
use stowage_end_to_end::{Cluster, Settings, manifest, watch};

const NODES: usize = 50;
const DEPLOYMENTS: usize = 200;
/// For all that are made, twice.
const ROOM: u64 = 10;

/// When each ModelDeployment was first seen with a place.
#[derive(Clone, Default)]
struct Scheduled(Arc<Mutex<BTreeMap<String, Instant>>>);

impl Scheduled {
    fn follow(cluster: &Cluster) -> Scheduled {
        let (seen, deployments) = (Scheduled::default(), cluster.deployments());
        let notes = seen.clone();
        tokio::spawn(async move {
            let changes = watcher(deployments, watcher::Config::default()).default_backoff().applied_objects();
            pin_mut!(changes);
            while let Some(change) = changes.next().await {
                change.iter().for_each(|deployment| notes.take_in(deployment));
            }
        });
        seen
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, Instant>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn take_in(&self, deployment: &ModelDeployment) {
        if watch::is(deployment, ConditionType::Scheduled, "True") {
            self.lock().entry(deployment.name_any()).or_insert_with(Instant::now);
        }
    }

    fn when(&self, name: &str) -> Option<Instant> {
        self.lock().get(name).copied()
    }

    /// Applies it, as `kubectl apply --server-side` does, and says how long things then took.
    async fn time(&self, cluster: &Cluster, name: String) -> Result<Times> {
        let began = Instant::now();
        let applied = cluster.deployments().patch(&name, &PatchParams::apply("kubectl"), &Patch::Apply(manifest::on_gpu(&name))).await;
        applied.with_context(|| format!("applying ModelDeployment {name}"))?;
        let apply = began.elapsed();
        let placed = wait_for(watch::DEADLINE, async || self.when(&name)).await;
        let scheduled = placed.with_context(|| format!("{name} has no place\n{}", cluster.logs()))? - began;
        Ok(Times { apply, scheduled })
    }
}

/// Of one ModelDeployment, from when it was sent.
struct Times {
    /// Until the API server had taken it, which is none of the operator's doing.
    apply: Duration,
    scheduled: Duration,
}

fn report(what: &str, times: &[Times]) {
    let figures = |of: fn(&Times) -> Duration| {
        let mut times: Vec<u128> = times.iter().map(|times| of(times).as_millis()).collect();
        times.sort_unstable();
        let at = |percent: usize| times[(times.len() * percent).div_ceil(100) - 1];
        format!("p50 {} ms, p90 {} ms, p99 {} ms, most {} ms", at(50), at(90), at(99), at(100))
    };
    println!(
        "fleet: {NODES} nodes, {} ModelDeployments {what}, from apply to Scheduled: {}; the applies alone took {}",
        times.len(),
        figures(|times| times.scheduled),
        figures(|times| times.apply)
    );
}

/// What the operator has used of a processor since it was started.
fn processor_time(cluster: &Cluster) -> Result<Duration> {
    let path = format!("/proc/{}/stat", cluster.operators[0].pid());
    let stat = fs::read_to_string(&path).with_context(|| format!("reading {path}"))?;
    // After the name, which is in brackets and may have spaces: the 12th and 13th are ticks in user and in system mode.
    let (_, fields) = stat.rsplit_once(')').with_context(|| format!("{path} is {stat}"))?;
    let ticks: u64 = fields.split_whitespace().skip(11).take(2).filter_map(|field| field.parse::<u64>().ok()).sum();
    Ok(Duration::from_secs_f64(ticks as f64 / rustix::param::clock_ticks_per_second() as f64))
}

#[tokio::main]
async fn main() -> Result<()> {
    let cluster = Cluster::start(Settings { without_controller_manager: true, ..Settings::default() }).await?;
    let nodes: Vec<String> = (0..NODES).map(|index| format!("node-{index:02}")).collect();
    let agents = IdleAgents::start(&cluster, &nodes, manifest::room_for(ROOM)).await?;
    let scheduled = Scheduled::follow(&cluster);
    let mut one_by_one = Vec::new();
    for index in 0..DEPLOYMENTS {
        one_by_one.push(scheduled.time(&cluster, format!("a-{index:03}")).await?);
    }
    report("one after another", &one_by_one);
    let before = processor_time(&cluster)?;
    let at_once = try_join_all((0..DEPLOYMENTS).map(|index| scheduled.time(&cluster, format!("b-{index:03}")))).await?;
    report("at once", &at_once);
    println!("fleet: the operator used {} ms of a processor for those at once", (processor_time(&cluster)? - before).as_millis());
    drop(agents);
    cluster.stop()?;
    println!("fleet: no device was promised beyond what it has, and no replica twice");
    Ok(())
}
