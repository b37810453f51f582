//! Workers in Pods of their own against a real API server, by the chart's own accounts. The kubelet and the scheduler are played by the test
//! ([`PlayedKubelet`]), which runs the real worker in place of its container; `make e2e` has real ones.
#![allow(clippy::unwrap_used)]

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::api::ListParams;
use kube::{Api, ResourceExt};
use serde_json::json;
use stowage_control_plane::processes::wait_for;
use stowage_crds::conditions::ConditionType;
use stowage_crds::model_deployment::PlacementStatus;
use stowage_crds::{ModelDeployment, names};
use stowage_end_to_end::client::{Stream, worker_url};
use stowage_end_to_end::played_kubelet::PlayedKubelet;
use stowage_end_to_end::{AgentOptions, Cluster, Settings, api, drain, manifest, models, watch};
use stowage_placement::Reason;
use tempfile::TempDir;

const NODE: &str = "node-a";
const OTHER: &str = "node-b";

struct Scene {
    cluster: Cluster,
    kubelet: PlayedKubelet,
    /// The run directory of the agent on [`NODE`].
    run: TempDir,
    /// That of the one on [`OTHER`], if it is started.
    other_run: TempDir,
}

impl Scene {
    /// One node without GPUs, on which nothing runs yet.
    async fn start() -> Result<Scene> {
        let run = tempfile::Builder::new().prefix("stowage-run-").tempdir()?;
        let other_run = tempfile::Builder::new().prefix("stowage-run-").tempdir()?;
        let values = vec!["--set".to_owned(), format!("workers.pod.runDirectory={}", run.path().display())];
        let mut cluster = Cluster::start(Settings { worker_pods: Some(values), installed: true, ..Settings::default() }).await?;
        let elsewhere = [(OTHER.to_owned(), (run.path().to_owned(), other_run.path().to_owned()))].into();
        let kubelet = PlayedKubelet::start(cluster.client.clone(), cluster.folder().to_owned(), elsewhere);
        let pod_run_directory = Some(run.path().to_owned());
        cluster.start_agent(AgentOptions { pod_run_directory, ..AgentOptions::new(NODE, models::directory()?) }).await?;
        cluster.until_node(NODE, api::reports).await?;
        Ok(Scene { cluster, kubelet, run, other_run })
    }

    async fn serving() -> Result<(Scene, ModelDeployment)> {
        let scene = Scene::start().await?;
        scene.cluster.create(&manifest::with_policy("m", "RequireCPU")).await?;
        let ready = scene.cluster.until("m", watch::is_ready).await?;
        Ok((scene, ready))
    }

    async fn start_other_node(&mut self) -> Result<()> {
        let pod_run_directory = Some(self.other_run.path().to_owned());
        self.cluster.start_agent(AgentOptions { pod_run_directory, ..AgentOptions::new(OTHER, models::directory()?) }).await?;
        self.cluster.until_node(OTHER, api::reports).await.map(drop)
    }

    async fn pods(&self) -> Result<Vec<Pod>> {
        let pods: Api<Pod> = Api::namespaced(self.cluster.client.clone(), names::SYSTEM_NAMESPACE);
        Ok(pods.list(&ListParams::default().labels(names::ASSIGNMENT_LABEL)).await?.items)
    }

    async fn only_pod(&self) -> Result<Pod> {
        let mut pods = self.pods().await?;
        ensure!(pods.len() == 1, "one Pod should be there: {:?}", pods.iter().map(ResourceExt::name_any).collect::<Vec<_>>());
        Ok(pods.remove(0))
    }

    /// Waits until no Pod is left.
    async fn no_pod(&self) -> Result<()> {
        let gone = wait_for(watch::DEADLINE, async || self.pods().await.ok().filter(Vec::is_empty));
        gone.await.map(drop).with_context(|| self.cluster.logs())
    }

    fn files(&self) -> Result<Vec<String>> {
        let names = std::fs::read_dir(self.run.path().join("pods"))?.map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()));
        names.collect()
    }
}

