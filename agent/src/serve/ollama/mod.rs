//! Ollama's API.

mod chat;
mod describe;
mod embed;
mod format;
mod generate;
pub mod manage;
mod options;
mod reply;

use axum::Router;
use axum::response::Response;
use axum::routing::{get, post};
use serde_json::Value;
use stowage_engine::{Constraint, Occasion};

use super::account::Account;
use super::defaults::RequestOptions;
use super::error::{Dialect, Fault};
use super::fields::{Fields, is_empty};
use super::thinking::{self, Think};
use super::worker::{Worker, WorkerState};

/// What `GET /` says; clients only look whether somebody is there.
pub const GREETING: &str = "Stowage is running";

pub fn routes() -> Router<WorkerState> {
    Router::new()
        .route("/", get(|| async { GREETING }))
        .route("/api/version", get(version))
        .route("/api/generate", post(generate::generate))
        .route("/api/chat", post(chat::chat))
        .route("/api/embed", post(embed::embed))
        .route("/api/embeddings", post(embed::embeddings))
        .route("/api/tags", get(describe::tags))
        .route("/api/ps", get(describe::ps))
        .route("/api/show", post(describe::show))
        .merge(manage::routes())
}

/// The release of Ollama whose API this is: the last before it took in OpenAI's responses (0.13.3), and the first with log probabilities. Clients ask for
/// it before they use what an older one did not have.
const OLLAMA_VERSION: &str = "0.12.11";

/// Stowage's own version stands beside Ollama's.
pub async fn version() -> axum::Json<Value> {
    axum::Json(serde_json::json!({"version": OLLAMA_VERSION, "stowage": env!("CARGO_PKG_VERSION")}))
}

/// The answer, or the fault in Ollama's shape; the account learns of the fault.
fn answer(account: &Account, result: Result<Response, Fault>) -> Response {
    result.unwrap_or_else(|fault| {
        account.failed(&fault);
        fault.response(Dialect::Ollama)
    })
}

/// What `/api/generate` and `/api/chat` have in common.
struct Asked {
    model: String,
    stream: bool,
    options: RequestOptions,
    /// What the answer is held to.
    constraint: Option<Constraint>,
    /// What it may come to.
    occasions: Vec<Occasion>,
    /// Tokens that prompt and answer may take together.
    context: u64,
    truncate: bool,
    /// The model is to be unloaded after the answer, which is only refused where nothing else is asked for.
    unload: bool,
    think: Think,
    /// Alternatives a token; `None`: no log probabilities.
    top_logprobs: Option<u32>,
}

/// Reads the common fields. What the engine can't do is refused by name.
fn asked(fields: &mut Fields, worker: &Worker, account: &Account) -> Result<Asked, Fault> {
    let model = fields.model()?;
    worker.admit(&model, account)?;
    let stream = fields.boolean("stream")?.unwrap_or(true);
    if stream {
        account.streams();
    }
    let (options, context) = options::read(fields.object("options")?, worker)?;
    let truncate = fields.boolean("truncate")?.unwrap_or(true);
    let unload = options::keep_alive(fields)?;
    let constraint = format::read(fields)?;
    let think = think(fields, worker)?;
    fields.only("shift", is_empty, "is not honoured: an answer ends where the context is full, with done_reason `length`")?;
    let wanted = fields.boolean("logprobs")?.unwrap_or(false);
    let alternatives = fields.unsigned("top_logprobs", 0..=20)?;
    if alternatives.is_some_and(|count| count > 0) && !wanted {
        return Err(fields.refuse("top_logprobs", "needs `logprobs` to be true"));
    }
    let top_logprobs = wanted.then(|| alternatives.unwrap_or(0));
    Ok(Asked { model, stream, options, constraint, occasions: Vec::new(), context, truncate, unload, think, top_logprobs })
}

/// A switch, or how much.
fn think(fields: &mut Fields, worker: &Worker) -> Result<Think, Fault> {
    const FIELD: &str = "think";
    let think = match fields.take(FIELD) {
        None => Think::Unsaid,
        Some(Value::Bool(true)) => Think::On,
        Some(Value::Bool(false)) => Think::Off,
        Some(Value::String(level)) if ["low", "medium", "high"].contains(&level.as_str()) => Think::Level(level),
        Some(_) => return Err(fields.refuse(FIELD, "must be true, false, low, medium or high")),
    };
    thinking::checked(think, worker.thinks(), FIELD, fields)
}
