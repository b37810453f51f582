//! What must hold of any bytes that are sent to a worker. The fuzzers of requests, and the test that runs their corpus, call this.
//!
//! An input is a path on a line of its own, and after it the body. Whoever answers is the [`Parrot`].

use std::cell::OnceCell;
use std::sync::Arc;

use axum::Router;
use axum::body::Body;
use http::{Method, Request, StatusCode};
use rand::RngExt;
use rand::rngs::StdRng;
use serde_json::{Value, json};
use stowage_placement::{Bytes, Tokens};
use tokio::sync::watch;
use tower::ServiceExt;

use super::parrot::{CHANNELS, Parrot, THINKING};
use super::{ModelNames, Phase, PlacementInfo, RequestDefaults, Settings, WorkerConfig, WorkerState, worker_router};

/// Of the parrot's context, in tokens.
const NUM_CTX: u64 = 400;
/// Of a body, in bytes.
const LONGEST: usize = 4096;
/// Of an error's message, in bytes.
const LONGEST_MESSAGE: usize = 8192;
/// What the parrot takes as an order to misbehave, or never to end.
const ORDERS: [&str; 3] = ["busy", "fail", "forever"];

/// A worker that is ready, by itself.
pub struct Target {
    runtime: tokio::runtime::Runtime,
    /// One that thinks, and one that writes in channels.
    routers: [Router; 2],
    /// Where these are gone, so are what they tell.
    _told: (watch::Sender<Phase>, watch::Sender<Settings>),
}

/// Sends the bytes to a worker of this thread's own.
///
/// # Panics
/// As [`Target::request`].
pub fn request(input: &[u8]) {
    thread_local!(static TARGET: OnceCell<Target> = const { OnceCell::new() });
    TARGET.with(|target| drop(target.get_or_init(Target::new).request(input)));
}

impl Default for Target {
    fn default() -> Target {
        Target::new()
    }
}

impl Target {
    /// # Panics
    /// Where the system has no more threads or files.
    pub fn new() -> Target {
        let (phase, phases) = watch::channel(Phase::Ready);
        let names = ModelNames::new("birds", "parrot", vec!["polly:1b".into()]);
        let (settings, settings_now) = watch::channel(Settings { names, defaults: RequestDefaults::default() });
        let router = |template| worker_router(WorkerState::new(config(template, settings_now.clone(), phases.clone())));
        let runtime =
            tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime needs no more than any test does");
        Target { runtime, routers: [THINKING, CHANNELS].map(router), _told: (phase, settings) }
    }

    /// The status of the answer, and its text; `None` for an input that has no path, or that tells the parrot to misbehave.
    ///
    /// # Panics
    /// Where the answer is neither a success nor the client's fault, nor the refusal to unload a model; is none of its API; or something within panics.
    pub fn request(&self, input: &[u8]) -> Option<(StatusCode, String)> {
        let end = input.iter().position(|byte| *byte == b'\n')?;
        let (path, body) = (std::str::from_utf8(&input[..end]).ok()?, &input[end + 1..]);
        let text = String::from_utf8_lossy(body);
        if ORDERS.iter().any(|order| text.contains(order)) {
            return None;
        }
        let uri: http::Uri = path.parse().ok().filter(|_| path.starts_with('/'))?;
        let answers = self.routers.iter().map(|router| {
            let request = Request::builder().method(Method::POST).uri(uri.clone()).body(Body::from(body.to_vec()));
            let (status, said) = self.runtime.block_on(answer(router, request.ok()?));
            check(path, &text, status, &said);
            Some((status, said))
        });
        answers.last()?
    }
}

fn config(template: &str, settings: watch::Receiver<Settings>, phase: watch::Receiver<Phase>) -> WorkerConfig {
    let placement = PlacementInfo {
        processor: "100% CPU".into(),
        size: Bytes(1000),
        size_vram: Bytes(0),
        gpu_layers: 0,
        total_layers: 31,
        file_size: Bytes(900),
        digest: "0123456789abcdef".into(),
        modified_at: jiff::Timestamp::UNIX_EPOCH,
        largest_contexts: None,
    };
    WorkerConfig {
        generator: Arc::new(Parrot::with_template(NUM_CTX, template)),
        settings,
        request: stowage_placement::Request { num_ctx: Tokens(NUM_CTX), ..Default::default() },
        num_thread: 2,
        placement,
        phase,
        body_limit: LONGEST,
    }
}

