//! What becomes of a ModelDeployment whose spec changes, with one leader and agents that do as they are told.

use k8s_openapi::jiff::Timestamp;
use stowage_crds::model_deployment::{ModelDeploymentStatus, PlacementState, WhenNoRoom};
use stowage_crds::{ModelDeployment, conditions};
use stowage_placement::{Bytes, PlacementPolicy, Reason, Tokens};

use super::interleavings::Leader;
use super::{items, next_step};
use crate::cache::Key;
use crate::clock::after;
use crate::step::{Notice, Step};
use crate::testing::cluster::Cluster;
use crate::testing::{gpu_node, lease, now};

/// Room for the model with a short context, not with its longest, and not for two of them.
const SMALL_GPU: Bytes = Bytes::mib(960);

struct World {
    cluster: Cluster,
    leader: Leader,
    time: Timestamp,
    told: Vec<Notice>,
    /// Fewest replicas that served since this was reset.
    fewest_ready: u32,
}

impl World {
    fn new(vram: &[Bytes]) -> World {
        let nodes = vram.iter().enumerate().map(|(index, vram)| gpu_node(&format!("n{}", index + 1), *vram));
        let mut cluster = Cluster::with_nodes(nodes);
        let mut leader = Leader::new(&mut cluster, |_| {});
        let names: Vec<String> = cluster.model_nodes.objects.keys().map(|key| key.name.clone()).collect();
        leader.state.hear(names.iter().map(|name| lease(name, 0)).collect(), now());
        World { cluster, leader, time: now(), told: Vec::new(), fewest_ready: u32::MAX }
    }

    /// Applies the change and waits until nothing moves any more.
    fn apply(&mut self, change: impl FnOnce(&mut ModelDeployment)) -> ModelDeploymentStatus {
        self.cluster.apply_deployment("m", change);
        self.told.clear();
        self.fewest_ready = u32::MAX;
        self.settle(|_| false);
        self.status()
    }

    fn status(&self) -> ModelDeploymentStatus {
        self.cluster.deployments.objects[&Key::new("default", "m")].status.clone().unwrap()
    }

