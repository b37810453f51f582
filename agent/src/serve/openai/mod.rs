//! OpenAI's API.

mod chat;
mod completions;
mod embeddings;
mod logprobs;
mod messages;
mod models;
mod options;
mod reply;
mod response_format;
mod thinking;
mod tools;

use axum::Router;
use axum::response::Response;
use axum::routing::{get, post};

use super::account::Account;
use super::error::{Dialect, Fault};
use super::worker::WorkerState;

pub use models::model_object;

pub fn routes() -> Router<WorkerState> {
    Router::new()
        .route("/v1/chat/completions", post(chat::chat))
        .route("/v1/completions", post(completions::completions))
        .route("/v1/embeddings", post(embeddings::embeddings))
        .route("/v1/models", get(models::list))
        .route("/v1/models/{*name}", get(models::retrieve))
}

/// The answer, or the fault in OpenAI's shape; the account learns of the fault.
fn answer(account: &Account, result: Result<Response, Fault>) -> Response {
    result.unwrap_or_else(|fault| {
        account.failed(&fault);
        fault.response(Dialect::OpenAi)
    })
}

/// Seconds since 1970.
fn now() -> i64 {
    jiff::Timestamp::now().as_second()
}
