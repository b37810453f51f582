//! The node's door: one address for all models on the node, each request handed to a worker that serves the model it names.

mod list;
mod proxy;
mod routes;
mod worker_metrics;

use std::sync::Arc;

use axum::Router;
use axum::body::Body as AxumBody;
use axum::extract::{DefaultBodyLimit, Path, State};
use axum::response::Response;
use axum::routing::{get, post};
use http::{HeaderMap, Method, Uri};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use prometheus_client::collector::Collector;
use tokio::sync::watch;

use super::account::Account;
use super::error::{Dialect, Fault, FaultKind};
use super::fields::{self, Body};
use super::metrics::Metrics;
use super::{ollama, unknown_path, wrong_method};
use proxy::Forward;
use routes::Turns;

pub use routes::Route;

/// Shared by all requests at the door.
#[derive(Clone)]
pub struct DoorState(Arc<Door>);

struct Door {
    routes: watch::Receiver<Vec<Route>>,
    client: Client<HttpConnector, AxumBody>,
    metrics: Arc<Metrics>,
    turns: Turns,
    body_limit: usize,
}

impl DoorState {
    /// `routes`: the node's workers, as they come and go. `body_limit`: see [`super::DEFAULT_BODY_LIMIT`].
    pub fn new(routes: watch::Receiver<Vec<Route>>, body_limit: usize) -> DoorState {
        DoorState::with(routes, body_limit, Metrics::new("stowage_door", None))
    }

    /// With the node's own figures among its metrics.
    pub fn with_figures(routes: watch::Receiver<Vec<Route>>, body_limit: usize, figures: impl Collector) -> DoorState {
        DoorState::with(routes, body_limit, Metrics::new("stowage_door", None).beside(figures))
    }

    fn with(routes: watch::Receiver<Vec<Route>>, body_limit: usize, metrics: Metrics) -> DoorState {
        let mut connector = HttpConnector::new();
        connector.set_nodelay(true);
        connector.set_connect_timeout(Some(proxy::CONNECT_TIMEOUT));
        let client = Client::builder(TokioExecutor::new()).build(connector);
        DoorState(Arc::new(Door { routes, client, metrics: Arc::new(metrics), turns: Turns::default(), body_limit }))
    }

    fn routes(&self) -> Vec<Route> {
        self.0.routes.borrow().clone()
    }
}

/// The API of the node's door.
pub fn door_router(state: DoorState) -> Router {
    let body_limit = state.0.body_limit;
    let mut router = Router::new()
        .route("/", get(|| async { ollama::GREETING }))
        .route("/api/version", get(ollama::version))
        .route("/api/tags", get(list::tags))
        .route("/api/ps", get(list::ps))
        .route("/v1/models", get(list::models))
        .route("/v1/models/{*name}", get(model))
        .merge(ollama::manage::routes())
        .route("/healthz", get(super::healthy))
        // A door without models is still open.
        .route("/readyz", get(|| async { "ready\n" }))
        .route("/metrics", get(|State(state): State<DoorState>| async move { state.0.metrics.response() }))
        .route("/metrics/workers", get(worker_metrics::all));
    for path in CALLS.iter().map(|(path, _)| path) {
        router = router.route(path, post(call));
    }
    router.fallback(unknown_path).method_not_allowed_fallback(wrong_method).layer(DefaultBodyLimit::max(body_limit)).with_state(state)
}

/// The calls that name a model in their body, and what metrics call them.
const CALLS: [(&str, &str); 8] = [
    ("/api/generate", "ollama.generate"),
    ("/api/chat", "ollama.chat"),
    ("/api/embed", "ollama.embed"),
    ("/api/embeddings", "ollama.embeddings"),
    ("/api/show", "ollama.show"),
    ("/v1/chat/completions", "openai.chat"),
    ("/v1/completions", "openai.completions"),
    ("/v1/embeddings", "openai.embeddings"),
];

fn api_of(path: &str) -> &'static str {
    CALLS.iter().find(|(call, _)| *call == path).map_or("openai.models", |(_, api)| api)
}

/// All that the door reads of a body.
#[derive(serde::Deserialize)]
struct Named {
    #[serde(default)]
    model: Option<String>,
    /// See [`fields::model_named`].
    #[serde(default)]
    name: Option<String>,
}

async fn call(State(state): State<DoorState>, method: Method, uri: Uri, headers: HeaderMap, body: Body) -> Response {
    let account = Account::open(state.0.metrics.clone(), api_of(uri.path()), &headers);
    let dialect = Dialect::of_path(uri.path());
    let result = match read(body) {
        Ok((model, body)) => proxy::forward(&state, &account, Forward { method, uri, headers, body }, &model).await,
        Err(fault) => Err(fault),
    };
    answer(&account, dialect, result)
}

/// `GET /v1/models/NAME`
async fn model(State(state): State<DoorState>, method: Method, uri: Uri, headers: HeaderMap, Path(name): Path<String>) -> Response {
    let account = Account::open(state.0.metrics.clone(), api_of(uri.path()), &headers);
    let result = proxy::forward(&state, &account, Forward { method, uri, headers, body: bytes::Bytes::new() }, &name).await;
    answer(&account, Dialect::OpenAi, result)
}

fn read(body: Body) -> Result<(String, bytes::Bytes), Fault> {
    let body = fields::read(body)?;
    let named: Named = serde_json::from_slice(&body)
        .map_err(|error| Fault::new(FaultKind::InvalidRequest, format!("the body is not a JSON object that names a model: {error}")))?;
    Ok((fields::model_named(named.model, named.name)?, body))
}

fn answer(account: &Account, dialect: Dialect, result: Result<Response, Fault>) -> Response {
    result.unwrap_or_else(|fault| {
        account.failed(&fault);
        fault.response(dialect)
    })
}
