//! What Ollama does to manage models. Here a model is there because somebody applied a ModelDeployment, and each of these says so.

use axum::Router;
use axum::response::Response;
use axum::routing::{any, delete, post};

use crate::serve::error::{Dialect, Fault, FaultKind};

/// The same at the worker and at the door.
pub fn routes<S: Clone + Send + Sync + 'static>() -> Router<S> {
    Router::new()
        .route("/api/pull", post(|| refuse("pulled", "apply a ModelDeployment whose spec.model names the file; its node fetches it")))
        .route("/api/push", post(|| refuse("pushed", "publish the GGUF file where spec.model of a ModelDeployment can name it")))
        .route(
            "/api/create",
            post(|| refuse("created", "apply a ModelDeployment with the system, template and parameters that the model shall have")),
        )
        .route("/api/copy", post(|| refuse("copied", "add the new name to spec.aliases of its ModelDeployment")))
        .route("/api/delete", delete(|| refuse("deleted", "delete its ModelDeployment")))
        .route("/api/blobs/{digest}", any(|| refuse("uploaded", "publish the GGUF file where spec.model of a ModelDeployment can name it")))
}

async fn refuse(what: &str, instead: &str) -> Response {
    let message = format!(
        "models are not {what} through this API: {instead} (kubectl apply -f, kind ModelDeployment, apiVersion stowage.dev/v1alpha1)"
    );
    Fault::new(FaultKind::ManagedElsewhere, message).response(Dialect::Ollama)
}
