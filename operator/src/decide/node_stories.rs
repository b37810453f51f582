//! What becomes of replicas whose nodes are cordoned, fall silent or come back, run out of memory, or have their VRAM taken by others.

use stowage_crds::conditions::{ConditionType, find};
use stowage_crds::model_deployment::{ModelDeploymentStatus, PlacementState};
use stowage_placement::{Bytes, PlacementPolicy, Reason};

use super::world::{SMALL_GPU, World, context, reason};
use crate::clock::after;
use crate::watch::Change;

const SILENCE: i64 = 41;

fn nodes(status: &ModelDeploymentStatus) -> Vec<&str> {
    let mut nodes: Vec<&str> = status.placements.iter().map(|placement| placement.node.as_str()).collect();
    nodes.sort_unstable();
    nodes
}

fn replicas(count: u32) -> impl FnOnce(&mut stowage_crds::ModelDeployment) {
    move |deployment| {
        context(1024, PlacementPolicy::PreferGPU)(deployment);
        deployment.spec.replicas = count;
    }
}

#[test]
fn replicas_are_spread_and_the_worst_placed_goes_first() {
    let mut world = World::new(&[SMALL_GPU, SMALL_GPU]);
    let three = world.apply(replicas(3));
    let layers: Vec<u32> = three.placements.iter().map(|placement| placement.gpu_layers).collect();
    assert!(layers[0] < 31 && layers[1..] == [31, 31], "one on each GPU, and one that is left: {layers:?}");
    let two = world.apply(replicas(2));
    assert_eq!((nodes(&two), two.placements[0].gpu_layers), (vec!["n1", "n2"], 31));
}

#[test]
fn what_runs_on_a_cordoned_node_is_started_elsewhere_and_only_then_taken_away() {
    let mut world = World::new(&[Bytes::gib(4), Bytes::gib(4), Bytes::gib(4)]);
    world.apply(replicas(2));
    world.begin();
    world.cluster.cordon("n1", true);
    let moved = world.settled();
    assert_eq!((nodes(&moved), moved.ready.as_str(), world.fewest_ready), (vec!["n2", "n3"], "2/2", 2));
    assert!(world.told(Reason::NodeUnschedulable));
}

#[test]
fn what_is_on_a_lost_gpu_is_started_elsewhere_and_only_then_taken_away() {
    let mut world = World::new(&[SMALL_GPU, SMALL_GPU]);
    let before = world.apply(context(1024, PlacementPolicy::RequireGPU));
    world.begin();
    let node = nodes(&before)[0].to_owned();
    world.cluster.agent(&node).lost = true;
    let moved = world.settled();
    assert_eq!((moved.ready.as_str(), world.fewest_ready), ("1/1", 1));
    assert!(nodes(&moved) != [node], "{:?}", nodes(&moved));
    assert!(world.told(Reason::DeviceLost));
}

#[test]
fn what_has_no_other_place_stays_on_a_cordoned_node_and_says_so() {
    let mut world = World::new(&[SMALL_GPU]);
    world.apply(context(1024, PlacementPolicy::RequireGPU));
    world.begin();
    world.cluster.cordon("n1", true);
    let stays = world.settled();
    assert_eq!((nodes(&stays), stays.ready.as_str(), reason(&stays)), (vec!["n1"], "1/1", "NodeUnschedulable"));
    let degraded = find(&stays.conditions, ConditionType::Degraded).unwrap();
    assert_eq!((degraded.status.as_str(), degraded.reason.as_str()), ("True", "NodeUnschedulable"));
    let ready = find(&stays.conditions, ConditionType::Ready).unwrap();
    assert_eq!(ready.status, "True");
    world.cluster.cordon("n1", false);
    assert_eq!(reason(&world.settled()), "AsAsked");
}

#[test]
fn what_ran_on_a_silent_node_is_placed_elsewhere_and_not_doubled_when_it_comes_back() {
    let mut world = World::new(&[Bytes::gib(4), Bytes::gib(4)]);
    let before = world.apply(replicas(1));
    let lost = nodes(&before)[0].to_owned();
    world.falls_silent(&lost, SILENCE);
    let elsewhere = world.settled();
    let ready = |status: &ModelDeploymentStatus| -> Vec<String> {
        let ready = status.placements.iter().filter(|placement| placement.state == PlacementState::Ready);
        ready.map(|placement| placement.node.clone()).collect()
    };
    assert_ne!(ready(&elsewhere).first(), Some(&lost));
    assert_eq!(ready(&elsewhere).len(), 1);
    assert!(world.told(Reason::NodeNotReady));
    world.comes_back(&lost);
    let back = world.settled();
    assert_eq!((back.placements.len(), ready(&back).len()), (1, 1));
    assert_eq!(world.cluster.promised(), 1);
}

