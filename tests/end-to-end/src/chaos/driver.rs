//! Carries out a script on a cluster.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result};
use k8s_openapi::api::core::v1::Node;
use kube::Api;
use kube::api::{DeleteParams, Patch, PatchParams, PostParams};
use rustix::process::Signal;
use serde_json::{Value, json};
use stowage_control_plane::processes::{Process, wait_for};
use stowage_crds::ModelDeployment;
use stowage_fake_nvml::devices::Machine;
use stowage_placement::{Bytes, Tokens};
use tokio::time::Instant;

use super::action::{Action, Deployment, Target};
use super::script::Step;
use super::{NODES, OPERATORS, URGENT};
use crate::workers::{self, Worker};
use crate::{Cluster, Settings, manifest};

/// How long a change is tried again: an API server that has just come back refuses some.
const CHANGE_DEADLINE: Duration = Duration::from_secs(60);
const OPERATOR_FLAGS: [&str; 2] = ["--move-up-after", "5"];

pub(super) struct Driver {
    pub cluster: Cluster,
    began: Instant,
    absent: BTreeMap<Target, Absence>,
    deployments: BTreeSet<usize>,
    /// Holds nothing of a GPU but what the simulation says.
    stranger: Process,
    counts: Counts,
}

enum Absence {
    Killed,
    /// The worker, where it is one.
    Paused(Option<Worker>),
}

/// What was done, by the first word of its line.
#[derive(Clone, Debug, Default)]
pub struct Counts(BTreeMap<&'static str, u32>);

impl fmt::Display for Counts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} actions (", self.0.values().sum::<u32>())?;
        let each: Vec<String> = self.0.iter().map(|(kind, count)| format!("{count} {kind}")).collect();
        write!(f, "{})", each.join(", "))
    }
}

impl Driver {
    pub async fn start() -> Result<Driver> {
        let operator_flags = OPERATOR_FLAGS.map(str::to_owned).to_vec();
        let mut cluster = Cluster::start(Settings { operator_flags, ..Settings::default() }).await?;
        for _ in 1..OPERATORS {
            cluster.start_operator()?;
        }
        cluster.make_priority_class(URGENT, 1000).await?;
        cluster.start_gpu_nodes(&NODES.map(|(node, room)| (node, manifest::room_for(room)))).await?;
        cluster.observer.iter().for_each(|observer| observer.let_others_use());
        let mut sleep = Command::new("sleep");
        sleep.arg("infinity");
        let stranger = Process::start("stranger", sleep, &cluster.folder().join("stranger.log")).context("starting a process")?;
        let (absent, deployments, counts) = (BTreeMap::new(), BTreeSet::new(), Counts::default());
        Ok(Driver { cluster, began: Instant::now(), absent, deployments, stranger, counts })
    }

    pub async fn carry_out(&mut self, steps: impl Iterator<Item = Step>) -> Result<()> {
        self.began = Instant::now();
        for Step { at, action } in steps {
            tokio::time::sleep_until(self.began + at).await;
            self.act(action).await?;
        }
        Ok(())
    }

    /// All processes are there again and go on, the control plane's first.
    pub async fn calm(&mut self) -> Result<()> {
        let absent: Vec<(Target, bool)> =
            self.absent.iter().rev().map(|(target, absence)| (*target, matches!(absence, Absence::Killed))).collect();
        for (target, killed) in absent {
            self.act(if killed { Action::Start(target) } else { Action::Continue(target) }).await?;
        }
        Ok(())
    }

    /// Names of the ModelDeployments that there should be.
    pub fn wanted(&self) -> BTreeSet<String> {
        self.deployments.iter().map(|index| Deployment::name(*index)).collect()
    }

    pub fn end(self) -> (Counts, Cluster) {
        (self.counts, self.cluster)
    }

    async fn act(&mut self, action: Action) -> Result<()> {
        println!("[{:6.1} s] {action}", self.began.elapsed().as_secs_f64());
        *self.counts.0.entry(kind(&action)).or_default() += 1;
        match action {
            Action::Kill(target) => self.kill(target),
            Action::Start(target) => self.start_again(target).await,
            Action::Pause(target) => self.pause(target),
            Action::Continue(target) => self.let_go_on(target),
            Action::Create(deployment) => self.create(deployment).await,
            Action::Delete(index) => self.delete(index).await,
            Action::Scale(index, replicas) => self.change(index, json!({"replicas": replicas})).await,
            Action::Context(index, num_ctx) => self.change(index, json!({"parameters": {"num_ctx": num_ctx}})).await,
            Action::Policy(index, policy) => self.change(index, json!({"placement": {"policy": policy}})).await,
            Action::Priority(index, priority) => self.change(index, json!({"priorityClassName": priority})).await,
            Action::Cordon(node, cordons) => self.cordon(NODES[node].0, cordons).await,
            Action::Foreign(node, mib) => self.let_others_use(node, Bytes::mib(mib)),
        }
        .with_context(|| action.to_string())
    }

    fn kill(&mut self, target: Target) -> Result<()> {
        match target {
            Target::Operator(index) => self.cluster.operators[index].kill(),
            Target::Agent(index) => self.cluster.agents[index].process.kill(),
            Target::Worker(index) => return self.worker(index).map(|worker| worker.iter().for_each(|worker| worker.signal(Signal::KILL))),
            Target::ApiServer => self.cluster.control_plane.as_mut().context("it is ours")?.kill_api_server(),
            Target::Etcd => self.cluster.control_plane.as_mut().context("it is ours")?.kill_etcd(),
        }
        self.absent.insert(target, Absence::Killed);
        Ok(())
    }

