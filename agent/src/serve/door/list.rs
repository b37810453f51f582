//! What is on the node, put together from what its workers say.

use std::time::Duration;

use axum::Json;
use axum::extract::State;
use futures::future::join_all;
use http::{HeaderMap, header};
use serde_json::{Value, json};

use super::DoorState;
use super::proxy;
use super::routes::{Route, listed};
use crate::serve::names::{with_tag, without_latest};
use crate::serve::openai::model_object;

/// A worker that takes longer to say what it is gets left out of a list rather than hold it up.
const PATIENCE: Duration = Duration::from_secs(2);

/// Most bytes of a worker's list that are read.
const MOST_BYTES: usize = 1 << 20;

/// What each ready worker lists at `path`, with the key of who asks; replicas that don't answer are left out.
async fn ask(state: &DoorState, asks: &HeaderMap, routes: Vec<Route>, path: &'static str) -> Vec<(Route, Vec<Value>)> {
    let asked = routes.into_iter().filter(|route| route.ready).map(|route| async move {
        let models = tokio::time::timeout(PATIENCE, models_at(state, asks, &route, path)).await.ok().flatten();
        if models.is_none() {
            tracing::warn!(model = route.names.full(), worker = %route.worker, path, "a worker did not say what it serves");
        }
        models.map(|models| (route, models))
    });
    join_all(asked).await.into_iter().flatten().collect()
}

async fn models_at(state: &DoorState, asks: &HeaderMap, route: &Route, path: &'static str) -> Option<Vec<Value>> {
    let request = proxy::Forward {
        method: http::Method::GET,
        uri: http::Uri::from_static(path),
        headers: asks.get(header::AUTHORIZATION).map(|key| (header::AUTHORIZATION, key.clone())).into_iter().collect(),
        body: bytes::Bytes::new(),
    };
    let response = proxy::send(state, &request, route.worker).await.ok()?;
    let bytes = axum::body::to_bytes(response.into_body(), MOST_BYTES).await.ok()?;
    let mut answer: Value = serde_json::from_slice(&bytes).ok()?;
    match answer.get_mut("models").map(Value::take) {
        Some(Value::Array(models)) => Some(models),
        _ => None,
    }
}

fn renamed(mut entry: Value, name: &str) -> Value {
    entry["name"] = json!(with_tag(name));
    entry["model"] = json!(with_tag(name));
    entry
}

/// One entry a name, whatever the number of replicas.
pub async fn tags(State(state): State<DoorState>, asks: HeaderMap) -> Json<Value> {
    let routes = state.routes();
    let mut one_each: Vec<Route> = Vec::new();
    for route in routes.iter().filter(|route| route.ready) {
        if !one_each.iter().any(|known| known.names.full() == route.names.full()) {
            one_each.push(route.clone());
        }
    }
    let shown = listed(&routes);
    let mut entries = Vec::new();
    for (route, models) in ask(&state, &asks, one_each, "/api/tags").await {
        let names = shown.iter().filter(|listed| listed.names.full() == route.names.full()).flat_map(|listed| &listed.shown);
        if let Some(model) = models.first() {
            entries.extend(names.map(|name| renamed(model.clone(), name)));
        }
    }
    Json(json!({"models": entries}))
}

/// One entry a replica.
pub async fn ps(State(state): State<DoorState>, asks: HeaderMap) -> Json<Value> {
    let routes = state.routes();
    let shown = listed(&routes);
    let mut entries = Vec::new();
    for (route, models) in ask(&state, &asks, routes, "/api/ps").await {
        let name = shown.iter().find(|listed| listed.names.full() == route.names.full()).map(|listed| listed.first());
        let name = name.unwrap_or_else(|| route.names.full());
        entries.extend(models.into_iter().map(|model| renamed(model, &name)));
    }
    Json(json!({"models": entries}))
}

/// From the routes alone: OpenAI's list says no more than names.
pub async fn models(State(state): State<DoorState>) -> Json<Value> {
    let routes = state.routes();
    let created = jiff::Timestamp::now().as_second();
    let ready = |name: &str| routes.iter().any(|route| route.ready && route.names.full() == name);
    let data: Vec<Value> = listed(&routes)
        .iter()
        .filter(|listed| ready(&listed.names.full()))
        .flat_map(|listed| listed.shown.iter().map(|name| model_object(without_latest(name), &listed.names.namespace, created)))
        .collect();
    Json(json!({"object": "list", "data": data}))
}
