//! What goes over the wire: these requests, in this order, and no others.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};

use http::{Request, Response, StatusCode};
use k8s_openapi::jiff::Timestamp;
use kube::Client;
use kube::client::Body;
use kube::runtime::watcher::Event;
use serde_json::{Value, json};
use stowage_crds::model_deployment::ReplicaState;
use stowage_crds::{ModelDeployment, ModelNode};
use stowage_placement::Bytes;
use tokio::sync::{mpsc, watch};
use tower_test::mock;

use super::{DecisionTask, Pace, Requests};
use crate::cache::Key;
use crate::clock::{Clock, after};
use crate::leader::Leadership;
use crate::metrics::Metrics;
use crate::model_deployment::validate::Origin;
use crate::roll_call::Questions;
use crate::state::State;
use crate::step::Notice;
use crate::testing::{deployment, gpu_node, now, remote_model, replica_status, state_with};
use crate::waits::Waits;
use crate::watch::Change;

struct Fixed;

impl Clock for Fixed {
    fn now(&self) -> Timestamp {
        now()
    }
}

/// Takes every apply as it comes, gives each a new version, and notes what was asked. What is looked up does not exist.
async fn serve(mut handle: mock::Handle<Request<Body>, Response<Body>>, asked: Arc<Mutex<Vec<String>>>, objects: Arc<Mutex<Vec<Value>>>) {
    let mut version = 1000;
    while let Some((request, send)) = handle.next_request().await {
        let (parts, body) = request.into_parts();
        asked.lock().unwrap().push(format!("{} {}", parts.method, parts.uri.path()));
        let body = body.collect_bytes().await.unwrap();
        if parts.method == http::Method::GET {
            let missing =
                json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure", "reason": "NotFound", "code": 404});
            send.send_response(answer(StatusCode::NOT_FOUND, &missing));
            continue;
        }
        version += 1;
        let mut applied: Value = serde_json::from_slice(&body).unwrap();
        if applied["kind"].is_null() {
            // A merge names its object in the path alone.
            (applied["kind"], applied["metadata"]["name"]) = ("ModelNode".into(), "n1".into());
        }
        let object = merged(&objects, applied, version);
        send.send_response(answer(StatusCode::OK, &object));
    }
}

fn answer(status: StatusCode, body: &Value) -> Response<Body> {
    Response::builder().status(status).body(Body::from(serde_json::to_vec(body).unwrap())).unwrap()
}

/// The known object of that kind and name with the applied fields in it; the precondition must hold.
fn merged(objects: &Mutex<Vec<Value>>, applied: Value, version: u64) -> Value {
    let mut objects = objects.lock().unwrap();
    let known =
        objects.iter_mut().find(|known| known["kind"] == applied["kind"] && known["metadata"]["name"] == applied["metadata"]["name"]);
    let Some(known) = known else {
        let mut object = applied;
        object["metadata"]["resourceVersion"] = version.to_string().into();
        object["metadata"]["uid"] = format!("uid-{version}").into();
        objects.push(object.clone());
        return object;
    };
    assert_eq!(known["metadata"]["resourceVersion"], applied["metadata"]["resourceVersion"], "planned on another version");
    if let Some(fields) = applied["spec"].as_object() {
        fields.iter().for_each(|(name, value)| known["spec"][name] = value.clone());
    }
    // An apply takes back what its manager applied before and does not any more; of a ModelDeployment's status that is all.
    if applied["kind"] == "ModelDeployment" {
        known["status"] = applied["status"].clone();
    }
    known["metadata"]["resourceVersion"] = version.to_string().into();
    known.clone()
}

struct Scenario {
    task: DecisionTask,
    asked: Arc<Mutex<Vec<String>>>,
    told: mpsc::UnboundedReceiver<Notice>,
    headers: watch::Receiver<BTreeSet<Origin>>,
}

