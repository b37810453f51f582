//! `POST /v1/embeddings`

use axum::Json;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http::HeaderMap;
use serde_json::{Value, json};

use super::answer;
use super::completions::inputs;
use crate::serve::account::Account;
use crate::serve::embedding::{self, EmbedOptions};
use crate::serve::error::Fault;
use crate::serve::fields::{Body, Fields};
use crate::serve::worker::WorkerState;

pub async fn embeddings(State(worker): State<WorkerState>, headers: HeaderMap, body: Body) -> Response {
    let account = worker.account("openai.embeddings", &headers);
    let result = embedded(&worker, &account, body).await;
    answer(&account, result)
}

async fn embedded(worker: &WorkerState, account: &Account, body: Body) -> Result<Response, Fault> {
    let mut fields = Fields::parse(body)?;
    let model = fields.model()?;
    worker.admit(&model, account)?;
    let inputs = inputs(&mut fields, "input", "text to embed")?;
    let dimensions = fields.unsigned("dimensions", 1..=u32::MAX)?;
    let base64 = match fields.string("encoding_format")?.as_deref() {
        None | Some("float") => false,
        Some("base64") => true,
        Some(_) => return Err(fields.refuse("encoding_format", "must be float or base64")),
    };
    fields.string("user")?;
    fields.finish()?;
    let embedded = embedding::embed(worker, account, inputs, EmbedOptions { truncate: false, dimensions }).await?;
    let encode = |vector: &Vec<f32>| if base64 { Value::String(in_base64(vector)) } else { json!(vector) };
    let object = |(index, vector)| json!({"object": "embedding", "index": index, "embedding": encode(vector)});
    let data: Vec<Value> = embedded.vectors.iter().enumerate().map(object).collect();
    account.finished();
    let usage = json!({"prompt_tokens": embedded.tokens, "total_tokens": embedded.tokens});
    Ok(Json(json!({"object": "list", "data": data, "model": model, "usage": usage})).into_response())
}

/// Little-endian 32-bit floats, which is what OpenAI's own client asks for unless told otherwise.
fn in_base64(vector: &[f32]) -> String {
    let bytes: Vec<u8> = vector.iter().flat_map(|value| value.to_le_bytes()).collect();
    STANDARD.encode(bytes)
}
