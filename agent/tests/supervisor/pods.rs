//! The supervisor where workers are in Pods of their own. The worker is this test: it joins, holds its lifeline and says what a worker says.

use stowage_agent::worker::Mode;
use stowage_agent::worker::lifeline::{self, Lifeline};
use stowage_agent::worker::process::ProcessId;
use stowage_agent::worker::protocol::{Connection, FromAgent, FromWorker, Hello, Join, Phase, VERSION, WorkerState};
use stowage_agent::worker::record::{self, Order};
use stowage_engine::MeasuredDevice;
use tokio::net::UnixStream;

use super::*;

const POD: &str = "pod-uid-1";

fn config(node: &Node) -> SupervisorConfig {
    SupervisorConfig { mode: Mode::Pod, ..node.config() }
}

fn supervise(node: &Node) -> Supervisor {
    node.supervise_as(config(node), |_| std::future::ready(Ok(())))
}

async fn connect(node: &Node) -> Connection {
    Connection::new(UnixStream::connect(config(node).socket()).await.unwrap())
}

async fn join(node: &Node, uid: &str) -> Option<Order> {
    let mut connection = connect(node).await;
    connection.send(&FromWorker::Join(Join { version: VERSION, assignment_uid: uid.into() })).await.unwrap();
    match connection.receive().await.unwrap()? {
        FromAgent::Order(order) => Some(*order),
        other => panic!("not an order: {other:?}"),
    }
}

struct Worker {
    _lifeline: Lifeline,
    connection: Connection,
    order: Order,
}

impl Worker {
    async fn begin(node: &Node) -> Worker {
        let order = join(node, UID).await.unwrap();
        let lifeline = lifeline::hold(&record::lifeline(&record::shared(&node.path().join("run")), UID)).await.unwrap();
        let connection = connect(node).await;
        let mut worker = Worker { _lifeline: lifeline, connection, order };
        worker.says_hello(WorkerState::default()).await;
        worker
    }

    async fn says(&mut self, message: FromWorker) {
        self.connection.send(&message).await.unwrap();
    }

    async fn says_hello(&mut self, state: WorkerState) {
        let Order { assignment, file, .. } = self.order.clone();
        let process = ProcessId::own().unwrap();
        self.says(FromWorker::Hello(Box::new(Hello { version: VERSION, assignment, process, state, file, pod_uid: POD.into() }))).await;
    }

    async fn hears(&mut self, wanted: impl Fn(&FromAgent) -> bool) {
        while !wanted(&self.connection.receive().await.unwrap().expect("the agent is there")) {}
    }

    async fn loads(&mut self) -> WorkerState {
        self.says(FromWorker::MayLoad).await;
        self.hears(|message| *message == FromAgent::Go).await;
        let measured = vec![MeasuredDevice { id: HOST.into(), weights: Bytes(7), ..MeasuredDevice::default() }];
        let address = "198.51.100.7:11434".parse().unwrap();
        self.says(FromWorker::Loaded { measured: measured.clone(), address }).await;
        self.says(FromWorker::Ready { speed: None }).await;
        self.says(FromWorker::Heartbeat { resident: Some(Bytes::mib(5)) }).await;
        WorkerState { phase: Phase::Ready, measured, address: Some(address), speed: None }
    }
}

/// A supervisor, and a worker that serves.
async fn serving(node: &Node) -> (Supervisor, Worker) {
    let supervisor = supervise(node);
    supervisor.start(&assignment());
    let mut worker = Worker::begin(node).await;
    worker.loads().await;
    in_state(&supervisor, ReplicaState::Ready).await;
    (supervisor, worker)
}

#[tokio::test]
async fn a_worker_in_a_pod_is_told_its_order_serves_outlives_its_agent_and_is_gone_when_it_has_ended() {
    let node = Node::new("");
    let supervisor = supervise(&node);
    supervisor.start(&assignment());
    let awaited = in_state(&supervisor, ReplicaState::Loading).await;
    assert_eq!((awaited.status.reason, awaited.runs), (Some(Reason::WorkerStarting), false));
    let mut worker = Worker::begin(&node).await;
    assert_eq!((&worker.order.assignment, worker.order.model.file_name().unwrap()), (&assignment(), "m.gguf".as_ref()));
    let loaded = worker.loads().await;
    let ready = in_state(&supervisor, ReplicaState::Ready).await;
    assert_eq!((ready.status.address.as_str(), ready.status.pod_uid.as_str()), ("198.51.100.7:11434", POD));
    assert_eq!(ready.http_address, Some("198.51.100.7:11434".parse().unwrap()));

    supervisor.detach().await;
    drop(supervisor);
    let successor = supervise(&node);
    assert_eq!(successor.adopted(), [assignment()]);
    assert_eq!(successor.views().borrow()[UID].status, ready.status, "nothing has changed for who asks the API server");
    worker.connection = connect(&node).await;
    worker.says_hello(loaded).await;
    worker.hears(|message| matches!(message, FromAgent::Welcome { .. })).await;

    successor.release(UID, None);
    worker.hears(|message| matches!(message, FromAgent::End { .. })).await;
    in_state(&successor, ReplicaState::Draining).await;
    drop(worker);
    let gone = in_state(&successor, ReplicaState::Gone).await;
    assert_eq!((gone.runs, gone.status.pod_uid.as_str(), gone.status.address.as_str()), (false, "", ""));
    assert_eq!(std::fs::read_dir(node.path().join("run/pods")).unwrap().count(), 1, "the socket alone is left");
}

#[tokio::test]
async fn a_worker_of_no_assignment_of_the_node_is_told_nothing() {
    let node = Node::new("");
    let supervisor = supervise(&node);
    supervisor.start(&assignment());
    in_state(&supervisor, ReplicaState::Loading).await;
    assert!(join(&node, "another").await.is_none());
    assert!(join(&node, UID).await.is_some());
}

#[tokio::test]
async fn a_worker_in_a_pod_that_dies_is_awaited_again_after_a_pause() {
    let node = Node::new("");
    let (supervisor, worker) = serving(&node).await;
    drop(worker);
    let mut next = Worker::begin(&node).await;
    next.loads().await;
    assert_eq!(in_state(&supervisor, ReplicaState::Ready).await.status.restarts, 1);
}

#[tokio::test]
async fn a_worker_in_a_pod_that_ended_while_there_was_no_agent_is_not_adopted() {
    let node = Node::new("");
    let (supervisor, worker) = serving(&node).await;
    supervisor.detach().await;
    drop((supervisor, worker));
    let successor = supervise(&node);
    assert!(successor.adopted().is_empty() && successor.views().borrow().is_empty());
    assert_eq!(std::fs::read_dir(node.path().join("run/pods")).unwrap().count(), 1, "its lifeline is removed");
}

/// The agent can't end it: it says which Pod is to be ended.
#[tokio::test]
async fn a_worker_in_a_pod_that_falls_silent_is_given_up_by_its_pods_uid() {
    let node = Node::new("");
    let config = SupervisorConfig { heartbeat_timeout: Duration::from_millis(300), ..config(&node) };
    let supervisor = node.supervise_as(config, |_| std::future::ready(Ok(())));
    supervisor.start(&assignment());
    let mut worker = Worker::begin(&node).await;
    worker.loads().await;
    let given_up = in_state(&supervisor, ReplicaState::Failed).await;
    assert_eq!((given_up.status.reason, given_up.status.pod_uid.as_str()), (Some(Reason::WorkerCrashed), POD));
    assert!(given_up.runs, "what it holds is not given away");
    drop(worker);
    view(&supervisor, |view| view.status.reason == Some(Reason::WorkerStarting)).await;
}
