//! One leader, and agents that do as they are told: what a ModelDeployment comes to after each change.

use k8s_openapi::jiff::Timestamp;
use stowage_crds::ModelDeployment;
use stowage_crds::model_deployment::ModelDeploymentStatus;
use stowage_placement::{Bytes, PlacementPolicy, Reason, Tokens};

use super::leader::Leader;
use super::{items, next_step};
use crate::cache::Key;
use crate::clock::after;
use crate::step::{Notice, Step};
use crate::testing::cluster::Cluster;
use crate::testing::{gpu_node, lease, now};

/// Room for the model with a short context, not with its longest, and not for two of them.
pub(super) const SMALL_GPU: Bytes = Bytes::mib(960);

pub(super) struct World {
    pub(super) cluster: Cluster,
    pub(super) leader: Leader,
    pub(super) time: Timestamp,
    pub(super) told: Vec<Notice>,
    /// Kinds of writes since this was reset.
    pub(super) wrote: Vec<&'static str>,
    /// Fewest replicas that served since this was reset.
    pub(super) fewest_ready: u32,
}

impl World {
    pub(super) fn new(vram: &[Bytes]) -> World {
        let nodes = vram.iter().enumerate().map(|(index, vram)| gpu_node(&format!("n{}", index + 1), *vram));
        let mut cluster = Cluster::with_nodes(nodes);
        let mut leader = Leader::new(&mut cluster, |_| {});
        let names: Vec<String> = cluster.model_nodes.objects.keys().map(|key| key.name.clone()).collect();
        leader.state.hear(names.iter().map(|name| lease(name, 0)).collect(), now());
        World { cluster, leader, time: now(), told: Vec::new(), wrote: Vec::new(), fewest_ready: u32::MAX }
    }

    /// Applies the change and waits until nothing moves any more.
    pub(super) fn apply(&mut self, change: impl FnOnce(&mut ModelDeployment)) -> ModelDeploymentStatus {
        self.cluster.apply_deployment("m", change);
        self.begin();
        self.settled()
    }

    /// Forgets what was told and counted so far.
    pub(super) fn begin(&mut self) {
        self.told.clear();
        self.wrote.clear();
        self.fewest_ready = u32::MAX;
    }

    /// What it comes to once nothing moves any more.
    pub(super) fn settled(&mut self) -> ModelDeploymentStatus {
        self.settle(|_| false);
        self.status()
    }

    /// The node does nothing any more, and so many seconds go by in which the others are heard.
    pub(super) fn falls_silent(&mut self, node: &str, seconds: i64) {
        self.agent_falls_silent(node, seconds);
        let promised = &self.cluster.model_nodes.objects[&Key::cluster(node)].spec.assignments;
        self.leader.state.unanswering.extend(promised.iter().map(|assignment| assignment.uid.clone()));
    }

    /// The same of the node's agent alone: its replicas answer.
    pub(super) fn agent_falls_silent(&mut self, node: &str, seconds: i64) {
        self.begin();
        self.cluster.agent(node).alive = false;
        self.time = after(self.time, seconds);
        self.listen();
    }

    pub(super) fn comes_back(&mut self, node: &str) {
        self.cluster.agent(node).alive = true;
        self.leader.state.unanswering.clear();
        self.listen();
    }

    /// Hears the agents that live.
    pub(super) fn listen(&mut self) {
        let elapsed = self.time.duration_since(now()).as_secs();
        let said = |name: &String| self.leader.state.leases.get(&Key::of(&lease(name, 0))).map(|lease| lease.as_ref().clone());
        let agents = self.cluster.agents.iter();
        let leases = agents.filter_map(|(name, agent)| if agent.alive { Some(lease(name, -elapsed)) } else { said(name) }).collect();
        self.leader.state.hear(leases, self.time);
    }

    pub(super) fn status(&self) -> ModelDeploymentStatus {
        self.cluster.deployments.objects[&Key::new("default", "m")].status.clone().unwrap()
    }

    pub(super) fn settle(&mut self, mut refuses: impl FnMut(&str) -> bool) {
        let mut moved = true;
        while moved {
            moved = self.leader.catch_up(&self.cluster);
            moved |= self.decide();
            let nodes: Vec<String> = self.cluster.model_nodes.objects.keys().map(|key| key.name.clone()).collect();
            for node in nodes {
                let refuses = refuses(&node);
                moved |= self.cluster.agent_acts(&node, refuses);
            }
        }
    }

    pub(super) fn decide(&mut self) -> bool {
        let mut moved = false;
        for item in items(&self.leader.state) {
            while let step @ (Step::Write(_) | Step::Confirm { .. } | Step::Remember(_)) = next_step(&self.leader.state, &item, self.time) {
                moved |= !matches!(step, Step::Remember(_));
                match step {
                    Step::Remember(remark) => self.leader.state.memory.remember(remark, self.time),
                    Step::Write(decision) => {
                        self.wrote.push(decision.write.kind());
                        let answer = self.cluster.send(&decision.write).unwrap();
                        self.leader.state.assume(answer);
                        self.told.extend(decision.notices);
                        decision.refusals.into_iter().for_each(|seen| self.leader.state.memory.refused(seen, self.time));
                    }
                    Step::Confirm { target, as_of } => self.leader.read(&self.cluster, &target, as_of),
                    Step::Done => {}
                }
                self.fewest_ready = self.fewest_ready.min(self.status().ready_replicas);
            }
        }
        moved
    }

    pub(super) fn told(&self, reason: Reason) -> bool {
        self.told.iter().any(|notice| notice.reason == reason)
    }
}

pub(super) fn reason(status: &ModelDeploymentStatus) -> &str {
    &status.summary.as_ref().unwrap().reason
}

pub(super) fn processor(status: &ModelDeploymentStatus) -> &str {
    &status.summary.as_ref().unwrap().processor
}

pub(super) fn context(num_ctx: u64, policy: PlacementPolicy) -> impl FnOnce(&mut ModelDeployment) {
    move |deployment| {
        deployment.spec.parameters.num_ctx = Some(Tokens(num_ctx));
        deployment.spec.placement.policy = policy;
    }
}
