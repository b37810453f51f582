use std::sync::Arc;

use stowage_placement::{Bytes, Reason, Tokens};

use super::*;
use crate::model_deployment::controller;
use crate::step::{Decision, Item};
use crate::testing::{deployment, gpu_node, now, replica_status, state_with};

/// Claims a place for the ModelDeployment and takes the claim in as written at this version.
fn claim(state: &mut State, name: &str, version: u64) -> PlacementStatus {
    let key = Key::new("default", name);
    let Step::Write(decision) = controller::step(state, &key, now()) else { panic!("nothing to claim") };
    let Write::Status { status, .. } = decision.write else { panic!("no claim: {:?}", decision.write) };
    let placement = status.placements[0].clone();
    let mut deployment = ModelDeployment::clone(state.deployments.get(&key).unwrap());
    deployment.status = Some(*status);
    deployment.metadata.resource_version = Some(version.to_string());
    state.deployments.assume(deployment);
    placement
}

/// The promises that are to be written now.
fn written(state: &State) -> Promises {
    match step(state, "n1", now()) {
        Step::Write(decision) => match decision.write {
            Write::Promises(promises) => *promises,
            other => panic!("{other:?}"),
        },
        other => panic!("{other:?}"),
    }
}

/// Takes the promises in as written at this version.
fn write(state: &mut State, promises: Promises, version: u64) {
    let mut node = ModelNode::clone(state.model_node("n1").unwrap());
    node.spec.assignments = promises.assignments;
    node.metadata.annotations = Some([(WITHDRAWN_ANNOTATION.to_owned(), promises.withdrawn)].into());
    node.metadata.resource_version = Some(version.to_string());
    state.model_nodes.assume(node);
}

fn change_node(state: &mut State, version: u64, change: impl FnOnce(&mut ModelNode)) {
    let mut node = ModelNode::clone(state.model_node("n1").unwrap());
    change(&mut node);
    node.metadata.resource_version = Some(version.to_string());
    state.model_nodes.assume(node);
}

fn claimed() -> (State, PlacementStatus) {
    let mut state = state_with(vec![gpu_node("n1", Bytes::gib(8))], vec![deployment("m")]);
    let placement = claim(&mut state, "m", 30);
    (state, placement)
}

#[test]
fn a_claim_without_its_promise_is_finished() {
    let (state, placement) = claimed();
    let promises = written(&state);
    assert_eq!(promises.version, "10");
    let [assignment] = promises.assignments.as_slice() else { panic!("{:?}", promises.assignments) };
    assert_eq!((&assignment.uid, &assignment.replica), (&placement.assignment_uid, &placement.replica));
    assert_eq!(assignment.plan.processor, "100% GPU");
    assert_eq!(assignment.request.num_ctx.0, 2048);
    // What the model was trained for, which is what the node has room for.
    assert_eq!((assignment.max_num_ctx_on_gpu, assignment.max_num_ctx), (Some(Tokens(8192)), Some(Tokens(8192))));
}

#[test]
fn a_claim_that_no_longer_fits_is_withdrawn_and_then_sought_anew() {
    let (mut state, placement) = claimed();
    change_node(&mut state, 11, |node| node.status.as_mut().unwrap().devices[0].used_by_others_bytes = Bytes::gib(8));
    let promises = written(&state);
    assert_eq!((promises.assignments.len(), promises.withdrawn.as_str()), (0, placement.assignment_uid.as_str()));
    write(&mut state, promises, 31);
    assert_eq!(step(&state, "n1", now()), Step::Done, "what was withdrawn is never promised again");
    let Step::Write(decision) = controller::step(&state, &Key::new("default", "m"), now()) else { panic!("the claim stays") };
    let Write::Status { status, .. } = decision.write else { panic!("{:?}", decision.write) };
    assert!(status.placements.is_empty());
    assert_eq!(status.summary.unwrap().reason, Reason::InsufficientVRAM.as_str());
}

#[test]
fn a_claim_is_read_again_where_the_node_is_known_better_than_it() {
    let (mut state, _) = claimed();
    change_node(&mut state, 40, |_| {});
    let key = Key::new("default", "m");
    assert_eq!(step(&state, "n1", now()), Step::Confirm { target: Target::Deployment(key.clone()), as_of: Revision(40) });
    let found = ModelDeployment::clone(state.deployments.get(&key).unwrap());
    state.deployments.confirm(key, Some(found), Revision(40));
    assert_eq!(written(&state).assignments.len(), 1);
}

#[test]
fn two_deployments_are_never_promised_the_same_bytes() {
    // Room for one of them, which two leaders that know nothing of each other have claimed for both.
    let claimed = |name: &str, version| {
        let mut state = state_with(vec![gpu_node("n1", Bytes::mib(1500))], vec![deployment(name)]);
        let placement = claim(&mut state, name, version);
        (ModelDeployment::clone(state.deployments.get(&Key::new("default", name)).unwrap()), placement)
    };
    let ((a, first), (b, second)) = (claimed("a", 30), claimed("b", 31));
    let state = state_with(vec![gpu_node("n1", Bytes::mib(1500))], vec![a, b]);
    let promises = written(&state);
    let promised: Vec<&str> = promises.assignments.iter().map(|assignment| assignment.uid.as_str()).collect();
    assert_eq!((promised, promises.withdrawn.as_str()), (vec![first.assignment_uid.as_str()], second.assignment_uid.as_str()));
}

