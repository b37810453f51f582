//! From an assignment, what its agent reports and its Pod, what is done next.

use serde_json::{Value, json};
use stowage_placement::Bytes;

use super::*;
use crate::testing::{assignment, gpu_node, listed, now, replica_status, state_with, worker_settings};

struct Scene {
    state: State,
    assignment: Assignment,
}

impl Scene {
    /// An assignment in this state, and what its agent reports, if it does.
    fn new(promised: AssignmentState, reported: Option<ReplicaStatus>) -> Scene {
        let assignment = Assignment { state: promised, ..assignment("a", Bytes::ZERO) };
        let mut node = gpu_node("n1", Bytes::gib(24));
        node.spec.assignments.push(assignment.clone());
        node.status.as_mut().unwrap().replicas.extend(reported);
        let state = State { workers: Some(std::sync::Arc::new(worker_settings())), ..state_with(vec![node], Vec::new()) };
        Scene { state, assignment }
    }

    fn pod(&self, status: Value) -> Pod {
        let mut pod = pods::pod(&self.assignment, "n1", &self.state.system_namespace, &worker_settings());
        (pod.metadata.uid, pod.metadata.resource_version) = (Some("pod-1".into()), Some("9".into()));
        pod.status = serde_json::from_value(status).unwrap();
        pod
    }

    fn with_pod(mut self, status: Value) -> Scene {
        self.state.pods = listed([self.pod(status)]);
        self
    }

    fn does(&self) -> &'static str {
        match step(&self.state, "a", now()) {
            Step::Write(decision) => decision.write.kind(),
            Step::Done => "nothing",
            Step::Confirm { .. } => "looks",
            Step::Remember(_) => "remembers",
        }
    }
}

fn reports(state: ReplicaState) -> Option<ReplicaStatus> {
    Some(replica_status("a", state, None))
}

fn ended(reason: &str, seconds_ago: i64, lived: i64) -> Value {
    let time = |ago: i64| after(now(), -ago).to_string();
    let terminated = json!({"exitCode": 1, "reason": reason, "startedAt": time(seconds_ago + lived), "finishedAt": time(seconds_ago)});
    json!({"phase": "Failed", "containerStatuses": [
        {"name": "worker", "image": "", "imageID": "", "ready": false, "restartCount": 0, "state": {"terminated": terminated}},
    ]})
}

#[test]
fn one_pod_is_made_for_each_assignment_that_is_to_serve_and_has_not_failed() {
    use AssignmentState::{Release, Serve};
    assert_eq!(Scene::new(Serve, None).does(), "make Pod");
    for state in [ReplicaState::Pending, ReplicaState::Downloading, ReplicaState::Loading, ReplicaState::Ready] {
        assert_eq!(Scene::new(Serve, reports(state)).does(), "make Pod");
    }
    for state in [ReplicaState::Failed, ReplicaState::Refused, ReplicaState::Gone] {
        assert_eq!(Scene::new(Serve, reports(state)).does(), "nothing", "{state:?}");
    }
    assert_eq!(Scene::new(Release, None).does(), "nothing");
    assert_eq!(Scene::new(Serve, None).with_pod(json!({"phase": "Pending"})).does(), "nothing");
}

#[test]
fn where_agents_start_workers_there_are_no_pods() {
    let scene = Scene::new(AssignmentState::Serve, None);
    assert_eq!(step(&State { workers: None, ..scene.state }, "a", now()), Step::Done);
}

#[test]
fn a_pod_whose_replica_is_released_goes_when_it_has_ended_or_never_loaded_and_not_before() {
    let released = |state| Scene::new(AssignmentState::Release, state);
    let running = || json!({"phase": "Running"});
    assert_eq!(released(reports(ReplicaState::Draining)).with_pod(running()).does(), "nothing", "its agent tells it to end");
    assert_eq!(released(reports(ReplicaState::Draining)).with_pod(json!({"phase": "Succeeded"})).does(), "remove Pod");
    assert_eq!(released(reports(ReplicaState::Gone)).with_pod(running()).does(), "remove Pod");
    assert_eq!(released(None).with_pod(running()).does(), "remove Pod");
    let mut overdue = released(reports(ReplicaState::Draining)).with_pod(running());
    let mut node = overdue.state.model_node("n1").unwrap().as_ref().clone();
    node.spec.assignments[0].deadline = Some(crate::clock::whole_seconds(after(now(), -3600)));
    node.metadata.resource_version = Some("11".into());
    overdue.state.model_nodes.assume(node);
    assert_eq!(overdue.does(), "remove Pod", "its agent has not come to end it");
}

#[test]
fn a_worker_that_ended_comes_again_once_its_agent_awaits_it_but_not_at_once_where_it_ended_at_once() {
    let awaits = || Scene::new(AssignmentState::Serve, reports(ReplicaState::Loading));
    assert_eq!(awaits().with_pod(ended("Error", 1, 60)).does(), "remove Pod");
    assert_eq!(awaits().with_pod(ended("Error", 1, 2)).does(), "nothing");
    let later = awaits().with_pod(ended("Error", 1, 2));
    assert_eq!(later.state.next_deadline(now()), Some(after(now(), PAUSE_SECONDS - 1)));
    assert_eq!(awaits().with_pod(ended("Error", PAUSE_SECONDS, 2)).does(), "remove Pod");
    let pauses = Scene::new(AssignmentState::Serve, reports(ReplicaState::Failed));
    assert_eq!(pauses.with_pod(ended("Error", 60, 60)).does(), "nothing", "its log is still of use");
    assert_eq!(awaits().with_pod(ended("OOMKilled", 60, 60)).does(), "nothing", "it is placed anew");
}

#[test]
fn a_worker_that_its_agent_has_given_up_is_ended_by_its_pod() {
    let given_up = |pod_uid: &str| {
        let reported = ReplicaStatus {
            reason: Some(Reason::WorkerCrashed),
            pod_uid: pod_uid.into(),
            ..replica_status("a", ReplicaState::Failed, None)
        };
        Scene::new(AssignmentState::Serve, Some(reported)).with_pod(json!({"phase": "Running"})).does()
    };
    assert_eq!((given_up("pod-1"), given_up(""), given_up("pod-0")), ("remove Pod", "nothing", "nothing"));
}

#[test]
fn a_pod_without_an_assignment_is_removed_once_it_is_certain_that_there_is_none() {
    let mut scene = Scene::new(AssignmentState::Serve, None).with_pod(json!({"phase": "Running"}));
    let mut node = scene.state.model_node("n1").unwrap().as_ref().clone();
    node.spec.assignments.clear();
    scene.state.model_nodes = listed([node]);
    assert_eq!(scene.does(), "remove Pod");
    assert_eq!(uids(&scene.state), BTreeSet::from(["a".to_owned()]));
    let mut newer = scene.pod(json!({"phase": "Running"}));
    newer.metadata.resource_version = Some("12".into());
    scene.state.pods = listed([newer]);
    assert_eq!(scene.does(), "looks", "the Pod is newer than what is known of its node");
}

#[test]
fn a_pod_that_ends_already_is_left_to_end() {
    let mut scene = Scene::new(AssignmentState::Release, reports(ReplicaState::Gone));
    let mut pod = scene.pod(json!({"phase": "Running"}));
    pod.metadata.deletion_timestamp = Some(crate::clock::whole_seconds(now()));
    scene.state.pods = listed([pod]);
    assert_eq!(scene.does(), "nothing");
}
