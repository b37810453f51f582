//! Agents that share this process and carry nothing out: each is the agent's own controller and heartbeat for a node of its own, and what is assigned to it
//! stays pending. Devices and workers are none.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use k8s_openapi::api::core::v1::Node;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::Api;
use kube::api::{ObjectMeta, PostParams};
use stowage_agent::devices::{Gpu, HostReading, Reading};
use stowage_agent::node::calibrator::Calibrator;
use stowage_agent::node::controller::{Controller, Parts};
use stowage_agent::node::lease;
use stowage_agent::node::workers::Workers;
use stowage_agent::store::{Models, Store, StoreConfig};
use stowage_agent::worker::view::{Views, WorkerView};
use stowage_crds::model_node::{Assignment, DeviceBackend};
use stowage_crds::names;
use stowage_placement::Bytes;
use tokio::sync::{mpsc, watch as channel};
use tokio_util::sync::CancellationToken;

use crate::{Cluster, api, models};

const SCAN_EVERY: Duration = Duration::from_secs(3600);

/// They end when this is dropped.
pub struct IdleAgents {
    stop: CancellationToken,
    models: channel::Receiver<Models>,
    /// Of the one GPU of each.
    vram: Bytes,
}

impl Drop for IdleAgents {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

impl IdleAgents {
    /// One for each of these nodes, whose Nodes are made, with a simulated GPU of this size. All of them have reported when it returns.
    pub async fn start(cluster: &Cluster, nodes: &[String], vram: Bytes) -> Result<IdleAgents> {
        let cache = cluster.folder().join("store");
        let store = Arc::new(Store::new(StoreConfig::new(Some(models::directory()?), cache, Default::default())));
        let shared = store.clone();
        tokio::spawn(async move { shared.watch(SCAN_EVERY).await });
        let agents = IdleAgents { stop: CancellationToken::new(), models: store.models(), vram };
        for node in nodes {
            agents.start_one(cluster, node.clone()).await?;
        }
        for node in nodes {
            cluster.until_node(node, api::reports).await?;
        }
        Ok(agents)
    }

    async fn start_one(&self, cluster: &Cluster, node: String) -> Result<()> {
        let object = Node { metadata: ObjectMeta { name: Some(node.clone()), ..Default::default() }, ..Default::default() };
        Api::all(cluster.client.clone()).create(&PostParams::default(), &object).await.context("making a Node")?;
        let client = cluster.client.clone();
        tokio::spawn(lease::keep(client.clone(), names::SYSTEM_NAMESPACE.to_owned(), node.clone(), self.stop.clone()));
        // Nobody asks at the gate: there are no workers.
        let (_, gate) = mpsc::channel(1);
        let read = reading(&node, self.vram);
        let controller = Controller::new(Parts {
            client,
            address: "192.0.2.10".to_owned(),
            workers: NoWorkers(channel::Sender::default()),
            devices: Arc::new(move || read.clone()),
            models: self.models.clone(),
            gate,
            routes: channel::Sender::default(),
            figures: channel::Sender::default(),
            calibration: cluster.node_folder(&node).join("calibration.json"),
            calibrator: Calibrator::default(),
            leaving: CancellationToken::new(),
            node,
        });
        tokio::spawn(controller.run(self.stop.clone()));
        Ok(())
    }
}

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

fn reading(node: &str, vram: Bytes) -> Reading {
    let backend = DeviceBackend::Simulated;
    let gpu = Gpu { uuid: format!("GPU-{node}"), name: "Simulated GPU".into(), backend, total: vram, free: vram, ..Gpu::default() };
    let host = HostReading { cores: 8, memory: Bytes::gib(64), ..HostReading::default() };
    Reading { gpus: vec![gpu], host, ..Reading::default() }
}
