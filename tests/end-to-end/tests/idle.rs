//! A cluster in which nothing happens, by the API server's own count of what was asked of it. In a program of its own, so that no other test runs beside it.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;

use anyhow::{Context, Result, ensure};
use futures::{StreamExt, pin_mut};
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::jiff::Timestamp;
use kube::runtime::WatchStreamExt;
use kube::runtime::watcher::{Config, Event, watcher};
use kube::{Api, ResourceExt};
use stowage_crds::{ModelNode, names};
use stowage_end_to_end::{Cluster, Settings, manifest, watch};
use stowage_placement::Bytes;
use stowage_placement::Defaults;

/// Writes that the API server was ever asked for, Leases left out, by verb and resource.
async fn writes(cluster: &Cluster) -> Result<BTreeMap<String, u64>> {
    let request = http::Request::get("/metrics").body(Vec::new())?;
    let text = cluster.client.request_text(request).await.context("asking the API server for its metrics")?;
    let mut writes = BTreeMap::new();
    for line in text.lines().filter(|line| line.starts_with("apiserver_request_total{")) {
        let label = |name: &str| line.split_once(&format!("{name}=\"")).and_then(|(_, rest)| rest.split_once('"')).map(|(value, _)| value);
        let (verb, resource) = (label("verb").unwrap_or_default(), label("resource").unwrap_or_default());
        if matches!(verb, "GET" | "LIST" | "WATCH" | "CONNECT") || resource == "leases" {
            continue;
        }
        let count = line.rsplit_once(' ').and_then(|(_, count)| count.parse::<u64>().ok()).context("a count ends the line")?;
        *writes.entry(format!("{verb} {resource}/{}", label("subresource").unwrap_or_default())).or_default() += count;
    }
    ensure!(!writes.is_empty(), "the API server counted no write at all, though there were some");
    Ok(writes)
}

/// Until each of these nodes' Leases has been renewed so many times: every ten seconds.
async fn renewals(cluster: &Cluster, nodes: &[&str], times: usize) -> Result<()> {
    let leases: Api<Lease> = Api::namespaced(cluster.client.clone(), names::SYSTEM_NAMESPACE);
    let events = watcher(leases, Config::default()).default_backoff();
    pin_mut!(events);
    let mut renewed: BTreeMap<String, usize> = nodes.iter().map(|node| (names::node_lease(node), 0)).collect();
    while renewed.values().any(|seen| *seen < times) {
        if let Event::Apply(lease) = events.next().await.context("the watch of the Leases ended")??
            && let Some(seen) = renewed.get_mut(&lease.name_any())
        {
            *seen += 1;
        }
    }
    Ok(())
}

const IDLE_NODES: [(&str, u64); 3] = [("node-a", 4), ("node-b", 3), ("node-c", 3)];

/// How often an agent wrote because the machine's memory in use had moved far, which other processes of this machine may do at any time.
#[derive(Default)]
struct MemoryMoved {
    nodes: BTreeMap<String, ModelNode>,
    times: u64,
}

impl MemoryMoved {
    fn take_in(&mut self, node: ModelNode) {
        let Some(before) = self.nodes.insert(node.name_any(), node.clone()) else { return };
        let (moved, rest_is_same) = (memory(&before).0.abs_diff(memory(&node).0), without_memory(before) == without_memory(node.clone()));
        let threshold =
            Defaults::default().margin(node.status.and_then(|status| status.system).map(|system| system.memory_bytes).unwrap_or_default());
        self.times += u64::from(rest_is_same && moved > threshold.0);
    }
}

fn memory(node: &ModelNode) -> Bytes {
    let system = node.status.as_ref().and_then(|status| status.system.as_ref());
    system.map(|system| system.memory_used_by_others_bytes).unwrap_or_default()
}

fn without_memory(mut node: ModelNode) -> ModelNode {
    node.metadata.resource_version = None;
    node.metadata.managed_fields = None;
    if let Some(system) = node.status.as_mut().and_then(|status| status.system.as_mut()) {
        system.memory_used_by_others_bytes = Bytes::ZERO;
    }
    node
}

/// Follows the ModelNodes until `end`.
async fn memory_moved_until(cluster: &Cluster, end: impl Future<Output = Result<()>>) -> Result<u64> {
    let events = watcher(cluster.model_nodes(), Config::default()).default_backoff();
    pin_mut!(events, end);
    let mut moved = MemoryMoved::default();
    loop {
        tokio::select! {
            ended = &mut end => return ended.map(|()| moved.times),
            event = events.next() => if let Event::Apply(node) | Event::InitApply(node) = event.context("the watch of the ModelNodes ended")?? {
                moved.take_in(node);
            },
        }
    }
}

/// Ten ModelDeployments on three nodes, all ready; then only Leases may be written for as long as so many renewals take.
async fn nothing_is_written(times: usize) -> Result<()> {
    let mut cluster = Cluster::start(Settings { without_controller_manager: true, ..Settings::default() }).await?;
    cluster.start_gpu_nodes(&IDLE_NODES.map(|(node, room)| (node, manifest::room_for(room)))).await?;
    let deployments: Vec<String> = (0..10).map(|index| format!("m-{index}")).collect();
    for name in &deployments {
        cluster.create(&manifest::on_gpu(name)).await?;
    }
    for name in &deployments {
        cluster.until(name, watch::is_ready).await?;
    }
    let nodes = IDLE_NODES.map(|(node, _)| node);
    // Figures that moved while the models loaded may be published up to ten seconds after.
    renewals(&cluster, &nodes, 2).await?;
    let (before, began) = (writes(&cluster).await?, Timestamp::now());
    let memory_moved = memory_moved_until(&cluster, renewals(&cluster, &nodes, times)).await?;
    let (after, lasted) = (writes(&cluster).await?, Timestamp::now().duration_since(began));
    let explained = BTreeMap::from([("APPLY modelnodes/status", memory_moved)]);
    let counted = after.iter().map(|(what, count)| {
        let known = before.get(what).unwrap_or(&0) + explained.get(what.as_str()).unwrap_or(&0);
        (what, count.saturating_sub(known))
    });
    let written: BTreeMap<&String, u64> = counted.filter(|(_, count)| *count > 0).collect();
    let seconds = lasted.as_secs_f64();
    println!(
        "in {seconds:.0} s, with {} ModelDeployments ready: {written:?}; the machine's memory moved {memory_moved} times",
        deployments.len()
    );
    ensure!(written.is_empty(), "nothing changed, and this was written: {written:?}\n{}", cluster.logs());
    cluster.stop()
}

#[tokio::test(flavor = "multi_thread")]
async fn where_nothing_changes_nothing_is_written_but_leases() -> Result<()> {
    nothing_is_written(3).await
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes two and a half minutes; `make verify` runs it"]
async fn where_nothing_changes_for_two_minutes_nothing_is_written_but_leases() -> Result<()> {
    nothing_is_written(12).await
}