fn placement(m: &ModelDeployment) -> &PlacementStatus {
    &m.status.as_ref().unwrap().placements[0]
}

async fn answers(m: &ModelDeployment) -> Result<()> {
    Stream::start(&worker_url(m)?, "m", "The capital of Japan is", 4).await?.rest().await.map(drop)
}

async fn goes_by(url: &str, name: &str) -> Result<bool> {
    let tags: serde_json::Value = reqwest::get(format!("{url}/api/tags")).await?.json().await?;
    Ok(tags.to_string().contains(name))
}

#[tokio::test(flavor = "multi_thread")]
async fn with_a_played_kubelet_a_worker_in_a_pod_serves_through_restarts_of_agent_and_operator_and_goes_when_released() -> Result<()> {
    let (mut scene, ready) = Scene::serving().await?;
    let pod = scene.only_pod().await?;
    let (uid, before) = (pod.uid().unwrap(), scene.kubelet.running());
    ensure!(placement(&ready).pod_ref == format!("{}/{}", names::SYSTEM_NAMESPACE, pod.name_any()), "{:?}", placement(&ready));
    ensure!(pod.owner_references()[0].name == "stowage-worker", "{:?}", pod.owner_references());
    let slices: Api<EndpointSlice> = Api::namespaced(scene.cluster.client.clone(), "default");
    watch::first(slices, |slice| slice.metadata.name.as_deref() == Some(placement(&ready).replica.as_str())).await?;
    answers(&ready).await?;

    scene.cluster.agents[0].process.kill();
    answers(&ready).await?;
    scene.cluster.succeed_agent(0)?;
    takes_over(&scene, &ready, "first").await?;
    tokio::task::block_in_place(|| scene.cluster.agents[0].process.stop(Duration::from_secs(30)));
    answers(&ready).await?;
    scene.cluster.succeed_agent(0)?;
    takes_over(&scene, &ready, "second").await?;

    let leader = scene.cluster.leader(None).await?;
    scene.cluster.operators[leader.index].kill();
    scene.cluster.succeed_operator(leader.index)?;
    scene.cluster.leader(Some(&leader.name)).await?;
    takes_over(&scene, &ready, "third").await?;
    ensure!(scene.only_pod().await?.uid() == Some(uid.clone()), "it should be the same Pod all the while");
    ensure!(scene.kubelet.running() == before && scene.kubelet.started() == 1, "and the same process, loaded once");
    let node = scene.cluster.model_nodes().get(NODE).await?;
    let replica = api::replica(&node, &placement(&ready).assignment_uid).context("it is reported")?;
    ensure!((replica.restarts, replica.pod_uid.as_str()) == (0, uid.as_str()), "{replica:?}");

    scene.cluster.delete("m").await?;
    scene.no_pod().await?;
    scene.cluster.until_node(NODE, |node| node.spec.assignments.is_empty()).await?;
    watch::until("the socket alone is left", || scene.files().is_ok_and(|files| files == ["agent.sock"])).await?;
    ensure!(scene.kubelet.running().is_empty() && scene.kubelet.started() == 1, "nothing runs, and nothing more was started");
    drop(scene.kubelet);
    scene.cluster.stop()
}

/// Whoever was restarted passes on what is new: a name.
async fn takes_over(scene: &Scene, m: &ModelDeployment, name: &str) -> Result<()> {
    let url = worker_url(m)?;
    scene.cluster.change("m", json!({"aliases": [name]})).await?;
    let heard = wait_for(watch::DEADLINE, async || goes_by(&url, name).await.ok().filter(|yes| *yes));
    heard.await.map(drop).with_context(|| scene.cluster.logs())?;
    scene.cluster.until("m", watch::is_ready).await.map(drop)
}

