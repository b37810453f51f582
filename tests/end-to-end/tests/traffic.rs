//! Requests go on being answered while what answers them is changed, scaled, drained, paused and killed.
#![allow(clippy::unwrap_used)]

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::jiff::Timestamp;
use kube::Api;
use rustix::process::Signal;
use serde_json::json;
use stowage_crds::{ModelDeployment, names};
use stowage_end_to_end::endpoints::{Endpoint, Endpoints};
use stowage_end_to_end::traffic::Traffic;
use stowage_end_to_end::workers::{self, Worker};
use stowage_end_to_end::{Cluster, Settings, manifest, watch};

const NODES: [&str; 3] = ["node-a", "node-b", "node-c"];
/// For requests that fall between one step and the next.
const ANSWERS_BETWEEN: usize = 10;

struct Scene {
    cluster: Cluster,
    traffic: Traffic,
    began: Instant,
}

impl Scene {
    async fn start() -> Result<Scene> {
        let mut cluster = Cluster::start(Settings::default()).await?;
        cluster.start_operator()?;
        // Each has room for two replicas and not for three, so that they are spread and can be replaced with the new one first.
        cluster.start_gpu_nodes(&NODES.map(|node| (node, manifest::room_for(2)))).await?;
        cluster.create(&manifest::on_gpu("m")).await?;
        cluster.until("m", |m| watch::is_settled(m, 1, 512)).await?;
        let endpoints = Endpoints::follow(&cluster.client, "default", "m");
        watch::until("an endpoint", || !endpoints.ready().is_empty()).await?;
        let traffic = Traffic::start("m", endpoints);
        let scene = Scene { cluster, traffic, began: Instant::now() };
        scene.after("it serves").await?;
        Ok(scene)
    }

    /// Tells what is over, once some more requests have been answered.
    async fn after(&self, step: &str) -> Result<()> {
        let wanted = self.traffic.answered() + ANSWERS_BETWEEN;
        watch::until("some more answers", || self.traffic.answered() >= wanted).await?;
        println!("[{:5.1} s] {step}; {} answers", self.began.elapsed().as_secs_f64(), self.traffic.answered());
        Ok(())
    }

    /// Changes the spec and waits until so many replicas, all with this context, are there and no others.
    async fn change(&self, spec: serde_json::Value, replicas: usize, num_ctx: u64) -> Result<ModelDeployment> {
        self.cluster.change("m", spec).await?;
        let settled = self.cluster.until("m", |m| watch::is_settled(m, replicas, num_ctx)).await?;
        watch::until("as many endpoints as replicas", || self.traffic.endpoints().ready().len() == replicas).await?;
        Ok(settled)
    }

    async fn rolls_twice(&self) -> Result<()> {
        for num_ctx in [1024, 512] {
            self.change(json!({"parameters": {"num_ctx": num_ctx}}), 1, num_ctx).await?;
            self.after(&format!("rolled to num_ctx {num_ctx}")).await?;
        }
        Ok(())
    }

    async fn scales(&self, replicas: &[usize]) -> Result<()> {
        for replicas in replicas {
            self.change(json!({"replicas": replicas}), *replicas, 512).await?;
            self.after(&format!("scaled to {replicas}")).await?;
        }
        Ok(())
    }

    async fn drains_a_node(&self) -> Result<()> {
        let node = self.cluster.deployments().get("m").await?.status.unwrap().placements[0].node.clone();
        self.cluster.cordon(&node, true).await?;
        let left =
            |m: &ModelDeployment| watch::is_settled(m, 2, 512) && m.status.iter().flat_map(|s| &s.placements).all(|on| on.node != node);
        self.cluster.until("m", left).await?;
        self.after(&format!("{node} is drained")).await?;
        self.cluster.cordon(&node, false).await
    }

    /// A replica, its worker and its endpoint.
    fn victim(&self) -> Result<(Worker, Endpoint)> {
        let running = workers::running(self.cluster.folder());
        let endpoints = self.traffic.endpoints().ready();
        let of = |endpoint: &Endpoint| running.iter().find(|worker| worker.replica == endpoint.replica).cloned();
        endpoints.into_iter().find_map(|endpoint| Some((of(&endpoint)?, endpoint))).context("a worker has an endpoint")
    }