#[test]
fn all_promises_that_are_due_go_in_one_write_those_of_the_highest_priority_first() {
    let mut high = deployment("z");
    high.spec.priority_class_name = "high".into();
    let mut state = state_with(vec![gpu_node("n1", Bytes::gib(3))], vec![deployment("a"), deployment("b"), high]);
    state.priority_classes = crate::testing::listed([crate::testing::priority_class("high", 1000)]);
    for (name, version) in [("a", 30), ("b", 31), ("z", 32)] {
        claim(&mut state, name, version);
    }
    let promises = written(&state);
    let owners: Vec<&str> = promises.assignments.iter().map(|assignment| assignment.model_deployment.name.as_str()).collect();
    assert_eq!(owners, ["z", "a", "b"]);
    // Others came to use what the last of them would take.
    change_node(&mut state, 11, |node| node.status.as_mut().unwrap().devices[0].used_by_others_bytes = Bytes::gib(1));
    let fewer = written(&state);
    assert_eq!((fewer.assignments.len(), fewer.withdrawn.is_empty()), (2, false));
    assert_eq!(fewer.assignments[0].model_deployment.name, "z");
}

#[test]
fn a_replica_is_not_released_while_its_endpoint_is_being_made() {
    let (mut state, placement) = claimed();
    let promises = written(&state);
    write(&mut state, promises, 29);
    let key = Key::new("default", "m");
    let mut leaving = ModelDeployment::clone(state.deployments.get(&key).unwrap());
    leaving.status.as_mut().unwrap().placements[0].state = PlacementState::Releasing;
    leaving.metadata.resource_version = Some("60".into());
    state.deployments.assume(leaving);
    let slice = Write::Slice { key: Key::new("default", &placement.replica), version: None, slice: Box::default() };
    let decision = Decision { write: slice, notices: Vec::new(), refusals: Vec::new() };
    let item = Item::Endpoints(key);
    state.in_flight.writes(item.clone(), Arc::new(decision));
    assert_eq!(step(&state, "n1", now()), Step::Done);
    state.in_flight.ended(&item);
    assert_eq!(written(&state).assignments[0].state, AssignmentState::Release);
}

#[test]
fn the_assignments_of_a_recreated_deployment_are_released_and_removed_only_when_gone() {
    let (mut state, placement) = claimed();
    let promises = written(&state);
    write(&mut state, promises, 35);
    let mut recreated = deployment("m");
    recreated.metadata.uid = Some("another".into());
    recreated.metadata.resource_version = Some("50".into());
    state.deployments.assume(recreated);
    let released = written(&state);
    assert_eq!(released.assignments[0].state, AssignmentState::Release);
    assert!(released.assignments[0].deadline.is_some());
    write(&mut state, released, 51);
    assert_eq!(step(&state, "n1", now()), Step::Done);
    change_node(&mut state, 52, |node| {
        node.status.as_mut().unwrap().replicas = vec![replica_status(&placement.assignment_uid, ReplicaState::Draining, None)];
    });
    assert_eq!(step(&state, "n1", now()), Step::Done, "its worker still runs");
    change_node(&mut state, 53, |node| node.status.as_mut().unwrap().replicas[0].state = ReplicaState::Gone);
    assert!(written(&state).assignments.is_empty());
}

#[test]
fn a_promise_whose_deployment_seems_to_be_gone_is_released_only_after_a_second_look() {
    let (mut state, _) = claimed();
    let promises = written(&state);
    write(&mut state, promises, 35);
    state.deployments = crate::testing::listed([]);
    let key = Key::new("default", "m");
    assert_eq!(step(&state, "n1", now()), Step::Confirm { target: Target::Deployment(key.clone()), as_of: Revision(35) });
    state.deployments.confirm(key, None, Revision(35));
    assert_eq!(written(&state).assignments[0].state, AssignmentState::Release);
}

#[test]
fn defaults_of_requests_change_in_the_assignment_without_a_reload() {
    let (mut state, _) = claimed();
    let promises = written(&state);
    write(&mut state, promises, 29);
    let mut changed = ModelDeployment::clone(state.deployments.get(&Key::new("default", "m")).unwrap());
    changed.spec.aliases = vec!["smollm2:135m".into()];
    changed.metadata.resource_version = Some("60".into());
    state.deployments.assume(changed);
    let promises = written(&state);
    assert_eq!(promises.assignments[0].aliases, ["smollm2:135m"]);
    assert_eq!(promises.assignments[0].state, AssignmentState::Serve);
}
