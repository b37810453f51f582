//! What the controller does and what it sends, step by step, against an API server that records.

use std::sync::Mutex;

use http::{Method, Request, Response};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::client::Body;
use serde_json::Value;
use stowage_crds::ModelNodeStatus;
use stowage_crds::model_deployment::ReplicaState;
use stowage_crds::model_node::{AssignmentState, DeviceBackend};
use stowage_placement::Bytes;
use tokio::sync::oneshot;

use super::*;
use crate::devices::{Gpu, HostReading};
use crate::node::calibrator;
use crate::node::testing::{allocation, assignment};
use crate::worker::view::WorkerView;

type Log<T> = Arc<Mutex<Vec<T>>>;

/// Records what it is told, and shows what the test says.
struct Recorded {
    told: Log<String>,
    views: watch::Sender<Views>,
}

impl Recorded {
    fn record(&self, what: &str, uid: &str) {
        self.told.lock().unwrap().push(format!("{what} {uid}"));
    }
}

impl Workers for Recorded {
    fn start(&self, assignment: &Assignment) {
        self.record("start", &assignment.uid);
    }
    fn update(&self, assignment: &Assignment) {
        self.record("update", &assignment.uid);
    }
    fn drain(&self, assignment: &Assignment) {
        self.record("drain", &assignment.uid);
    }
    fn release(&self, uid: &str, _: Option<Time>) {
        self.record("release", uid);
    }
    fn forget(&self, uid: &str) {
        self.record("forget", uid);
    }
    fn views(&self) -> watch::Receiver<Views> {
        self.views.subscribe()
    }
}

/// A controller, and everything around it that a test turns.
struct Scene {
    controller: Controller<Recorded>,
    told: Log<String>,
    /// Statuses that were written.
    written: Log<Value>,
    views: watch::Sender<Views>,
    reading: Arc<Mutex<Reading>>,
    _folder: tempfile::TempDir,
}

impl Scene {
    fn new(reading: Reading) -> Scene {
        let (told, written) = (Log::default(), Log::default());
        let reading = Arc::new(Mutex::new(reading));
        let seen = reading.clone();
        let views = watch::Sender::new(Views::new());
        let folder = tempfile::tempdir().unwrap();
        let controller = Controller::new(Parts {
            calibration: folder.path().join("calibration.json"),
            client: recording_client(Arc::clone(&written)),
            node: "n1".into(),
            address: "192.0.2.1".into(),
            workers: Recorded { told: Arc::clone(&told), views: views.clone() },
            devices: Arc::new(move || seen.lock().unwrap().clone()),
            models: watch::Sender::new(Models::default()).subscribe(),
            gate: mpsc::channel(1).1,
            routes: watch::Sender::new(Vec::new()),
            figures: watch::Sender::default(),
            calibrator: Calibrator::default(),
            leaving: CancellationToken::new(),
        });
        Scene { controller, told, written, views, reading, _folder: folder }
    }

    /// The ModelNode is this now, and the controller takes one step.
    async fn assigned(&mut self, assignments: Vec<Assignment>) {
        let mut object = ModelNode::new("n1", stowage_crds::ModelNodeSpec { assignments, devices: Vec::new() });
        (object.metadata.uid, object.metadata.generation) = (Some("node-uid".into()), Some(1));
        self.controller.observe(Some(object));
        self.controller.step().await;
    }

    async fn viewed(&mut self, state: ReplicaState) {
        let mut view = WorkerView { assignment: Some(assignment("a")), ..WorkerView::default() };
        (view.status.uid, view.status.replica, view.status.state) = ("a".into(), "smol-a".into(), state);
        self.views.send_modify(|views| drop(views.insert("a".into(), view)));
        self.controller.step().await;
    }

    fn told(&self) -> Vec<String> {
        std::mem::take(&mut self.told.lock().unwrap())
    }

    fn written(&self) -> Vec<ModelNodeStatus> {
        let written = std::mem::take(&mut *self.written.lock().unwrap());
        written.into_iter().map(|status| serde_json::from_value(status).unwrap()).collect()
    }
}