#[test]
fn a_replica_that_answers_serves_on_while_its_agent_is_silent_and_is_placed_elsewhere_once_it_does_not() {
    let mut world = World::new(&[Bytes::gib(4), Bytes::gib(4)]);
    let before = world.apply(replicas(1));
    let node = nodes(&before)[0].to_owned();
    world.agent_falls_silent(&node, SILENCE);
    let served = world.settled();
    assert_eq!((nodes(&served), served.ready.as_str(), reason(&served)), (nodes(&before), "1/1", "NodeNotReady"));
    assert_eq!(served.placements[0].endpoint, before.placements[0].endpoint, "its endpoint stays");
    let degraded = find(&served.conditions, ConditionType::Degraded).unwrap();
    assert_eq!((degraded.status.as_str(), degraded.reason.as_str()), ("True", "NodeNotReady"));
    assert!(degraded.message.contains("the replica answers, and serves on"), "{}", degraded.message);
    let unanswered = before.placements[0].assignment_uid.clone();
    assert!(world.leader.state.take_in(Change::Answer { uid: unanswered, serves: false }));
    let elsewhere = world.settled();
    assert_eq!(elsewhere.ready, "1/1");
    assert!(nodes(&elsewhere).iter().any(|other| *other != node), "{:?}", nodes(&elsewhere));
}

#[test]
fn what_ran_on_a_silent_node_serves_on_if_that_comes_back_before_another_place_was_found() {
    let mut world = World::new(&[SMALL_GPU]);
    let before = world.apply(context(1024, PlacementPolicy::RequireGPU));
    world.falls_silent("n1", SILENCE);
    let silent = world.settled();
    assert_eq!((silent.ready.as_str(), reason(&silent)), ("0/1", "NodeNotReady"));
    world.comes_back("n1");
    let back = world.settled();
    assert_eq!((back.ready.as_str(), &back.placements), ("1/1", &before.placements));
}

#[test]
fn a_replica_that_memory_ran_out_for_is_placed_again_a_few_times_and_then_waits_for_another_spec() {
    let mut world = World::new(&[Bytes::gib(4)]);
    world.cluster.agent("n1").refuses_for = Reason::OutOfMemory;
    world.cluster.apply_deployment("m", context(1024, PlacementPolicy::RequireGPU));
    let mut placed = 0;
    for _ in 0..6 {
        world.begin();
        world.settle(|_| true);
        placed += world.told.iter().filter(|notice| notice.reason == Reason::Assigned).count();
        world.time = after(world.time, 60);
        world.listen();
    }
    assert_eq!((placed, world.cluster.promised()), (3, 0));
    let scheduled = find(&world.status().conditions, ConditionType::Scheduled).cloned().unwrap();
    assert!(scheduled.reason == "OutOfMemory" && scheduled.message.contains("3 times"), "{}", scheduled.message);
    let beyond = world.leader.state.memory.refusals.values().next().unwrap().beyond_plan;
    assert!(beyond > Bytes::ZERO, "what it took beyond its plan is counted");
    assert_eq!(world.apply(context(512, PlacementPolicy::RequireGPU)).ready, "1/1");
}

#[test]
fn others_that_use_what_was_promised_are_named() {
    let mut world = World::new(&[SMALL_GPU]);
    world.cluster.agent("n1").percent_taken = 50;
    world.apply(context(1024, PlacementPolicy::RequireGPU));
    let degraded = |status: &ModelDeploymentStatus| find(&status.conditions, ConditionType::Degraded).cloned().unwrap();
    assert_eq!(degraded(&world.status()).status, "False");
    world.cluster.agent("n1").others_use(SMALL_GPU);
    let crowded = degraded(&world.settled());
    assert_eq!((crowded.status.as_str(), crowded.reason.as_str()), ("True", "VRAMTakenByOthers"));
    assert!(crowded.message.contains("GPU-n1 on n1 are promised to replicas"), "{}", crowded.message);
    assert!(world.told(Reason::VRAMTakenByOthers));
    world.cluster.agent("n1").others_use(Bytes::ZERO);
    assert_eq!(degraded(&world.settled()).status, "False");
}