    fn settle(&mut self, mut refuses: impl FnMut(&str) -> bool) {
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

    fn decide(&mut self) -> bool {
        let mut moved = false;
        for item in items(&self.leader.state) {
            while let step @ (Step::Write(_) | Step::Confirm { .. }) = next_step(&self.leader.state, &item, self.time) {
                moved = true;
                match step {
                    Step::Write(decision) => {
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

    fn told(&self, reason: Reason) -> bool {
        self.told.iter().any(|notice| notice.reason == reason)
    }
}

fn reason(status: &ModelDeploymentStatus) -> &str {
    &status.summary.as_ref().unwrap().reason
}

fn processor(status: &ModelDeploymentStatus) -> &str {
    &status.summary.as_ref().unwrap().processor
}

fn context(num_ctx: u64, policy: PlacementPolicy) -> impl FnOnce(&mut ModelDeployment) {
    move |deployment| {
        deployment.spec.parameters.num_ctx = Some(Tokens(num_ctx));
        deployment.spec.placement.policy = policy;
    }
}

#[test]
fn a_context_that_is_too_long_runs_on_cpu_and_the_longest_that_fits_is_named() {
    let mut world = World::new(&[SMALL_GPU]);
    let short = world.apply(context(1024, PlacementPolicy::PreferGPU));
    assert_eq!((processor(&short), reason(&short)), ("100% GPU", "AsAsked"));

    let long = world.apply(context(8192, PlacementPolicy::PreferGPU));
    assert_ne!(processor(&long), "100% GPU");
    assert!(["PartlyOnCPU", "RunningOnCPU"].contains(&reason(&long)), "{}", reason(&long));
    let degraded = conditions::find(&long.conditions, conditions::ConditionType::Degraded).unwrap();
    let longest = long.fit.unwrap().fit.max_num_ctx_on_gpu;
    assert!(degraded.status == "True" && degraded.message.contains("missing") && degraded.message.contains(&longest.to_string()));
    assert!(world.told(Reason::PartlyOnCPU) || world.told(Reason::RunningOnCPU));

    let longest_status = world.apply(context(longest.0, PlacementPolicy::PreferGPU));
    assert_eq!((processor(&longest_status), reason(&longest_status)), ("100% GPU", "AsAsked"));
    assert_eq!(longest_status.summary.unwrap().max_num_ctx_on_gpu, Some(longest));
    let beyond = world.apply(context(longest.0 + 256, PlacementPolicy::PreferGPU));
    assert_ne!(processor(&beyond), "100% GPU");
}

#[test]
fn a_revision_that_is_refused_leaves_the_old_one_serving() {
    let mut world = World::new(&[SMALL_GPU]);
    let short = world.apply(context(1024, PlacementPolicy::RequireGPU));
    let refused = world.apply(context(8192, PlacementPolicy::RequireGPU));
    assert_eq!(reason(&refused), "InsufficientVRAM");
    assert_eq!((refused.ready.as_str(), &refused.placements), ("1/1", &short.placements));
    assert_eq!(world.fewest_ready, 1);
    let free = refused.fit.as_ref().unwrap().plan.devices[0].free_bytes;
    assert!(free > Bytes::mib(700), "the bytes of the old revision, which would go for it, count as free: {free}");
    let back = world.apply(context(1024, PlacementPolicy::RequireGPU));
    assert_eq!((reason(&back), &back.placements), ("AsAsked", &short.placements));
}

#[test]
fn a_new_revision_comes_before_the_old_one_goes_where_both_fit() {
    let mut world = World::new(&[Bytes::gib(4)]);
    world.apply(context(1024, PlacementPolicy::RequireGPU));
    let status = world.apply(context(2048, PlacementPolicy::RequireGPU));
    assert_eq!(world.fewest_ready, 1);
    assert_eq!((status.placements.len(), status.placements[0].num_ctx), (1, Tokens(2048)));
    assert!(!world.told(Reason::ReplacingForRoom));
}

#[test]
fn the_old_revision_goes_first_where_there_is_no_room_for_both_and_an_event_says_so() {
    let mut world = World::new(&[SMALL_GPU]);
    world.apply(context(1024, PlacementPolicy::RequireGPU));
    let status = world.apply(context(2048, PlacementPolicy::RequireGPU));
    assert!(world.told(Reason::ReplacingForRoom));
    assert_eq!((reason(&status), status.placements[0].num_ctx), ("AsAsked", Tokens(2048)));
}

#[test]
fn a_rollout_that_is_to_wait_for_room_waits() {
    let mut world = World::new(&[SMALL_GPU]);
    world.apply(context(1024, PlacementPolicy::RequireGPU));
    world.apply(|deployment| deployment.spec.update_strategy.when_no_room = WhenNoRoom::Wait);
    let status = world.apply(context(2048, PlacementPolicy::RequireGPU));
    assert_eq!((reason(&status), status.ready.as_str(), status.placements[0].num_ctx), ("WaitingForRoom", "1/1", Tokens(1024)));
}

#[test]
fn replicas_come_and_go_with_their_number_and_nothing_moves_while_paused() {
    let mut world = World::new(&[Bytes::gib(4), Bytes::gib(4)]);
    world.apply(context(1024, PlacementPolicy::RequireGPU));
    let three = world.apply(|deployment| deployment.spec.replicas = 3);
    assert_eq!((three.ready.as_str(), three.placements.len()), ("3/3", 3));
    let paused = world.apply(|deployment| (deployment.spec.paused, deployment.spec.replicas) = (true, 1));
    assert_eq!(paused.placements.len(), 3);
    let one = world.apply(|deployment| deployment.spec.paused = false);
    assert_eq!((one.ready.as_str(), one.placements.len()), ("1/1", 1));
    let none = world.apply(|deployment| deployment.spec.replicas = 0);
    assert_eq!((reason(&none), none.placements.len()), ("ScaledToZero", 0));
}

#[test]
fn a_refused_replica_is_given_back_and_placed_again_later() {
    let mut world = World::new(&[Bytes::gib(4)]);
    world.cluster.apply_deployment("m", context(1024, PlacementPolicy::RequireGPU));
    world.settle(|_| true);
    let status = world.status();
    assert_eq!((reason(&status), status.placements.len()), ("DeviceChanged", 0));
    assert!(world.told(Reason::DeviceChanged));
    // Nothing is tried before the delay is over.
    world.settle(|_| false);
    assert_eq!(world.status().placements.len(), 0);
    world.time = after(world.time, 1);
    world.settle(|_| false);
    assert_eq!(world.status().placements[0].state, PlacementState::Ready);
}

#[test]
fn a_context_that_was_left_open_is_settled_once() {
    let mut world = World::new(&[SMALL_GPU]);
    let status = world.apply(|deployment| deployment.spec.parameters.num_ctx = None);
    let settled = status.resolved.unwrap().num_ctx.unwrap();
    assert_eq!((processor(&world.status()), world.status().placements[0].num_ctx), ("100% GPU", settled));
    assert_eq!(settled.0 % 256, 0);
    let more = world.apply(|deployment| deployment.spec.aliases = vec!["x".into()]);
    assert_eq!(more.resolved.unwrap().num_ctx, Some(settled));
}