async fn answer(router: &Router, request: Request<Body>) -> (StatusCode, String) {
    let Ok(response) = router.clone().oneshot(request).await;
    let status = response.status();
    let bytes = axum::body::to_bytes(response.into_body(), usize::MAX).await.expect("an answer that was begun is ended");
    (status, String::from_utf8(bytes.to_vec()).expect("answers are UTF-8"))
}

fn check(path: &str, body: &str, status: StatusCode, said: &str) {
    let what = || format!("{path} {status} {said}\n{body}");
    let refuses_to_unload = status == StatusCode::NOT_IMPLEMENTED && said.contains("models are not unloaded through this API");
    assert!(status == StatusCode::OK || status.is_client_error() || refuses_to_unload, "{}", what());
    if status == StatusCode::OK {
        return assert!(objects(said).all(|object| object.is_some()), "an answer that is no JSON: {}", what());
    }
    let error = objects(said).next().flatten().unwrap_or_else(|| panic!("an error that is no JSON: {}", what()));
    let message = error["error"].as_str().or(error["error"]["message"].as_str());
    let message = message.unwrap_or_else(|| panic!("an error without a message: {}", what()));
    assert!(!message.is_empty() && message.len() < LONGEST_MESSAGE, "{}", what());
}

/// The JSON objects of an answer, be it one, one a line, or an event each; `None` for what is none.
fn objects(said: &str) -> impl Iterator<Item = Option<Value>> {
    let lines = said.lines().map(|line| line.strip_prefix("data: ").unwrap_or(line)).filter(|line| !line.is_empty() && *line != "[DONE]");
    lines.map(|line| serde_json::from_str(line).ok().filter(Value::is_object))
}

/// An input that is another with a few values put in the place of others, or beside them; or, of four, one with a few bytes changed as well.
pub fn changed(rng: &mut StdRng, input: &[u8]) -> Vec<u8> {
    let end = input.iter().position(|byte| *byte == b'\n').map_or(0, |end| end + 1);
    let (path, body) = input.split_at(end);
    let mut body = match serde_json::from_slice::<Value>(body) {
        Ok(mut value) => {
            (0..rng.random_range(1..3)).for_each(|_| disturb(rng, &mut value));
            value.to_string().into_bytes()
        }
        Err(_) => body.to_vec(),
    };
    if rng.random_range(0..4) == 0 {
        damage(rng, &mut body);
    }
    [path, &body].concat()
}

fn odd(rng: &mut StdRng) -> Value {
    let deep = (0..rng.random_range(1..200)).fold(json!(1), |inner, _| json!([inner]));
    let odd = [
        Value::Null,
        json!(true),
        json!(-1),
        json!(0),
        json!(1.5),
        json!(1e308),
        json!(i64::MIN),
        json!(u64::MAX),
        json!(""),
        json!("\u{0}\u{202e}e\u{301}\u{1F469}\u{200D}"),
        json!("x".repeat(1000)),
        json!([]),
        json!({}),
        json!([null, {}, [[]]]),
        json!({"": "", "$ref": "#", "type": "function"}),
        deep,
    ];
    odd[rng.random_range(0..odd.len())].clone()
}

/// Puts something odd in the place of one value, however deep, or beside it.
fn disturb(rng: &mut StdRng, value: &mut Value) {
    let deeper = rng.random_range(0..3) > 0;
    match value {
        Value::Object(map) if deeper && !map.is_empty() => {
            let at = rng.random_range(0..map.len());
            if let Some((_, inner)) = map.iter_mut().nth(at) {
                disturb(rng, inner);
            }
        }
        Value::Array(items) if deeper && !items.is_empty() => {
            let at = rng.random_range(0..items.len());
            disturb(rng, &mut items[at]);
        }
        Value::Object(map) if rng.random() => drop(map.insert(format!("odd{}", rng.random_range(0..9)), odd(rng))),
        value => *value = odd(rng),
    }
}

/// Changes bytes, so that it may be no JSON any more.
fn damage(rng: &mut StdRng, text: &mut Vec<u8>) {
    for _ in 0..rng.random_range(1..4) {
        if text.is_empty() {
            return;
        }
        let at = rng.random_range(0..text.len());
        match rng.random_range(0..3) {
            0 => text[at] = rng.random(),
            1 => text.truncate(at.max(1)),
            _ => text.insert(at, b"{}[]\",:\\"[rng.random_range(0..8)]),
        }
    }
}
