//! Makes and removes the Pods of workers. Pure: what is to be done next for one assignment's Pod.

use std::collections::BTreeSet;

use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::jiff::Timestamp;
use kube::ResourceExt;
use stowage_crds::model_deployment::ReplicaState;
use stowage_crds::model_node::{Assignment, AssignmentState, ReplicaStatus};
use stowage_crds::{ModelNode, names};
use stowage_placement::Reason;

use super::pods;
use super::settings::Settings;
use super::story;
use crate::cache::{Key, Revision};
use crate::clock::after;
use crate::ledger;
use crate::state::State;
use crate::step::{Step, Target, Write};

/// Before a worker that ended soon after its Pod had started it is tried again. One that reached its agent is held back by that, too, and for longer each time.
const PAUSE_SECONDS: i64 = 10;

/// Uids of all assignments, and of those whose Pods are left.
pub fn uids(state: &State) -> BTreeSet<String> {
    if state.workers.is_none() {
        return BTreeSet::new();
    }
    let assignments = state.model_nodes.iter().flat_map(|(_, node)| &node.spec.assignments).map(|assignment| assignment.uid.clone());
    let pods = state.pods.iter().filter_map(|(_, pod)| Some(pod.labels().get(names::ASSIGNMENT_LABEL)?.clone()));
    assignments.chain(pods).collect()
}

pub fn step(state: &State, uid: &str, now: Timestamp) -> Step {
    let Some(settings) = &state.workers else { return Step::Done };
    let Some((node, assignment)) = find(state, uid) else { return remove_leftover(state, uid) };
    let replica = ledger::replica(node, uid);
    match story::pod_of(state, assignment) {
        None if is_wanted(assignment, replica) => make(state, node, assignment, settings),
        Some(pod) if pod.metadata.deletion_timestamp.is_none() && is_to_go(pod, assignment, replica, now) => remove(pod),
        _ => Step::Done,
    }
}

fn find<'a>(state: &'a State, uid: &str) -> Option<(&'a ModelNode, &'a Assignment)> {
    state.model_nodes.iter().find_map(|(_, node)| {
        let assignment = node.spec.assignments.iter().find(|assignment| assignment.uid == uid)?;
        Some((node.as_ref(), assignment))
    })
}

/// Whether a Pod is to be made where there is none.
fn is_wanted(assignment: &Assignment, replica: Option<&ReplicaStatus>) -> bool {
    let state = replica.map_or(ReplicaState::Pending, |replica| replica.state);
    // One that failed is awaited again by its agent after a while, or never; one that was refused is taken back.
    let may_come = !matches!(state, ReplicaState::Failed | ReplicaState::Refused | ReplicaState::Gone);
    assignment.state == AssignmentState::Serve && may_come
}

fn make(state: &State, node: &ModelNode, assignment: &Assignment, settings: &Settings) -> Step {
    let pod = pods::pod(assignment, &node.name_any(), &state.system_namespace, settings);
    // Somebody else's is left alone, and nothing comes of the replica until it is gone.
    if state.pods.get(&Key::of(&pod)).is_some() {
        return Step::Done;
    }
    Step::write(Write::MakePod { pod: Box::new(pod), owner: settings.service_account.clone() })
}

fn remove(pod: &Pod) -> Step {
    Step::write(Write::RemovePod { key: Key::of(pod), uid: pod.uid().unwrap_or_default() })
}

fn is_to_go(pod: &Pod, assignment: &Assignment, replica: Option<&ReplicaStatus>, now: Timestamp) -> bool {
    match assignment.state {
        AssignmentState::Release => {
            let overdue = ledger::freed_by(assignment).is_some_and(|deadline| deadline <= now);
            story::has_ended(pod) || overdue || !may_have_loaded(replica)
        }
        AssignmentState::Serve if story::has_ended(pod) => is_awaited_again(pod, replica, now),
        AssignmentState::Serve => is_stuck(pod, replica),
        AssignmentState::Drain => false,
    }
}

fn may_have_loaded(replica: Option<&ReplicaStatus>) -> bool {
    replica.is_some_and(|replica| match replica.state {
        ReplicaState::Pending | ReplicaState::Downloading | ReplicaState::Refused | ReplicaState::Gone => false,
        ReplicaState::Loading | ReplicaState::Ready | ReplicaState::Draining | ReplicaState::Failed => true,
    })
}

/// Whether the agent waits for another worker in place of the one that has ended. What ended for want of memory is not tried again as it was.
fn is_awaited_again(pod: &Pod, replica: Option<&ReplicaStatus>, now: Timestamp) -> bool {
    let awaits = replica.is_some_and(|replica| is_wanted_by(replica) && replica.pod_uid.is_empty());
    awaits && !story::ran_out_of_memory(pod) && retry_at(pod).is_none_or(|at| at <= now)
}

fn is_wanted_by(replica: &ReplicaStatus) -> bool {
    matches!(replica.state, ReplicaState::Pending | ReplicaState::Downloading | ReplicaState::Loading)
}

/// When a worker that has ended may come again; `None`: at once.
pub fn retry_at(pod: &Pod) -> Option<Timestamp> {
    let (started, finished) = story::lifetime(pod);
    let finished = finished.or_else(|| pod.creation_timestamp().map(|made| made.0))?;
    let lived = started.map_or(0, |started| finished.duration_since(started).as_secs());
    (lived < PAUSE_SECONDS).then(|| after(finished, PAUSE_SECONDS))
}

/// Whether its agent has given up on the worker in this Pod, and can't end it itself.
fn is_stuck(pod: &Pod, replica: Option<&ReplicaStatus>) -> bool {
    replica.is_some_and(|replica| {
        let given_up = replica.state == ReplicaState::Failed && replica.reason == Some(Reason::WorkerCrashed);
        given_up && Some(&replica.pod_uid) == pod.metadata.uid.as_ref()
    })
}

/// A Pod of an assignment that is no more. That there is none must be known as of a time at which there was the Pod.
fn remove_leftover(state: &State, uid: &str) -> Step {
    let left = state.pods.iter().map(|(_, pod)| pod.as_ref()).find(|pod| {
        pod.labels().get(names::ASSIGNMENT_LABEL).is_some_and(|label| label == uid) && pod.metadata.deletion_timestamp.is_none()
    });
    let Some(pod) = left else { return Step::Done };
    if let Some(node) = pod.annotations().get(pods::NODE_ANNOTATION)
        && state.model_nodes.fresh(&Key::cluster(node)) < Revision::of(pod)
    {
        return Step::Confirm { target: Target::ModelNode(node.clone()), as_of: Revision::of(pod) };
    }
    remove(pod)
}

#[cfg(test)]
mod tests;
