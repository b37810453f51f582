//! Behind `make fleet`: how long it takes from a ModelDeployment's being there to its having a place, on a cluster of many nodes. A measurement: it holds nothing to a limit.
//!
//! The nodes' agents share this process. Each is the agent's own controller and heartbeat; only devices and workers are none.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use futures::future::try_join_all;
use futures::{StreamExt, pin_mut};
use k8s_openapi::api::core::v1::Node;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::api::{ObjectMeta, PostParams};
use kube::runtime::{WatchStreamExt, watcher};
use kube::{Api, ResourceExt};
use stowage_agent::devices::{Gpu, HostReading, Reading};
use stowage_agent::node::controller::{Controller, Parts};
use stowage_agent::node::lease;
use stowage_agent::node::workers::Workers;
use stowage_agent::store::{Models, Store, StoreConfig};
use stowage_agent::worker::view::{Views, WorkerView};
use stowage_control_plane::processes::wait_for;
use stowage_crds::conditions::ConditionType;
use stowage_crds::model_node::{Assignment, DeviceBackend};
use stowage_crds::{ModelDeployment, names};
use stowage_end_to_end::{Cluster, Settings, api, manifest, models, watch};
use stowage_placement::Bytes;
use tokio::sync::{mpsc, watch as channel};
use tokio_util::sync::CancellationToken;

const NODES: usize = 50;
const DEPLOYMENTS: usize = 200;
/// For all that are made, twice.
const ROOM: u64 = 10;
const SCAN_EVERY: Duration = Duration::from_secs(3600);

/// Carries nothing out: what is assigned stays pending.
struct NoWorkers(channel::Sender<Views>);

impl Workers for NoWorkers {
    fn start(&self, assignment: &Assignment) {
        self.0.send_modify(|views| drop(views.insert(assignment.uid.clone(), WorkerView::pending(assignment))));
    }
    fn update(&self, _: &Assignment) {}
    fn drain(&self, _: &Assignment) {}
    fn release(&self, uid: &str, _: Option<Time>) {
        self.0.send_modify(|views| drop(views.insert(uid.to_owned(), WorkerView::gone(uid))));
    }
    fn forget(&self, uid: &str) {
        self.0.send_modify(|views| drop(views.remove(uid)));
    }
    fn views(&self) -> channel::Receiver<Views> {
        self.0.subscribe()
    }
}

fn reading(node: &str) -> Reading {
    let total = manifest::room_for(ROOM);
    let backend = DeviceBackend::Simulated;
    let gpu = Gpu { uuid: format!("GPU-{node}"), name: "Simulated GPU".into(), backend, total, free: total, ..Gpu::default() };
    let host = HostReading { cores: 8, memory: Bytes::gib(64), ..HostReading::default() };
    Reading { gpus: vec![gpu], host, ..Reading::default() }
}

async fn start_agent(cluster: &Cluster, node: String, models: channel::Receiver<Models>, stop: &CancellationToken) -> Result<()> {
    let object = Node { metadata: ObjectMeta { name: Some(node.clone()), ..Default::default() }, ..Default::default() };
    Api::all(cluster.client.clone()).create(&PostParams::default(), &object).await.context("making a Node")?;
    let client = cluster.client.clone();
    tokio::spawn(lease::keep(client.clone(), names::SYSTEM_NAMESPACE.to_owned(), node.clone(), stop.clone()));
    // Nobody asks at the gate: there are no workers.
    let (_, gate) = mpsc::channel(1);
    let read = reading(&node);
    let controller = Controller::new(Parts {
        client,
        address: "192.0.2.10".to_owned(),
        workers: NoWorkers(channel::Sender::default()),
        devices: Arc::new(move || read.clone()),
        models,
        gate,
        routes: channel::Sender::default(),
        figures: channel::Sender::default(),
        calibration: cluster.node_folder(&node).join("calibration.json"),
        leaving: CancellationToken::new(),
        node,
    });
    tokio::spawn(controller.run(stop.clone()));
    Ok(())
}

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

    /// Makes it, and says how long it then took.
    async fn time(&self, cluster: &Cluster, name: String) -> Result<Duration> {
        let began = Instant::now();
        cluster.create(&manifest::on_gpu(&name)).await?;
        let placed = wait_for(watch::DEADLINE, async || self.when(&name)).await;
        Ok(placed.with_context(|| format!("{name} has no place\n{}", cluster.logs()))? - began)
    }
}

fn report(what: &str, mut times: Vec<Duration>) {
    times.sort();
    let at = |percent: usize| times[(times.len() * percent).div_ceil(100) - 1].as_millis();
    println!(
        "fleet: {NODES} nodes, {} ModelDeployments {what}, from apply to Scheduled: p50 {} ms, p90 {} ms, p99 {} ms, most {} ms",
        times.len(),
        at(50),
        at(90),
        at(99),
        at(100)
    );
}

#[tokio::main]
async fn main() -> Result<()> {
    let cluster = Cluster::start(Settings { without_controller_manager: true, ..Settings::default() }).await?;
    let stop = CancellationToken::new();
    let cache = cluster.folder().join("store");
    let store = Arc::new(Store::new(StoreConfig::new(Some(models::directory()?), cache, Default::default())));
    let shared = store.clone();
    tokio::spawn(async move { shared.watch(SCAN_EVERY).await });
    let nodes: Vec<String> = (0..NODES).map(|index| format!("node-{index:02}")).collect();
    for node in &nodes {
        start_agent(&cluster, node.clone(), store.models(), &stop).await?;
    }
    for node in &nodes {
        cluster.until_node(node, api::reports).await?;
    }
    let scheduled = Scheduled::follow(&cluster);
    let mut one_by_one = Vec::new();
    for index in 0..DEPLOYMENTS {
        one_by_one.push(scheduled.time(&cluster, format!("a-{index:03}")).await?);
    }
    report("one after another", one_by_one);
    let at_once = try_join_all((0..DEPLOYMENTS).map(|index| scheduled.time(&cluster, format!("b-{index:03}")))).await?;
    report("at once", at_once);
    stop.cancel();
    cluster.stop()
}