/// Says yes to every write, and keeps the statuses.
fn recording_client(written: Log<Value>) -> Client {
    let (service, mut handle) = tower_test::mock::pair::<Request<Body>, Response<Body>>();
    tokio::spawn(async move {
        while let Some((request, reply)) = handle.next_request().await {
            let path = request.uri().path().to_owned();
            let method = request.method().clone();
            let body = request.into_body().collect_bytes().await.unwrap();
            if method == Method::PATCH && path == "/apis/stowage.dev/v1alpha1/modelnodes/n1/status" {
                let patch: Value = serde_json::from_slice(&body).unwrap();
                written.lock().unwrap().push(patch["status"].clone());
                let object = json!({"apiVersion": patch["apiVersion"], "kind": patch["kind"], "metadata": {"name": "n1"}, "spec": {}});
                reply.send_response(Response::new(Body::from(serde_json::to_vec(&object).unwrap())));
            } else {
                reply.send_response(Response::new(Body::from(body.to_vec())));
            }
        }
    });
    Client::new(service, "default")
}

fn reading(free_gib: u64) -> Reading {
    let gpu = Gpu {
        uuid: "GPU-a".into(),
        backend: DeviceBackend::Simulated,
        total: Bytes::gib(24),
        free: Bytes::gib(free_gib),
        ..Gpu::default()
    };
    let host = HostReading { memory: Bytes::gib(64), cores: 8, ..HostReading::default() };
    Reading { gpus: vec![gpu], host, ..Reading::default() }
}

fn on_gpu(uid: &str, gib: u64) -> Assignment {
    let mut assignment = assignment(uid);
    assignment.plan.devices = vec![allocation("GPU-a", gib), allocation(stowage_placement::HOST, 1)];
    assignment
}

fn in_state(state: AssignmentState) -> Vec<Assignment> {
    vec![Assignment { state, ..assignment("a") }]
}

#[tokio::test]
async fn before_the_operator_made_the_modelnode_nothing_is_written_and_then_once() {
    let mut scene = Scene::new(reading(20));
    scene.controller.step().await;
    assert_eq!(scene.written(), []);
    scene.assigned(vec![]).await;
    let written = scene.written();
    assert_eq!(written.len(), 1);
    assert_eq!((written[0].devices[0].free_bytes, written[0].address.as_str()), (Bytes::gib(20), "192.0.2.1"));
    scene.assigned(vec![]).await;
    scene.controller.step().await;
    assert_eq!(scene.written(), [], "nothing changed");
}

#[tokio::test]
async fn an_assignment_is_started_once_and_its_replica_followed_until_the_operator_drops_it() {
    let mut scene = Scene::new(reading(20));
    scene.assigned(in_state(AssignmentState::Serve)).await;
    scene.assigned(in_state(AssignmentState::Serve)).await;
    assert_eq!(scene.told(), ["start a"]);
    scene.viewed(ReplicaState::Ready).await;
    scene.viewed(ReplicaState::Ready).await;
    let states: Vec<ReplicaState> = scene.written().iter().map(|status| status.replicas[0].state).collect();
    assert_eq!(states, [ReplicaState::Pending, ReplicaState::Ready]);

    scene.assigned(in_state(AssignmentState::Release)).await;
    assert_eq!(scene.told(), ["release a"]);
    scene.viewed(ReplicaState::Gone).await;
    assert_eq!(scene.written().last().unwrap().replicas[0].state, ReplicaState::Gone);
    scene.assigned(vec![]).await;
    assert_eq!(scene.told(), ["forget a"]);
    assert_eq!(scene.written()[0].replicas, []);
}

#[tokio::test]
async fn a_plan_that_does_not_hold_is_refused_with_the_figures_of_that_moment_and_not_tried_again() {
    let mut scene = Scene::new(reading(20));
    scene.assigned(vec![]).await;
    scene.written();
    scene.reading.lock().unwrap().gpus[0].free = Bytes::gib(12);
    scene.assigned(vec![on_gpu("a", 16)]).await;
    let written = scene.written();
    assert_eq!(written.len(), 1);
    let replica = &written[0].replicas[0];
    assert_eq!((replica.state, replica.reason), (ReplicaState::Refused, Some(Reason::DeviceChanged)));
    assert!(replica.message.contains("16.0 GiB") && replica.message.contains("12.0 GiB"), "{}", replica.message);
    assert_eq!(written[0].devices[0].free_bytes, Bytes::gib(12));
    scene.assigned(vec![on_gpu("a", 16)]).await;
    assert_eq!((scene.told(), scene.written()), (vec![], vec![]));
}

