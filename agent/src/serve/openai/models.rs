//! `GET /v1/models` and `GET /v1/models/{name}`

use axum::Json;
use axum::extract::{Path, State};
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};

use crate::serve::error::Dialect;
use crate::serve::worker::WorkerState;

/// A model as OpenAI describes it; its owner is the namespace.
pub fn model_object(name: &str, namespace: &str, created: i64) -> Value {
    json!({"id": name, "object": "model", "created": created, "owned_by": namespace})
}

pub async fn list(State(worker): State<WorkerState>) -> Json<Value> {
    let names = &worker.names();
    let created = worker.config.placement.modified_at.as_second();
    let data: Vec<Value> = names.short().into_iter().map(|name| model_object(name, &names.namespace, created)).collect();
    Json(json!({"object": "list", "data": data}))
}

pub async fn retrieve(State(worker): State<WorkerState>, Path(name): Path<String>) -> Response {
    match worker.known(&name) {
        Ok(()) => {
            let created = worker.config.placement.modified_at.as_second();
            Json(model_object(&name, &worker.names().namespace, created)).into_response()
        }
        Err(fault) => fault.response(Dialect::OpenAi),
    }
}
