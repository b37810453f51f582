//! A real worker: the agent's own binary with a real model, which is fetched by `make test`. Without the model there is nothing to show.
#![allow(clippy::unwrap_used)]

use std::fs::File;
use std::io::Read;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use serde_json::{Value, json};
use stowage_agent::serve::KeyHash;
use stowage_agent::store::{Store, StoreConfig};
use stowage_agent::worker::process::{Process, ProcessId};
use stowage_agent::worker::{Confine, Supervisor, SupervisorConfig, WorkerLog, WorkerView};
use stowage_crds::model_deployment::{ModelSource, ReplicaState};
use stowage_crds::model_node::{AssignedSource, Assignment};
use stowage_crds::testing;
use stowage_placement::gguf::{Feed, HeaderReader, Keep};
use stowage_placement::{Asked, Bytes, ModelSummary, NodeDevices, PlacementPolicy, Tokens, decide};
use stowage_sources::AddressPolicy;
use tempfile::TempDir;
use tokio::sync::watch;

const UID: &str = "uid-1";
const MODEL: &str = "smollm2-135m-instruct-q4_1.gguf";
/// Loading takes a second; the machine may be busy.
const PATIENCE: Duration = Duration::from_secs(120);

/// Where the model lies: in `STOWAGE_TEST_MODELS`, where it must be, else in the cache, where it may be.
fn models() -> Option<PathBuf> {
    if let Some(folder) = std::env::var_os("STOWAGE_TEST_MODELS") {
        return Some(folder.into());
    }
    let home = || std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".cache"));
    let cache = std::env::var_os("XDG_CACHE_HOME").map(PathBuf::from).or_else(home)?;
    Some(cache.join("stowage/models")).filter(|folder| folder.join(MODEL).exists())
}

fn summary(path: PathBuf) -> ModelSummary {
    let mut file = File::open(path).unwrap();
    let size = Bytes(file.metadata().unwrap().len());
    let (mut reader, mut chunk) = (HeaderReader::new(Keep::Sizing), vec![0; 1 << 20]);
    loop {
        let read = file.read(&mut chunk).unwrap();
        if reader.feed(&chunk[..read]).unwrap() == Feed::Complete {
            return ModelSummary::from_header(&reader.into_header().unwrap(), size).unwrap();
        }
    }
}

fn assignment(models: PathBuf) -> Assignment {
    let asked = Asked { num_ctx: Some(Tokens(1024)), policy: PlacementPolicy::RequireCPU, ..Asked::default() };
    let report = decide(&summary(models.join(MODEL)), &asked, &NodeDevices::new(Vec::new(), Bytes::gib(4))).unwrap().report;
    let source = AssignedSource { model: ModelSource { path: Some(MODEL.into()), ..ModelSource::default() }, ..AssignedSource::default() };
    Assignment {
        source,
        request: report.request,
        plan: report.plan,
        max_num_ctx_on_gpu: Some(report.fit.max_num_ctx_on_gpu),
        max_num_ctx: Some(report.fit.max_num_ctx),
        ..testing::assignment(UID)
    }
}

fn supervise(directory: &TempDir, models: PathBuf) -> Supervisor {
    supervise_with(config(directory), directory, models)
}

fn config(directory: &TempDir) -> SupervisorConfig {
    SupervisorConfig {
        // Whatever works here works for workers that are confined, as far as this kernel can.
        confine: Confine::BestEffort,
        worker_log: WorkerLog::Directory(directory.path().join("logs")),
        ..SupervisorConfig::new(directory.path().join("run"), env!("CARGO_BIN_EXE_stowage-agent"), [127, 0, 0, 1].into())
    }
}

fn supervise_with(config: SupervisorConfig, directory: &TempDir, models: PathBuf) -> Supervisor {
    let store = Store::new(StoreConfig::new(Some(models), directory.path().join("cache"), AddressPolicy::public()));
    Supervisor::new(config, |_| std::future::ready(Ok(())), Arc::new(store)).unwrap()
}

async fn in_state(supervisor: &Supervisor, state: ReplicaState) -> WorkerView {
    viewed(supervisor, &format!("{state:?}"), |view| view.status.state == state).await
}

/// The worker, as soon as it is as `wanted`.
async fn viewed(supervisor: &Supervisor, what: &str, wanted: impl Fn(&WorkerView) -> bool) -> WorkerView {
    let mut views = supervisor.views();
    let found = views.wait_for(|views| views.get(UID).is_some_and(&wanted));
    let found = tokio::time::timeout(PATIENCE, found).await.map(|views| views.unwrap()[UID].clone());
    found.unwrap_or_else(|_| panic!("not {what}: {:#?}", supervisor.views().borrow().get(UID).map(|view| view.status.clone())))
}

/// Leaves no worker behind where a test fails.
struct Killed(Supervisor);

impl Drop for Killed {
    fn drop(&mut self) {
        for pid in self.0.views().borrow().values().filter_map(|view| view.pid) {
            if let Ok(Some(process)) = ProcessId::of(pid).and_then(Process::find) {
                process.signal(rustix::process::Signal::KILL).unwrap();
            }
        }
    }
}

