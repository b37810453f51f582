//! The API as it goes over the wire, with a generator that needs no model.

mod access_log;
mod api_keys;
mod channels;
mod door;
mod fuzz;
mod ollama;
mod openai;
mod server;
mod thinking;
mod tools;

use std::sync::Arc;

use axum::Router;
use axum::body::Body;
use http::{HeaderMap, Method, Request, StatusCode};
use serde_json::Value;
use stowage_placement::{Bytes, Tokens};
use tokio::sync::watch;
use tower::ServiceExt;

use super::parrot::{self, Parrot};
use super::*;

/// Characters, in the parrot's case.
const NUM_CTX: u64 = 400;

fn placement() -> PlacementInfo {
    PlacementInfo {
        processor: "62%/38% CPU/GPU".into(),
        size: Bytes(1000),
        size_vram: Bytes(380),
        gpu_layers: 12,
        total_layers: 31,
        file_size: Bytes(900),
        digest: "0123456789abcdef".into(),
        modified_at: jiff::Timestamp::UNIX_EPOCH,
        largest_contexts: Some(LargestContexts { on_gpu: 3072, anywhere: 8192 }),
    }
}

/// A worker for `namespace/name`, and the switch of its phase.
pub(crate) fn worker(namespace: &str, name: &str) -> (Router, watch::Sender<Phase>) {
    let names = ModelNames::new(namespace, name, vec!["polly:1b".into()]);
    let (router, phase, _) = worker_with(Settings { names, defaults: RequestDefaults::default() });
    (router, phase)
}

fn worker_with(settings: Settings) -> (Router, watch::Sender<Phase>, watch::Sender<Settings>) {
    worker_of(Parrot::new(NUM_CTX), settings)
}

fn worker_of(parrot: Parrot, settings: Settings) -> (Router, watch::Sender<Phase>, watch::Sender<Settings>) {
    let (phase, phases) = watch::channel(Phase::Ready);
    let (settings, settings_now) = watch::channel(settings);
    let config = WorkerConfig {
        generator: Arc::new(parrot),
        settings: settings_now,
        request: stowage_placement::Request { num_ctx: Tokens(NUM_CTX), num_gpu: 12, ..Default::default() },
        num_thread: 2,
        placement: placement(),
        phase: phases,
        body_limit: 4096,
    };
    (worker_router(WorkerState::new(config)), phase, settings)
}

fn parrot_with(template: &str) -> Router {
    let names = ModelNames::new("birds", "parrot", Vec::new());
    worker_of(Parrot::with_template(NUM_CTX, template), Settings { names, defaults: RequestDefaults::default() }).0
}

fn parrot() -> Router {
    worker("birds", "parrot").0
}

/// Status, headers and text of an answer.
struct Answer {
    status: StatusCode,
    headers: HeaderMap,
    text: String,
}

impl Answer {
    fn json(&self) -> Value {
        serde_json::from_str(&self.text).unwrap_or_else(|error| panic!("{error} in {}", self.text))
    }

    fn lines(&self) -> Vec<Value> {
        self.text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    /// The data of server-sent events, without the last `[DONE]`.
    fn events(&self) -> Vec<Value> {
        let mut data: Vec<&str> = self.text.lines().filter_map(|line| line.strip_prefix("data: ")).collect();
        assert_eq!(data.pop(), Some("[DONE]"), "{}", self.text);
        data.into_iter().map(|data| serde_json::from_str(data).unwrap()).collect()
    }
}

async fn send(router: &Router, method: Method, path: &str, body: impl Into<Body>) -> Answer {
    answered(router, Request::builder().method(method).uri(path).body(body.into()).unwrap()).await
}

async fn answered(router: &Router, request: Request<Body>) -> Answer {
    let response = router.clone().oneshot(request).await.unwrap();
    let (parts, body) = response.into_parts();
    let bytes = axum::body::to_bytes(body, usize::MAX).await.unwrap();
    Answer { status: parts.status, headers: parts.headers, text: String::from_utf8(bytes.to_vec()).unwrap() }
}

async fn post(router: &Router, path: &str, body: Value) -> Answer {
    send(router, Method::POST, path, body.to_string()).await
}

async fn fetch(router: &Router, path: &str) -> Answer {
    send(router, Method::GET, path, Body::empty()).await
}
