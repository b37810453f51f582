//! What Ollama does to manage models. Here a model is there because somebody applied a ModelDeployment, and each of these says so.

use axum::Router;
use axum::body::Bytes;
use axum::response::Response;
use axum::routing::{any, delete, post};

use crate::serve::error::{Dialect, Fault, FaultKind};

/// The same at the worker and at the door.
pub fn routes<S: Clone + Send + Sync + 'static>() -> Router<S> {
    Router::new()
        .route(
            "/api/pull",
            post(|body| refuse(body, "pulled", "apply a ModelDeployment whose spec.model names the file; its node fetches it")),
        )
        .route("/api/push", post(|body| refuse(body, "pushed", "publish the GGUF file where spec.model of a ModelDeployment can name it")))
        .route(
            "/api/create",
            post(|body| {
                refuse(body, "created", "apply a ModelDeployment with the system, template and parameters that the model shall have")
            }),
        )
        .route("/api/copy", post(|body| refuse(body, "copied", "add the new name to spec.aliases of its ModelDeployment")))
        .route("/api/delete", delete(|body| refuse(body, "deleted", "delete its ModelDeployment")))
        .route(
            "/api/blobs/{digest}",
            any(|| refuse(Bytes::new(), "uploaded", "publish the GGUF file where spec.model of a ModelDeployment can name it")),
        )
}

/// The body is read although it says nothing new: a connection whose request was left unread is closed, and the client's next request with it.
async fn refuse(_body: Bytes, what: &str, instead: &str) -> Response {
    managed_elsewhere(what, instead).response(Dialect::Ollama)
}

/// To a request by which Ollama unloads a model, as `ollama stop` does.
pub fn unloaded(deployment: &str) -> Fault {
    managed_elsewhere(
        "unloaded",
        &format!("delete {deployment}, or set its spec.replicas to 0; until then it stays, whatever `keep_alive` says"),
    )
}

fn managed_elsewhere(what: &str, instead: &str) -> Fault {
    let kind = "kubectl, kind ModelDeployment, apiVersion stowage.dev/v1alpha1";
    Fault::new(FaultKind::ManagedElsewhere, format!("models are not {what} through this API: {instead} ({kind})"))
}