impl Scenario {
    fn new(node: ModelNode, deployment: ModelDeployment) -> Scenario {
        let (service, handle) = mock::pair::<Request<Body>, Response<Body>>();
        let (asked, objects) = (Arc::default(), Arc::new(Mutex::new(vec![json!(node), json!(deployment)])));
        tokio::spawn(serve(handle, Arc::clone(&asked), objects));
        let (notices, told) = mpsc::unbounded_channel();
        let (headers, wanted) = watch::channel(BTreeSet::new());
        let (questions, _) = watch::channel(Questions::new());
        let task = DecisionTask {
            clock: Arc::new(Fixed),
            requests: Requests::new(Client::new(service, "default"), Leadership::unquestioned()),
            pace: Pace::default(),
            state: state_with(vec![node], vec![deployment]),
            notices,
            headers,
            questions,
            metrics: Arc::new(Metrics::default()),
            waits: Waits::default(),
        };
        Scenario { task, asked, told, headers: wanted }
    }

    /// Decides once, and says what that asked of the API server.
    async fn round(&mut self) -> Vec<String> {
        while self.task.pass().await.unwrap() || !self.task.requests.are_none() {
            self.task.next_answer().await.unwrap();
        }
        std::mem::take(&mut self.asked.lock().unwrap())
    }

    fn told(&mut self) -> Vec<String> {
        std::iter::from_fn(|| self.told.try_recv().ok()).map(|notice| notice.reason.to_string()).collect()
    }

    fn deployment(&self) -> ModelDeployment {
        self.task.state.deployments.get(&Key::new("default", "m")).unwrap().as_ref().clone()
    }

    /// The agent of the only node reports on the only assignment.
    fn agent_reports(&mut self, state: ReplicaState, version: u64) {
        let mut node: ModelNode = self.task.state.model_node("n1").unwrap().as_ref().clone();
        let assignment = node.spec.assignments[0].clone();
        let held = (state == ReplicaState::Ready).then(|| assignment.plan.devices[0].total_bytes);
        let mut replica = replica_status(&assignment.uid, state, held);
        if state == ReplicaState::Ready {
            replica.address = "192.0.2.1:40123".into();
        }
        node.status.as_mut().unwrap().replicas = vec![replica];
        node.metadata.resource_version = Some(version.to_string());
        assert!(self.task.take_in(vec![Change::ModelNode(Event::Apply(node))]));
    }
}

const STATUS: &str = "PATCH /apis/stowage.dev/v1alpha1/namespaces/default/modeldeployments/m/status";
const PROMISES: &str = "PATCH /apis/stowage.dev/v1alpha1/modelnodes/n1";
const SERVICE: &str = "/api/v1/namespaces/default/services/m";

#[tokio::test]
async fn a_replica_is_claimed_then_promised_and_when_nothing_changed_nothing_is_sent() {
    let mut scenario = Scenario::new(gpu_node("n1", Bytes::gib(8)), deployment("m"));
    let first = scenario.round().await;
    // The Service is made beside the claim.
    assert_eq!(first, [STATUS, &format!("GET {SERVICE}"), &format!("PATCH {SERVICE}"), PROMISES, STATUS]);
    assert_eq!(scenario.told(), ["Assigned"]);
    assert_eq!(scenario.round().await, Vec::<String>::new());

    scenario.agent_reports(ReplicaState::Ready, 5000);
    let ready = scenario.round().await;
    assert_eq!(ready, [STATUS, "POST /apis/discovery.k8s.io/v1/namespaces/default/endpointslices"]);
    assert_eq!(scenario.told(), ["Serving"]);
    assert_eq!(scenario.round().await, Vec::<String>::new());
    let summary = scenario.deployment().status.unwrap().summary.unwrap();
    assert_eq!((summary.processor.as_str(), summary.layers.as_str(), summary.reason.as_str()), ("100% GPU", "31/31", "AsAsked"));
    assert_eq!(scenario.deployment().status.unwrap().ready, "1/1");
    let text = scenario.task.metrics.text();
    for waited in ["time_to_scheduled_seconds_count 1", "time_to_ready_seconds_count 1"] {
        assert!(text.contains(&format!("stowage_operator_{waited}")), "{waited} is not in\n{text}");
    }
}

