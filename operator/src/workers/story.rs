//! What a worker's Pod says of its replica, and no agent can see: whether there is room for it, whether it can be started, and how it ended. Pure.

use std::borrow::Cow;
use std::collections::BTreeSet;

use k8s_openapi::api::core::v1::{ContainerState, ContainerStateTerminated, Pod, PodCondition};
use k8s_openapi::jiff::Timestamp;
use kube::ResourceExt;
use stowage_crds::model_deployment::ReplicaState;
use stowage_crds::model_node::{Assignment, AssignmentState, ReplicaStatus};
use stowage_crds::{ModelNode, log_line, names};
use stowage_placement::{HOST, Reason};

use super::pods;
use crate::cache::Key;
use crate::clock::after;
use crate::ledger;
use crate::state::State;
use crate::step::Item;

/// Why a container waits that will not start unless something changes.
const STUCK: [&str; 8] = [
    "ErrImagePull",
    "ImagePullBackOff",
    "ErrImageNeverPull",
    "InvalidImageName",
    "ImageInspectError",
    "CreateContainerConfigError",
    "CreateContainerError",
    "RunContainerError",
];
/// For a Pod that ends, and leaves room.
const ROOM_MAY_COME_SECONDS: i64 = 10;
/// As the kubelet and a container's runtime call it.
const OUT_OF_MEMORY: &str = "OOMKilled";

/// The Pod of an assignment's worker, where there is one.
pub fn pod_of<'a>(state: &'a State, assignment: &Assignment) -> Option<&'a Pod> {
    let pod = state.pods.get(&Key::new(&state.system_namespace, &pods::name(assignment)))?;
    (pod.labels().get(names::ASSIGNMENT_LABEL) == Some(&assignment.uid)).then_some(pod.as_ref())
}

/// Whether a process of the assignment's worker may still be there.
pub fn lives(state: &State, assignment: &Assignment) -> bool {
    pod_of(state, assignment).is_some_and(|pod| !has_ended(pod)) || state.in_flight.makes_pod(&assignment.uid)
}

/// Whether all of it has ended, and nothing of it starts again.
pub fn has_ended(pod: &Pod) -> bool {
    matches!(phase(pod), "Succeeded" | "Failed")
}

fn phase(pod: &Pod) -> &str {
    pod.status.as_ref().and_then(|status| status.phase.as_deref()).unwrap_or_default()
}

fn container(pod: &Pod) -> Option<&ContainerState> {
    let statuses = pod.status.as_ref()?.container_statuses.as_ref()?;
    statuses.iter().find(|status| status.name == pods::CONTAINER)?.state.as_ref()
}

fn terminated(pod: &Pod) -> Option<&ContainerStateTerminated> {
    container(pod)?.terminated.as_ref()
}

pub fn ran_out_of_memory(pod: &Pod) -> bool {
    terminated(pod).is_some_and(|ended| ended.reason.as_deref() == Some(OUT_OF_MEMORY))
}

/// From when until when it ran, as far as that is known.
pub fn lifetime(pod: &Pod) -> (Option<Timestamp>, Option<Timestamp>) {
    let time = |time: &Option<k8s_openapi::apimachinery::pkg::apis::meta::v1::Time>| time.as_ref().map(|time| time.0);
    terminated(pod).map(|ended| (time(&ended.started_at), time(&ended.finished_at))).unwrap_or_default()
}

/// How a replica stands: what its agent reports, with what its Pod says.
pub fn reported<'a>(state: &State, node: &'a ModelNode, assignment: &Assignment) -> Option<Cow<'a, ReplicaStatus>> {
    let reported = ledger::replica(node, &assignment.uid);
    if state.workers.is_none() || assignment.state == AssignmentState::Release {
        return reported.map(Cow::Borrowed);
    }
    let said = reported.cloned().unwrap_or_else(|| ReplicaStatus {
        uid: assignment.uid.clone(),
        replica: assignment.replica.clone(),
        reason: Some(Reason::Assigned),
        ..ReplicaStatus::default()
    });
    let Some(pod) = pod_of(state, assignment) else {
        let rejected = state.memory.rejected.get(&Item::Worker(assignment.uid.clone())).filter(|_| awaits_worker(&said));
        return Some(Cow::Owned(match rejected {
            Some(rejected) => because(said, Reason::PodNotStarted, format!("its Pod can't be made: {}", rejected.message)),
            None => said,
        }));
    };
    Some(Cow::Owned(with_pod(said, pod, assignment)))
}

fn with_pod(said: ReplicaStatus, pod: &Pod, assignment: &Assignment) -> ReplicaStatus {
    if ran_out_of_memory(pod) && !matches!(said.state, ReplicaState::Gone | ReplicaState::Refused) {
        return out_of_memory(said, pod, assignment);
    }
    let waits = awaits_worker(&said);
    if let Some(end) = how_it_ended(pod) {
        return match said.state {
            ReplicaState::Failed if said.reason == Some(Reason::WorkerCrashed) => {
                ReplicaStatus { message: format!("{}; {end}", said.message), ..said }
            }
            _ if waits => ReplicaStatus { state: ReplicaState::Failed, ..because(said, Reason::WorkerCrashed, end) },
            _ => said,
        };
    }
    match obstacle(pod).filter(|_| waits) {
        Some((reason, message)) => because(said, reason, message),
        None => said,
    }
}

