//! Asks replicas on nodes whose agents are silent whether they serve, beside the decision task, which never waits for anybody.
//!
//! A worker outlives its agent, so a silent agent does not say that its replicas are gone: one that answers goes on serving where it is, one that does not is
//! placed elsewhere. Replicas of agents that are heard are asked nothing, for those say it themselves.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use futures::future::BoxFuture;
use http::{Request, StatusCode};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use k8s_openapi::jiff::Timestamp;
use stowage_crds::model_deployment::ReplicaState;
use tokio::sync::{mpsc, watch};
use tokio::time::{sleep, timeout};

use crate::state::State;
use crate::wanted_tasks;
use crate::watch::Change;

/// Between two questions to one replica.
const EVERY: Duration = Duration::from_secs(2);
/// For one answer.
const PATIENCE: Duration = Duration::from_secs(2);
/// Questions in a row without an answer after which a replica counts as gone.
const TRIES: u32 = 2;

/// One replica that is to be asked.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Question {
    /// Of its assignment.
    pub uid: String,
    /// `HOST:PORT`.
    pub address: String,
}

pub type Questions = BTreeSet<Question>;

/// Asks one replica. A seam, so that tests need no worker.
pub trait AskReplica: Send + Sync + 'static {
    /// Whether what listens at this address says that it serves.
    fn serves<'a>(&'a self, address: &'a str) -> BoxFuture<'a, bool>;
}

/// Asks for `/readyz`.
pub struct OverHttp {
    client: Client<HttpConnector, String>,
    host: Option<String>,
}

impl OverHttp {
    /// `host`: where replicas are reached, if not at the addresses that they advertise.
    pub fn new(host: Option<String>) -> OverHttp {
        OverHttp { client: Client::builder(TokioExecutor::new()).pool_max_idle_per_host(0).build_http(), host }
    }

    fn url(&self, address: &str) -> String {
        let reached = self.host.as_ref().zip(address.rsplit_once(':')).map(|(host, (_, port))| format!("{host}:{port}"));
        format!("http://{}/readyz", reached.as_deref().unwrap_or(address))
    }
}

impl AskReplica for OverHttp {
    fn serves<'a>(&'a self, address: &'a str) -> BoxFuture<'a, bool> {
        Box::pin(async move {
            let Ok(request) = Request::get(self.url(address)).body(String::new()) else { return false };
            let answer = timeout(PATIENCE, self.client.request(request)).await;
            answer.is_ok_and(|answer| answer.is_ok_and(|answer| answer.status() == StatusCode::OK))
        })
    }
}

/// Replicas that served when their node's agent was last heard, of agents that are silent.
pub fn questions(state: &State, now: Timestamp) -> Questions {
    let silent = state.model_nodes.iter().filter(|(key, _)| !state.is_ready(&key.name, now));
    let replicas = silent.flat_map(|(_, node)| &node.status).flat_map(|status| &status.replicas);
    let served = replicas.filter(|replica| replica.state == ReplicaState::Ready && !replica.address.is_empty());
    served.map(|replica| Question { uid: replica.uid.clone(), address: replica.address.clone() }).collect()
}

/// Keeps asking what is to be asked, and tells each answer that is another than the one before.
pub async fn run(asker: Arc<dyn AskReplica>, questions: watch::Receiver<Questions>, changes: mpsc::Sender<Change>) {
    wanted_tasks::run(questions, |question| keep_asking(asker.clone(), question, changes.clone())).await;
}

async fn keep_asking(asker: Arc<dyn AskReplica>, Question { uid, address }: Question, changes: mpsc::Sender<Change>) {
    let mut told = true;
    let mut unanswered = 0;
    loop {
        unanswered = if asker.serves(&address).await { 0 } else { unanswered + 1 };
        let serves = unanswered < TRIES;
        if serves != told {
            tracing::info!(%uid, %address, serves, "a replica whose agent is silent was asked");
            if changes.send(Change::Answer { uid: uid.clone(), serves }).await.is_err() {
                return;
            }
            told = serves;
        }
        sleep(EVERY).await;
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use axum::Router;
    use axum::routing::get;
    use stowage_placement::Bytes;

    use super::*;
    use crate::testing::{gpu_node, lease, now, replica_status, state_with};

    #[test]
    fn only_replicas_that_served_on_nodes_whose_agents_are_silent_are_asked() {
        let served = |node: &str, uid: &str, state| {
            let mut node = gpu_node(node, Bytes::gib(8));
            let replica = replica_status(uid, state, None);
            let address = format!("192.0.2.1:{}", 1000 + uid.len());
            node.status.as_mut().unwrap().replicas = vec![stowage_crds::model_node::ReplicaStatus { address, ..replica }];
            node
        };
        let nodes =
            vec![served("n1", "a", ReplicaState::Ready), served("n2", "bb", ReplicaState::Ready), served("n3", "c", ReplicaState::Loading)];
        let mut state = state_with(nodes, vec![]);
        assert!(questions(&state, now()).is_empty());
        let later = crate::clock::after(now(), 50);
        state.hear(vec![lease("n1", -50), lease("n2", 0), lease("n3", 0)], later);
        assert_eq!(questions(&state, later), Questions::from([Question { uid: "bb".into(), address: "192.0.2.1:1002".into() }]));
    }

    /// Answers in turn, the last for ever.
    struct Scripted(Mutex<Vec<bool>>);

    impl AskReplica for Scripted {
        fn serves<'a>(&'a self, _: &'a str) -> BoxFuture<'a, bool> {
            let mut answers = self.0.lock().unwrap();
            let answer = if answers.len() > 1 { answers.remove(0) } else { answers[0] };
            Box::pin(async move { answer })
        }
    }

    #[tokio::test(start_paused = true)]
    async fn one_that_misses_a_question_still_serves_and_what_changes_is_told_once() {
        let asker = Scripted(Mutex::new(vec![true, false, true, false, false, false, true, true]));
        let (_ask, asked) = watch::channel(Questions::from([Question { uid: "a".into(), address: "192.0.2.1:1".into() }]));
        let (changes, mut told) = mpsc::channel(8);
        tokio::spawn(run(Arc::new(asker), asked, changes));
        for expected in [false, true] {
            let Some(Change::Answer { uid, serves }) = told.recv().await else { panic!("an answer") };
            assert_eq!((uid.as_str(), serves), ("a", expected));
        }
        assert!(timeout(Duration::from_secs(600), told.recv()).await.is_err(), "nothing changed since");
    }

    #[tokio::test]
    async fn a_server_is_asked_at_its_port_and_only_one_that_is_ready_serves() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let (ready, is_ready) = watch::channel(true);
        let answer = move || {
            let ready = *is_ready.borrow();
            async move { if ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE } }
        };
        let server = tokio::spawn(async move { axum::serve(listener, Router::new().route("/readyz", get(answer))).await });
        let (direct, elsewhere) = (OverHttp::new(None), OverHttp::new(Some("127.0.0.1".into())));
        assert!(direct.serves(&format!("127.0.0.1:{port}")).await);
        assert!(elsewhere.serves(&format!("192.0.2.1:{port}")).await);
        ready.send_replace(false);
        assert!(!direct.serves(&format!("127.0.0.1:{port}")).await);
        server.abort();
        assert!(server.await.is_err());
        assert!(!direct.serves(&format!("127.0.0.1:{port}")).await);
    }
}