#[tokio::test]
async fn what_does_not_fit_is_told_with_the_numbers_once_and_nothing_is_promised() {
    let scenario = Scenario::new(gpu_node("n1", Bytes::mib(900)), deployment("m"));
    let mut scenario = scenario;
    assert_eq!(scenario.round().await, [STATUS, &format!("GET {SERVICE}"), &format!("PATCH {SERVICE}")]);
    assert_eq!(scenario.told(), ["InsufficientVRAM"]);
    assert_eq!(scenario.round().await, Vec::<String>::new());
    let status = scenario.deployment().status.unwrap();
    assert_eq!(status.summary.as_ref().unwrap().reason, "InsufficientVRAM");
    assert!(status.fit.unwrap().fit.shortfall_bytes > Bytes::ZERO);
    assert!(status.conditions.iter().any(|condition| condition.type_ == "Scheduled" && condition.message.contains("missing")));
}

#[tokio::test(start_paused = true)]
async fn what_the_api_server_does_not_answer_for_now_is_tried_again_after_a_while_and_nothing_is_told() {
    let mut scenario = Scenario::new(gpu_node("n1", Bytes::gib(8)), deployment("m"));
    let (service, mut server) = mock::pair::<Request<Body>, Response<Body>>();
    scenario.task.requests = Requests::new(Client::new(service, "default"), Leadership::unquestioned());
    tokio::spawn(async move {
        while let Some((_, send)) = server.next_request().await {
            send.send_response(answer(StatusCode::SERVICE_UNAVAILABLE, &json!({"code": 503, "message": "busy"})));
        }
    });
    assert!(scenario.task.pass().await.unwrap());
    while !scenario.task.requests.are_none() {
        scenario.task.next_answer().await.unwrap();
    }
    assert!(scenario.task.pace.due && !scenario.task.pace.is_due(), "not at once");
    assert_eq!(scenario.told(), Vec::<String>::new());
    assert!(!scenario.task.state.in_flight.is_busy(&super::Item::Deployment(Key::new("default", "m"))));
    tokio::time::advance(scenario.task.pace.wait().unwrap()).await;
    assert!(scenario.task.pace.is_due());
}

#[tokio::test]
async fn a_lease_that_is_only_renewed_asks_for_no_decision() {
    let mut scenario = Scenario::new(gpu_node("n1", Bytes::gib(8)), deployment("m"));
    let mut renewed = crate::testing::lease("n1", -5);
    renewed.metadata.resource_version = Some("7000".into());
    assert!(!scenario.task.take_in(vec![Change::Lease(Event::Apply(renewed))]));
    let state: &State = &scenario.task.state;
    assert!(state.is_ready("n1", after(now(), 39)) && !state.is_ready("n1", after(now(), 40)));
    assert_eq!(
        state.next_deadline(now()),
        Some(after(now(), 40)),
        "silence is noticed when it has lasted, not when something else happens"
    );
}

#[tokio::test]
async fn a_branch_is_read_once_and_known_by_its_commit_from_then_on() {
    let mut deployment = deployment("m");
    let source = json!({"huggingFace": {"repository": "a/b", "file": "m.gguf"}});
    deployment.spec.model = serde_json::from_value(source).unwrap();
    let branch = Origin::settled(&deployment);
    let mut scenario = Scenario::new(gpu_node("n1", Bytes::gib(8)), deployment);
    scenario.round().await;
    assert_eq!(*scenario.headers.borrow(), BTreeSet::from([branch.clone()]));
    let mut model = remote_model();
    model.source.commit = "0123456789012345678901234567890123456789".into();
    let commit = model.source.commit.clone();
    assert!(scenario.task.take_in(vec![Change::Header(branch.clone(), Ok(Arc::new(model)))]));
    let asked = scenario.round().await;
    assert!(asked.contains(&PROMISES.to_owned()), "placed in the same round: {asked:?}");
    assert_eq!(Origin::settled(&scenario.deployment()), branch.clone().at(&commit));
    assert_eq!(scenario.round().await, Vec::<String>::new());
    assert!(scenario.headers.borrow().is_empty(), "nothing is left to read");
    let known: Vec<&Origin> = scenario.task.state.headers.keys().collect();
    assert_eq!(known, [&branch.at(&commit)]);
}