/// Asks again until it is so: the worker is told, and does not say when it has heard.
async fn soon(is_so: impl AsyncFn() -> bool) {
    let asking = async {
        while !is_so().await {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(PATIENCE, asking).await.unwrap();
}

struct Client {
    http: reqwest::Client,
    url: String,
}

impl Client {
    fn of(view: &WorkerView) -> Client {
        let _ = rustls::crypto::ring::default_provider().install_default();
        Client { http: reqwest::Client::builder().no_proxy().build().unwrap(), url: format!("http://{}", view.http_address.unwrap()) }
    }

    async fn generate(&self, model: &str, tokens: u32) -> reqwest::Response {
        let request =
            json!({"model": model, "prompt": "Once upon a time", "options": {"num_predict": tokens, "seed": 1, "temperature": 0}});
        self.http.post(format!("{}/api/generate", self.url)).body(request.to_string()).send().await.unwrap()
    }

    async fn is_ready(&self) -> bool {
        self.http.get(format!("{}/readyz", self.url)).send().await.unwrap().status().is_success()
    }

    async fn knows(&self, model: &str) -> bool {
        let request = json!({"model": model}).to_string();
        self.http.post(format!("{}/api/show", self.url)).body(request).send().await.unwrap().status().is_success()
    }
}

/// The last line of a streamed answer, whose beginning was read already.
async fn last_line(mut response: reqwest::Response) -> Value {
    let mut text = Vec::new();
    while let Some(chunk) = response.chunk().await.unwrap() {
        text.extend_from_slice(&chunk);
    }
    serde_json::from_str(std::str::from_utf8(&text).unwrap().trim_end().lines().next_back().unwrap()).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_serves_on_while_agents_come_and_go_and_finishes_its_answers_before_it_ends() {
    let Some(models) = models() else { return };
    let directory = tempfile::tempdir().unwrap();
    let assignment = assignment(models.clone());
    let earlier = supervise(&directory, models.clone());
    let _killed = Killed(earlier.clone());
    earlier.start(&assignment);
    in_state(&earlier, ReplicaState::Ready).await;
    let ready = viewed(&earlier, "measured", |view| view.status.speed.is_some()).await;
    let planned: Vec<Bytes> = assignment.plan.devices.iter().map(|device| device.total_bytes).collect();
    let measured: Vec<Bytes> = ready.held.iter().map(|device| device.total()).collect();
    assert_eq!(measured, planned);
    let speed = ready.status.speed.clone().unwrap();
    assert!(speed.prefill_tokens_per_second > 0.0 && speed.decode_tokens_per_second > Some(0.0) && speed.threads > 0, "{speed:?}");
    let client = Client::of(&ready);
    assert!(client.is_ready().await);

    // The agent goes and another comes while an answer streams.
    let mut answer = client.generate("smol", 300).await;
    assert!(answer.chunk().await.unwrap().is_some());
    earlier.detach().await;
    let later = supervise(&directory, models);
    let _killed = Killed(later.clone());
    assert_eq!(later.views().borrow().get(UID), Some(&ready));
    assert_eq!(last_line(answer).await["done"], true);

    // What the new agent says of names reaches the worker, and nothing is loaded anew.
    later.start(&Assignment { aliases: vec!["another".into()], ..assignment });
    soon(async || client.knows("another").await).await;
    assert_eq!(in_state(&later, ReplicaState::Ready).await.pid, ready.pid);

    let mut answer = client.generate("another", 300).await;
    assert!(answer.chunk().await.unwrap().is_some());
    later.drain(UID, None);
    in_state(&later, ReplicaState::Draining).await;
    soon(async || !client.is_ready().await).await;
    assert_eq!(client.generate("smol", 1).await.status(), http::StatusCode::SERVICE_UNAVAILABLE);
    later.release(UID, Some(Timestamp::now() + SignedDuration::from_secs(120)));
    assert_eq!(last_line(answer).await["done"], true);
    in_state(&later, ReplicaState::Gone).await;
    assert!(ProcessId::of(ready.pid.unwrap()).is_err());
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_that_does_not_end_is_cut_off_at_the_deadline() {
    let Some(models) = models() else { return };
    let directory = tempfile::tempdir().unwrap();
    let supervisor = supervise(&directory, models.clone());
    let _killed = Killed(supervisor.clone());
    supervisor.start(&assignment(models));
    let ready = in_state(&supervisor, ReplicaState::Ready).await;
    let mut answer = Client::of(&ready).generate("smol", 1000).await;
    assert!(answer.chunk().await.unwrap().is_some());
    supervisor.release(UID, Some(Timestamp::now()));
    in_state(&supervisor, ReplicaState::Gone).await;
    assert!(ProcessId::of(ready.pid.unwrap()).is_err());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_asks_for_the_keys_that_its_agent_names_and_hears_of_others() {
    let Some(models) = models() else { return };
    let directory = tempfile::tempdir().unwrap();
    let hashes = |key: &str| Some(vec![KeyHash::of(key)]);
    let (keys, api_keys) = watch::channel(hashes("first"));
    let supervisor = supervise_with(SupervisorConfig { api_keys, ..config(&directory) }, &directory, models.clone());
    let _killed = Killed(supervisor.clone());
    supervisor.start(&assignment(models));
    let client = Client::of(&in_state(&supervisor, ReplicaState::Ready).await);
    let tags = async |key: &str| client.http.get(format!("{}/api/tags", client.url)).bearer_auth(key).send().await.unwrap().status();
    assert_eq!(client.generate("smol", 1).await.status(), http::StatusCode::UNAUTHORIZED);
    assert_eq!(tags("first").await, http::StatusCode::OK);
    assert!(client.is_ready().await);
    keys.send_replace(hashes("second"));
    soon(async || tags("first").await == http::StatusCode::UNAUTHORIZED).await;
    assert_eq!(tags("second").await, http::StatusCode::OK);
    supervisor.release(UID, Some(Timestamp::now()));
    in_state(&supervisor, ReplicaState::Gone).await;
}
