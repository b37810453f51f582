//! What becomes of a ModelDeployment whose spec changes.

use stowage_crds::conditions::{self, ConditionType};
use stowage_crds::model_deployment::{ModelDeploymentStatus, PlacementState, WhenNoRoom};
use stowage_placement::{Bytes, PlacementPolicy, Reason, Tokens};

use super::world::{SMALL_GPU, World, context, processor, reason};
use crate::clock::after;

#[test]
fn a_context_that_is_too_long_runs_on_cpu_and_the_longest_that_fits_is_named() {
    let mut world = World::new(&[SMALL_GPU]);
    let short = world.apply(context(1024, PlacementPolicy::PreferGPU));
    assert_eq!((processor(&short), reason(&short)), ("100% GPU", "AsAsked"));

    let long = world.apply(context(8192, PlacementPolicy::PreferGPU));
    assert_ne!(processor(&long), "100% GPU");
    assert!(["PartlyOnCPU", "RunningOnCPU"].contains(&reason(&long)), "{}", reason(&long));
    let degraded = conditions::find(&long.conditions, ConditionType::Degraded).unwrap();
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
    let wrote = |kind: &str| world.wrote.iter().filter(|wrote| **wrote == kind).count();
    // Promised, released, dropped; the status with each, and with each thing that the agent said: loading, ready, draining, gone.
    assert_eq!((wrote("promises"), wrote("EndpointSlice"), wrote("remove EndpointSlice")), (3, 1, 1));
    let at = |kind: &str| world.wrote.iter().position(|wrote| *wrote == kind);
    assert!(at("EndpointSlice") < at("remove EndpointSlice"), "for a moment there would be no endpoint: {:?}", world.wrote);
    assert!(wrote("status") <= 6, "{:?}", world.wrote);
    assert_eq!(world.wrote.len(), wrote("status") + 5, "{:?}", world.wrote);
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

#[test]
fn a_rollout_that_comes_no_further_says_so_after_its_deadline_and_the_old_revision_serves_on() {
    let mut world = World::new(&[SMALL_GPU]);
    world.apply(context(1024, PlacementPolicy::RequireGPU));
    world.apply(|deployment| deployment.spec.update_strategy.when_no_room = WhenNoRoom::Wait);
    let waits = world.apply(context(2048, PlacementPolicy::RequireGPU));
    let progressing = |status: &ModelDeploymentStatus| {
        let found = conditions::find(&status.conditions, ConditionType::Progressing).unwrap();
        (found.status.clone(), found.reason.clone(), found.message.clone())
    };
    assert_eq!(progressing(&waits).0, "True");
    let since = waits.progressed_at.clone().unwrap();
    world.time = after(world.time, 599);
    assert_eq!(world.settled().progressed_at, Some(since.clone()));
    assert_eq!(world.leader.state.next_deadline(world.time), Some(after(world.time, 1)));
    world.time = after(since.0, 600);
    world.listen();
    let stalled = world.settled();
    let (status, reason, message) = progressing(&stalled);
    assert_eq!((status.as_str(), reason.as_str(), stalled.ready.as_str()), ("False", "ProgressDeadlineExceeded", "1/1"));
    assert!(message.starts_with("No step further for 600 s. ") && message.contains("n1"), "{message}");
    assert!(world.told(Reason::ProgressDeadlineExceeded));
    let back = world.apply(context(1024, PlacementPolicy::RequireGPU));
    assert_eq!((progressing(&back).1.as_str(), back.progressed_at), ("RolledOut", None));
}