/// Whether the replica has no worker yet.
fn awaits_worker(said: &ReplicaStatus) -> bool {
    match said.state {
        ReplicaState::Pending | ReplicaState::Downloading => true,
        ReplicaState::Loading => said.reason == Some(Reason::WorkerStarting),
        _ => false,
    }
}

fn because(said: ReplicaStatus, reason: Reason, message: String) -> ReplicaStatus {
    ReplicaStatus { reason: Some(reason), message, ..said }
}

/// The scheduler's finding that there is no room for the Pod.
fn no_room(pod: &Pod) -> Option<&PodCondition> {
    let mut conditions = pod.status.iter().flat_map(|status| status.conditions.iter().flatten());
    conditions.find(|condition| {
        condition.type_ == "PodScheduled" && condition.status == "False" && condition.reason.as_deref() == Some("Unschedulable")
    })
}

/// When the scheduler will have found no room for the Pod for so long that its replica is better placed elsewhere.
pub fn gives_up_at(pod: &Pod) -> Option<Timestamp> {
    let since = no_room(pod)?.last_transition_time.as_ref().or(pod.metadata.creation_timestamp.as_ref())?;
    Some(after(since.0, ROOM_MAY_COME_SECONDS))
}

/// Whether the scheduler has had no room for the worker of this assignment for a while.
pub fn finds_no_room(state: &State, assignment: &Assignment, now: Timestamp) -> bool {
    let may_have_a_pod = state.workers.is_some() && assignment.state == AssignmentState::Serve;
    may_have_a_pod && pod_of(state, assignment).and_then(gives_up_at).is_some_and(|at| at <= now)
}

/// All assignments of which that holds, with their nodes. It begins with the Pods, of which few wait for room: to find an assignment's Pod takes a digest.
pub fn without_room(state: &State, now: Timestamp) -> impl Iterator<Item = (&ModelNode, &Assignment)> {
    let waiting = state.pods.iter().filter(|(_, pod)| gives_up_at(pod).is_some_and(|at| at <= now));
    let waiting: BTreeSet<&str> = waiting.filter_map(|(_, pod)| pod.labels().get(names::ASSIGNMENT_LABEL)).map(String::as_str).collect();
    let assignments =
        state.model_nodes.iter().flat_map(|(_, node)| node.spec.assignments.iter().map(move |assignment| (node.as_ref(), assignment)));
    assignments.filter(move |(_, assignment)| waiting.contains(assignment.uid.as_str()) && finds_no_room(state, assignment, now))
}

/// What keeps the Pod from starting.
fn obstacle(pod: &Pod) -> Option<(Reason, String)> {
    let name = pod.name_any();
    if let Some(condition) = no_room(pod) {
        let memory = memory_limit(pod);
        let said = condition.message.as_deref().unwrap_or_default();
        return Some((Reason::PodUnschedulable, format!("Pod {name}, which asks for {memory} of memory: {said}")));
    }
    let waiting = container(pod)?.waiting.as_ref()?;
    let reason = waiting.reason.as_deref().filter(|reason| STUCK.contains(reason))?;
    Some((Reason::PodNotStarted, format!("Pod {name}: {reason}: {}", waiting.message.as_deref().unwrap_or_default())))
}

/// A sentence, where it has ended.
fn how_it_ended(pod: &Pod) -> Option<String> {
    if !has_ended(pod) {
        return None;
    }
    let name = pod.name_any();
    let Some(ended) = terminated(pod) else {
        let status = pod.status.as_ref()?;
        let said = [status.reason.as_deref(), status.message.as_deref()].into_iter().flatten().collect::<Vec<_>>().join(": ");
        return Some(format!("Pod {name} has ended: {said}"));
    };
    let reason = ended.reason.as_deref().unwrap_or("ended");
    let last = ended.message.as_deref().unwrap_or_default().lines().rev().find(|line| !line.trim().is_empty());
    let last = last.map(|line| format!("; its log ends with: {}", log_line::shown(line))).unwrap_or_default();
    Some(format!("Pod {name}: {reason}, exit status {}{last}", ended.exit_code))
}

fn memory_limit(pod: &Pod) -> String {
    let container = pod.spec.as_ref().and_then(|spec| spec.containers.first());
    let limits = container.and_then(|container| container.resources.as_ref()?.limits.as_ref());
    limits.and_then(|limits| limits.get("memory")).map(|memory| memory.0.clone()).unwrap_or_default()
}

