//! The HTTP API: Ollama's and OpenAI's, for one model at its worker and for all models of a node at the node's door.
//!
//! A request's fields are read one by one ([`fields`]), so that each is honoured or refused by name. What both APIs ask for comes together in
//! `worker`, `prompt` and `generation`; `ollama` and `openai` only translate. The door reads no more of a request than its model's name.
//!
//! Invariant: nothing here logs or keeps what a request or an answer says.

mod account;
mod api_keys;
mod called;
mod channels;
mod defaults;
mod door;
mod embedding;
mod engine_generator;
mod error;
mod fields;
#[cfg(any(test, feature = "fuzzed"))]
pub mod fuzzed;
mod generation;
mod generator;
mod metrics;
mod names;
mod ollama;
mod openai;
#[cfg(any(test, feature = "fuzzed"))]
mod parrot;
mod prompt;
mod server;
mod strict;
mod thinking;
mod thought_reader;
mod tool_calls;
mod tools;
mod worker;

#[cfg(test)]
pub(crate) mod tests;

use axum::Router;
use axum::extract::{DefaultBodyLimit, State};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use http::{Method, StatusCode, Uri};

pub use api_keys::{KeyHash, Keys, KeysError, follow as follow_keys, guarded, keys_in, read as read_keys};
pub use defaults::{RequestDefaults, RequestOptions};
pub use door::{DoorState, Route, door_router};
pub use generator::{Constrained, Embeddings, Generator};
pub use names::ModelNames;
pub use server::{Patience, serve};
pub use worker::{DEFAULT_BODY_LIMIT, LargestContexts, Phase, PlacementInfo, Settings, WorkerConfig, WorkerState};

use error::{Dialect, Fault, FaultKind};

/// The API of one worker.
pub fn worker_router(state: WorkerState) -> Router {
    let body_limit = state.config.body_limit;
    Router::new()
        .merge(ollama::routes())
        .merge(openai::routes())
        .route("/healthz", get(healthy))
        .route("/readyz", get(ready))
        .route("/metrics", get(|State(state): State<WorkerState>| async move { state.metrics.response() }))
        .fallback(unknown_path)
        .method_not_allowed_fallback(wrong_method)
        .layer(DefaultBodyLimit::max(body_limit))
        .with_state(state)
}

async fn healthy() -> &'static str {
    "ok\n"
}

async fn ready(State(state): State<WorkerState>) -> Response {
    match state.phase() {
        Phase::Ready => "ready\n".into_response(),
        Phase::Starting => (StatusCode::SERVICE_UNAVAILABLE, "starting\n").into_response(),
        Phase::Leaving | Phase::Draining => (StatusCode::SERVICE_UNAVAILABLE, "draining\n").into_response(),
    }
}

async fn unknown_path(method: Method, uri: Uri) -> Response {
    let message = format!("{method} {} is not part of this API", uri.path());
    Fault::new(FaultKind::UnknownPath, message).response(Dialect::of_path(uri.path()))
}

async fn wrong_method(method: Method, uri: Uri) -> Response {
    let message = format!("{} does not answer to {method}", uri.path());
    Fault::new(FaultKind::WrongMethod, message).response(Dialect::of_path(uri.path()))
}
