//! `POST /api/embed`, and `POST /api/embeddings`, which it replaced.

use axum::Json;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use http::HeaderMap;
use serde_json::json;

use super::{answer, options};
use crate::serve::account::Account;
use crate::serve::embedding::{self, EmbedOptions, Input};
use crate::serve::error::Fault;
use crate::serve::fields::{Body, Fields};
use crate::serve::worker::WorkerState;

pub async fn embed(State(worker): State<WorkerState>, headers: HeaderMap, body: Body) -> Response {
    let account = worker.account("ollama.embed", &headers);
    let result = embedded(&worker, &account, body).await;
    answer(&account, result)
}

pub async fn embeddings(State(worker): State<WorkerState>, headers: HeaderMap, body: Body) -> Response {
    let account = worker.account("ollama.embeddings", &headers);
    let result = embedded_one(&worker, &account, body).await;
    answer(&account, result)
}

async fn embedded(worker: &WorkerState, account: &Account, body: Body) -> Result<Response, Fault> {
    let mut fields = Fields::parse(body)?;
    let model = fields.model()?;
    worker.admit(&model, account)?;
    let inputs = fields.strings("input")?.ok_or_else(|| fields.refuse("input", "is required: a string or an array of strings"))?;
    let truncate = fields.boolean("truncate")?.unwrap_or(true);
    let dimensions = fields.unsigned("dimensions", 1..=u32::MAX)?;
    options::keep_alive(&mut fields)?;
    options::read(fields.object("options")?, worker)?;
    fields.finish()?;
    let inputs = inputs.into_iter().map(Input::Text).collect();
    let embedded = embedding::embed(worker, account, inputs, EmbedOptions { truncate, dimensions }).await?;
    account.finished();
    let answer = json!({
        "model": model,
        "embeddings": embedded.vectors,
        "total_duration": u64::try_from(account.elapsed().as_nanos()).unwrap_or(u64::MAX),
        "load_duration": 0,
        "prompt_eval_count": embedded.tokens,
    });
    Ok(Json(answer).into_response())
}

async fn embedded_one(worker: &WorkerState, account: &Account, body: Body) -> Result<Response, Fault> {
    let mut fields = Fields::parse(body)?;
    let model = fields.model()?;
    worker.admit(&model, account)?;
    let prompt = fields.string("prompt")?.unwrap_or_default();
    options::keep_alive(&mut fields)?;
    options::read(fields.object("options")?, worker)?;
    fields.finish()?;
    let inputs = if prompt.is_empty() { Vec::new() } else { vec![Input::Text(prompt)] };
    let embedded = embedding::embed(worker, account, inputs, EmbedOptions { truncate: true, dimensions: None }).await?;
    account.finished();
    Ok(Json(json!({"embedding": embedded.vectors.into_iter().next().unwrap_or_default()})).into_response())
}