    async fn start_again(&mut self, target: Target) -> Result<()> {
        self.absent.remove(&target);
        match target {
            Target::Operator(index) => self.cluster.succeed_operator(index),
            Target::Agent(index) => self.cluster.succeed_agent(index),
            Target::Worker(_) => Ok(()),
            Target::ApiServer | Target::Etcd => Ok(self.cluster.control_plane.as_mut().context("it is ours")?.restart().await?),
        }
    }

    fn pause(&mut self, target: Target) -> Result<()> {
        let worker = if let Target::Worker(index) = target { self.worker(index)? } else { None };
        self.absent.insert(target, Absence::Paused(worker));
        self.signal(target, Signal::STOP)
    }

    fn let_go_on(&mut self, target: Target) -> Result<()> {
        self.signal(target, Signal::CONT)?;
        self.absent.remove(&target);
        Ok(())
    }

    fn signal(&self, target: Target, signal: Signal) -> Result<()> {
        match (target, self.absent.get(&target)) {
            (Target::Operator(index), _) => self.cluster.operators[index].signal(signal),
            (Target::Agent(index), _) => self.cluster.agents[index].process.signal(signal),
            (Target::Worker(_), Some(Absence::Paused(worker))) => worker.iter().for_each(|worker| worker.signal(signal)),
            (Target::Worker(_), _) => {}
            (Target::ApiServer, _) => self.cluster.control_plane.as_ref().context("it is ours")?.api_server().signal(signal),
            (Target::Etcd, _) => self.cluster.control_plane.as_ref().context("it is ours")?.etcd().signal(signal),
        }
        Ok(())
    }

    /// None where none runs.
    fn worker(&self, index: usize) -> Result<Option<Worker>> {
        let mut running = workers::running(self.cluster.folder());
        running.sort_by(|a, b| a.replica.cmp(&b.replica));
        let worker = (!running.is_empty()).then(|| running.swap_remove(index % running.len()));
        println!("           it is {}", worker.as_ref().map_or("nobody: none runs", |worker| &worker.replica));
        Ok(worker)
    }

    async fn create(&mut self, deployment: Deployment) -> Result<()> {
        let mut object = manifest::with_policy(&Deployment::name(deployment.index), deployment.policy);
        object.spec.parameters.num_ctx = Some(Tokens(deployment.num_ctx));
        object.spec.replicas = deployment.replicas;
        object.spec.priority_class_name = deployment.priority.to_owned();
        object.spec.termination_grace_period_seconds = 5;
        self.deployments.insert(deployment.index);
        let api = self.cluster.deployments();
        persist(async || done_if(api.create(&PostParams::default(), &object).await.map(drop), "AlreadyExists")).await
    }

    async fn delete(&mut self, index: usize) -> Result<()> {
        self.deployments.remove(&index);
        let (api, name) = (self.cluster.deployments(), Deployment::name(index));
        persist(async || done_if(api.delete(&name, &DeleteParams::default()).await.map(drop), "NotFound")).await
    }

    async fn change(&self, index: usize, spec: Value) -> Result<()> {
        let (api, name): (Api<ModelDeployment>, _) = (self.cluster.deployments(), Deployment::name(index));
        let patch = Patch::Merge(json!({"spec": spec}));
        persist(async || api.patch(&name, &PatchParams::default(), &patch).await.map(drop)).await
    }

    async fn cordon(&self, node: &str, cordons: bool) -> Result<()> {
        let nodes: Api<Node> = Api::all(self.cluster.client.clone());
        let patch = Patch::Merge(json!({"spec": {"unschedulable": cordons}}));
        persist(async || nodes.patch(node, &PatchParams::default(), &patch).await.map(drop)).await
    }

    /// As many bytes as others could have now, beside the workers.
    fn let_others_use(&mut self, node: usize, bytes: Bytes) -> Result<()> {
        let stranger = self.stranger.pid();
        let agent = &mut self.cluster.agents[node];
        let machine = Machine::at(&agent.machine.config, Some(&agent.machine.charges))?;
        let device = machine.devices.first().context("it has a GPU")?;
        let own = device.processes.iter().filter(|process| process.pid != stranger).map(|process| process.used_bytes).sum();
        let used = Bytes(bytes.0.min(device.total_bytes.saturating_sub(own)));
        agent.options.gpus[0].foreign = if used == Bytes::ZERO { Vec::new() } else { vec![(stranger, used)] };
        agent.machine.write(&agent.options.gpus)
    }
}

fn kind(action: &Action) -> &'static str {
    match action {
        Action::Kill(_) => "kills",
        Action::Start(_) => "starts",
        Action::Pause(_) => "pauses",
        Action::Continue(_) => "continued",
        Action::Create(_) => "created",
        Action::Delete(_) => "deleted",
        Action::Scale(..) => "scaled",
        Action::Context(..) => "num_ctx",
        Action::Policy(..) => "policies",
        Action::Priority(..) => "priorities",
        Action::Cordon(..) => "cordons",
        Action::Foreign(..) => "of others",
    }
}

/// An answer that was lost may have been a yes: then the next one is this.
fn done_if(result: kube::Result<()>, reason: &str) -> kube::Result<()> {
    match result {
        Err(kube::Error::Api(status)) if status.reason == reason => Ok(()),
        result => result,
    }
}

async fn persist(mut change: impl AsyncFnMut() -> kube::Result<()>) -> Result<()> {
    let mut last = None;
    let done = wait_for(CHANGE_DEADLINE, async || match change().await {
        Ok(()) => Some(()),
        Err(error) => {
            last = Some(error);
            None
        }
    });
    match (done.await, last) {
        (Some(()), _) => Ok(()),
        (None, error) => Err(error.context("the API server never answered")?.into()),
    }
}