#[tokio::test(flavor = "multi_thread")]
async fn with_a_played_kubelet_a_worker_that_dies_is_made_anew_and_one_that_memory_ran_out_for_is_placed_anew_with_the_reason() -> Result<()>
{
    let (scene, ready) = Scene::serving().await?;
    let first = scene.only_pod().await?.uid().unwrap();
    scene.kubelet.kill(&first);
    let again = scene.cluster.until("m", |m| watch::is_ready(m) && scene.kubelet.started() == 2).await?;
    ensure!(watch::assignments(&again) == watch::assignments(&ready), "it is the same promise");
    answers(&again).await?;
    let second = scene.only_pod().await?.uid().unwrap();
    ensure!(second != first, "in another Pod");

    scene.kubelet.play_out_of_memory(&second);
    let told = scene.cluster.until("m", |m| {
        let placements = m.status.iter().flat_map(|status| &status.placements);
        let reasons: Vec<&str> = placements.map(|on| on.reason.as_str()).collect();
        reasons.contains(&"OutOfMemory") || watch::message(m, ConditionType::Ready).contains("for memory ran out")
    });
    let told = told.await?;
    println!("{:?}", placement(&told).message);
    let elsewhere = scene.cluster.until("m", |m| watch::is_ready(m) && watch::assignments(m) != watch::assignments(&ready)).await?;
    answers(&elsewhere).await?;
    ensure!(scene.only_pod().await?.uid() != Some(second), "in yet another Pod, of another assignment");
    drop(scene.kubelet);
    scene.cluster.stop()
}

#[tokio::test(flavor = "multi_thread")]
async fn with_a_played_scheduler_and_kubelet_a_pod_that_finds_no_room_or_can_not_start_says_so_in_its_replicas_story() -> Result<()> {
    let scene = Scene::start().await?;
    let message = "0/1 nodes are available: 1 Insufficient memory.";
    scene.kubelet.no_room(Some(message));
    scene.cluster.create(&manifest::with_policy("m", "RequireCPU")).await?;
    let told = scene.cluster.until("m", |m| m.status.iter().flat_map(|s| &s.placements).any(|on| on.message.contains(message))).await?;
    ensure!(placement(&told).reason.as_str() == "PodUnschedulable", "{:?}", placement(&told));
    ensure!(watch::message(&told, ConditionType::Ready).contains(message), "{:?}", told.status);
    scene.kubelet.cannot_start(Some(("ErrImagePull", "no such image")));
    scene.kubelet.no_room(None);
    scene.cluster.says("m", Reason::PodNotStarted, "ErrImagePull: no such image").await?;
    scene.kubelet.cannot_start(None);
    scene.cluster.until("m", watch::is_ready).await?;
    scene.cluster.delete("m").await?;
    scene.no_pod().await?;
    drop(scene.kubelet);
    scene.cluster.stop()
}

#[tokio::test(flavor = "multi_thread")]
async fn with_played_kubelets_a_drain_waits_until_the_replica_serves_elsewhere() -> Result<()> {
    let (mut scene, ready) = Scene::serving().await?;
    let pod = scene.only_pod().await?.name_any();
    let log = scene.cluster.folder().join("drain.log");
    let mut drain = drain::begin(scene.cluster.kubectl(), NODE, &log).await?;
    scene.cluster.says("m", Reason::NodeUnschedulable, NODE).await?;
    answers(&ready).await?;
    ensure!(scene.only_pod().await?.name_any() == pod, "it stays where it is as long as there is no other place");

    scene.start_other_node().await?;
    let moved = scene.cluster.until("m", |m| watch::is_ready(m) && placement(m).node == OTHER).await?;
    answers(&moved).await?;
    watch::until("the drain is done", || drain.exited().is_ok_and(|ended| ended.is_some())).await?;
    let said = std::fs::read_to_string(&log)?;
    ensure!(drain.exited()?.is_some_and(|status| status.success()), "{said}");
    ensure!(scene.only_pod().await?.name_any() != pod, "{said}");
    drop(scene.kubelet);
    scene.cluster.stop()
}