    async fn pauses_a_worker(&self) -> Result<()> {
        let (worker, endpoint) = self.victim()?;
        let paused = self.traffic.disturb(&endpoint);
        worker.signal(Signal::STOP);
        let gone = self.until_gone(&endpoint, paused).await?;
        ensure!(worker.lives(), "its endpoint should go because it is silent, before it is ended for that");
        println!("a paused worker's endpoint went {:.2} s after it was paused", (gone - paused).as_secs_f64());
        self.after("a worker is paused and out of service").await?;
        worker.signal(Signal::CONT);
        watch::until("its endpoint is back", || self.traffic.endpoints().ready().contains(&endpoint)).await?;
        ensure!(worker.lives(), "the same process should serve on");
        self.after("it goes on").await
    }

    async fn kills_a_worker(&self) -> Result<()> {
        let (worker, endpoint) = self.victim()?;
        let killed = self.traffic.disturb(&endpoint);
        worker.signal(Signal::KILL);
        let gone = self.until_gone(&endpoint, killed).await?;
        println!("a killed worker's endpoint went {:.2} s after it was killed", (gone - killed).as_secs_f64());
        self.cluster.until("m", |m| watch::is_settled(m, 2, 512)).await?;
        watch::until("two endpoints", || self.traffic.endpoints().ready().len() == 2).await?;
        self.after("a worker was killed and is started again").await
    }

    async fn until_gone(&self, endpoint: &Endpoint, since: Instant) -> Result<Instant> {
        let gone = || self.traffic.endpoints().departed(endpoint, since);
        watch::until("its endpoint goes", || gone().is_some()).await.with_context(|| self.cluster.logs())?;
        gone().context("it went")
    }

    /// The node that a replica is on, and its agent's index.
    async fn agent_of(&self, endpoint: &Endpoint) -> Result<(String, usize)> {
        let m = self.cluster.deployments().get("m").await?.status.unwrap();
        let node = m.placements.iter().find(|on| on.replica == endpoint.replica).context("it is placed")?.node.clone();
        let index = self.cluster.agents.iter().position(|agent| agent.options.node == node).context("its node has an agent")?;
        Ok((node, index))
    }

    /// As when its Pod is replaced: its workers end with it.
    async fn ends_an_agent(&mut self) -> Result<()> {
        let (worker, endpoint) = self.victim()?;
        let (node, index) = self.agent_of(&endpoint).await?;
        tokio::task::block_in_place(|| self.cluster.agents[index].process.stop(Duration::from_secs(30)));
        ensure!(!worker.lives(), "an agent that is told to end and to take its workers along does so");
        self.after(&format!("{node}'s agent has ended, and its workers with it")).await?;
        self.cluster.succeed_agent(index)?;
        watch::until("two endpoints", || self.traffic.endpoints().ready().len() == 2).await.with_context(|| self.cluster.logs())?;
        self.after("its successor has started them anew").await
    }

    async fn kills_an_agent(&mut self) -> Result<()> {
        let (worker, endpoint) = self.victim()?;
        let (node, index) = self.agent_of(&endpoint).await?;
        self.cluster.agents[index].process.kill();
        let killed = Timestamp::now();
        self.after(&format!("{node}'s agent is killed")).await?;
        self.cluster.succeed_agent(index)?;
        let renewed = |lease: &Lease| {
            let spec = lease.spec.as_ref().filter(|_| lease.metadata.name == Some(names::node_lease(&node)));
            spec.and_then(|spec| spec.renew_time.as_ref()).is_some_and(|renewed| renewed.0 > killed)
        };
        watch::first(Api::namespaced(self.cluster.client.clone(), names::SYSTEM_NAMESPACE), renewed).await?;
        ensure!(worker.lives(), "an agent takes no worker along");
        self.after("its successor has taken over").await
    }

    async fn kills_the_operator(&mut self) -> Result<()> {
        let leader = self.cluster.leader(None).await?;
        self.cluster.operators[leader.index].kill();
        self.after(&format!("{} is killed", leader.name)).await?;
        let next = self.cluster.leader(Some(&leader.name)).await?;
        self.after(&format!("{} leads", next.name)).await?;
        // Only a leader carries this out.
        self.scales(&[1]).await
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn no_request_fails_but_those_on_what_is_killed_or_paused() -> Result<()> {
    let mut scene = Scene::start().await?;
    scene.rolls_twice().await?;
    scene.scales(&[3, 1, 2]).await?;
    scene.drains_a_node().await?;
    scene.pauses_a_worker().await?;
    scene.kills_a_worker().await?;
    scene.kills_an_agent().await?;
    scene.ends_an_agent().await?;
    scene.kills_the_operator().await?;
    let Scene { cluster, traffic, began } = scene;
    let counts = traffic.stop().await.with_context(|| cluster.logs())?;
    println!("in {:.0} s, one request every {:?}: {counts:?}", began.elapsed().as_secs_f64(), Duration::from_millis(50));
    cluster.stop()
}