/// As if its agent had refused it: it is placed again, counting what it is known to have taken, which is all that its Pod might.
fn out_of_memory(mut said: ReplicaStatus, pod: &Pod, assignment: &Assignment) -> ReplicaStatus {
    let limit = pods::memory(assignment);
    if said.devices.is_empty() {
        said.devices = assignment.plan.devices.iter().map(|on| planned(on.id.clone(), on.total_bytes)).collect();
    }
    let host = said.devices.iter_mut().find(|on| on.id == HOST);
    let of_plan = host.map(|on| {
        on.measured_bytes = Some(limit);
        format!(", {} planned", on.predicted_bytes)
    });
    let message = format!(
        "the kernel ended the worker of Pod {}, for memory ran out: it may have {limit} of host memory{}",
        pod.name_any(),
        of_plan.unwrap_or_default()
    );
    ReplicaStatus { state: ReplicaState::Refused, percent: None, ..because(said, Reason::OutOfMemory, message) }
}

fn planned(id: String, predicted_bytes: stowage_placement::Bytes) -> stowage_crds::model_deployment::DeviceBytes {
    stowage_crds::model_deployment::DeviceBytes { id, predicted_bytes, measured_bytes: None }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};
    use stowage_placement::Bytes;

    use super::*;
    use crate::testing::{assignment, worker_settings};

    fn pod(status: Value) -> Pod {
        let mut pod = pods::pod(&assignment("a", Bytes::ZERO), "n1", "s", &worker_settings());
        pod.status = Some(serde_json::from_value(status).unwrap());
        pod
    }

    fn said(state: ReplicaState, reason: Reason) -> ReplicaStatus {
        ReplicaStatus {
            uid: "a".into(),
            state,
            reason: Some(reason),
            message: "the worker ended after 3 s".into(),
            ..ReplicaStatus::default()
        }
    }

    fn told(said: ReplicaStatus, status: Value) -> (ReplicaState, Reason, String) {
        let told = with_pod(said, &pod(status), &assignment("a", Bytes::ZERO));
        (told.state, told.reason.unwrap(), told.message)
    }

    fn ended(reason: &str, code: i32, log: &str) -> Value {
        let terminated = json!({"exitCode": code, "reason": reason, "message": log});
        json!({"phase": "Failed", "containerStatuses": [
            {"name": "worker", "image": "", "imageID": "", "ready": false, "restartCount": 0, "state": {"terminated": terminated}},
        ]})
    }

    #[test]
    fn what_the_scheduler_says_is_told_while_there_is_no_worker() {
        let condition =
            json!({"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": "0/1 nodes: Insufficient memory."});
        let status = json!({"phase": "Pending", "conditions": [condition]});
        let (state, reason, message) = told(said(ReplicaState::Loading, Reason::WorkerStarting), status.clone());
        assert_eq!((state, reason), (ReplicaState::Loading, Reason::PodUnschedulable));
        assert!(message.contains("asks for 64Mi of memory: 0/1 nodes: Insufficient memory."), "{message}");
        assert_eq!(told(said(ReplicaState::Ready, Reason::Serving), status).1, Reason::Serving, "what its agent sees is newer");
    }

    #[test]
    fn a_container_that_can_not_start_is_told_and_one_that_is_about_to_is_not() {
        let waits = |reason: &str| {
            let waiting = json!({"reason": reason, "message": "no such image"});
            json!({"phase": "Pending", "containerStatuses": [
                {"name": "worker", "image": "", "imageID": "", "ready": false, "restartCount": 0, "state": {"waiting": waiting}},
            ]})
        };
        let (_, reason, message) = told(said(ReplicaState::Loading, Reason::WorkerStarting), waits("ErrImagePull"));
        assert!(reason == Reason::PodNotStarted && message.ends_with("ErrImagePull: no such image"), "{message}");
        assert_eq!(told(said(ReplicaState::Loading, Reason::WorkerStarting), waits("ContainerCreating")).1, Reason::WorkerStarting);
    }

    #[test]
    fn an_end_for_want_of_memory_is_a_refusal_with_what_the_pod_might_have() {
        for state in [ReplicaState::Ready, ReplicaState::Failed, ReplicaState::Loading] {
            let refused = with_pod(said(state, Reason::WorkerCrashed), &pod(ended("OOMKilled", 137, "")), &assignment("a", Bytes::ZERO));
            assert_eq!((refused.state, refused.reason), (ReplicaState::Refused, Some(Reason::OutOfMemory)));
            let host = refused.devices.iter().find(|on| on.id == HOST).unwrap();
            assert_eq!(host.measured_bytes, Some(Bytes::mib(64)));
        }
    }

    #[test]
    fn how_a_worker_ended_stands_beside_what_its_agent_saw_of_it() {
        let (_, reason, message) = told(said(ReplicaState::Failed, Reason::WorkerCrashed), ended("Error", 101, "first\npanicked at 7\n\n"));
        assert_eq!(reason, Reason::WorkerCrashed);
        assert!(message.starts_with("the worker ended after 3 s; Pod m-a-"), "{message}");
        assert!(message.ends_with(": Error, exit status 101; its log ends with: panicked at 7"), "{message}");
        let (state, reason, _) = told(said(ReplicaState::Loading, Reason::WorkerStarting), ended("StartError", 128, ""));
        assert_eq!((state, reason), (ReplicaState::Failed, Reason::WorkerCrashed), "its agent never heard of it");
    }
}