#[tokio::test]
async fn of_two_assignments_that_no_longer_fit_together_the_first_is_started_and_the_second_refused() {
    let mut scene = Scene::new(reading(20));
    scene.assigned(vec![on_gpu("a", 12), on_gpu("b", 12)]).await;
    assert_eq!(scene.told(), ["start a"]);
    let states: Vec<ReplicaState> = scene.written()[0].replicas.iter().map(|replica| replica.state).collect();
    assert_eq!(states, [ReplicaState::Pending, ReplicaState::Refused]);
}

#[tokio::test]
async fn a_worker_of_an_earlier_agent_without_an_assignment_is_ended_once_the_modelnode_was_seen() {
    let mut scene = Scene::new(reading(20));
    scene.viewed(ReplicaState::Ready).await;
    assert_eq!(scene.told(), [""; 0], "without a ModelNode nobody knows what is assigned");
    scene.assigned(vec![]).await;
    scene.controller.step().await;
    assert_eq!(scene.told(), ["release a"]);
}

#[tokio::test]
async fn the_gate_lets_in_what_fits_now_and_refuses_what_others_took_since_the_start() {
    let mut scene = Scene::new(reading(20));
    scene.assigned(vec![on_gpu("a", 16)]).await;
    assert_eq!(asked(&mut scene).await, Ok(()));
    scene.reading.lock().unwrap().gpus[0].free = Bytes::gib(15);
    assert_eq!(asked(&mut scene).await.unwrap_err().reason, Reason::DeviceChanged);
}

#[tokio::test]
async fn while_the_agent_leaves_its_workers_drain_and_nothing_is_started_or_said_to_be_gone() {
    let mut scene = Scene::new(reading(20));
    scene.assigned(in_state(AssignmentState::Serve)).await;
    scene.viewed(ReplicaState::Ready).await;
    scene.written();
    scene.controller.parts.leaving.cancel();
    scene.viewed(ReplicaState::Draining).await;
    scene.viewed(ReplicaState::Gone).await;
    let states: Vec<ReplicaState> = scene.written().iter().map(|status| status.replicas[0].state).collect();
    assert_eq!((states, scene.told()), (vec![ReplicaState::Draining], vec!["start a".to_owned()]));
    assert_eq!(asked(&mut scene).await.unwrap_err().reason, Reason::Pending);
}

#[tokio::test]
async fn a_calibration_is_begun_where_nothing_is_promised_and_makes_way_for_an_assignment_before_that_is_checked() {
    let mut idle = reading(20);
    idle.gpus[0].own_process_ids = true;
    let mut scene = Scene::new(idle);
    // `cat` ends when its input is closed, as the agent's own command does, and says nothing.
    let folder = scene._folder.path();
    let script = folder.join("agent");
    std::fs::write(&script, "#!/bin/sh\ncat\n").unwrap();
    std::fs::set_permissions(&script, std::os::unix::fs::PermissionsExt::from_mode(0o700)).unwrap();
    let (folder, unfinished) = (folder.join("models"), folder.join("unfinished.json"));
    let settings = calibrator::Settings { executable: script, folder, unfinished, confine: crate::worker::Confine::Off };
    scene.controller.parts.calibrator = Calibrator::new(Some(settings));
    scene.controller.step().await;
    assert_eq!(scene.controller.parts.calibrator.on(), None, "what is promised is not known yet");
    scene.assigned(in_state(AssignmentState::Serve)).await;
    assert_eq!(scene.controller.parts.calibrator.on(), Some("GPU-a"), "what is promised is on the host");
    // All that is free, so it is refused where the calibration still holds a byte.
    scene.assigned(vec![on_gpu("b", 20)]).await;
    assert_eq!(scene.controller.parts.calibrator.on(), None);
    assert!(scene.told().contains(&"start b".to_owned()));
}

async fn asked(scene: &mut Scene) -> Result<(), Refusal> {
    let (answer, answered) = oneshot::channel();
    scene.controller.answer(GateRequest { uid: "a".into(), answer }).await;
    answered.await.unwrap()
}
