//! ModelDeployments of the small model, for tests that are about where they go and not about what they say.

use serde_json::json;
use stowage_crds::ModelDeployment;
use stowage_placement::Bytes;

use crate::models;

/// What the small model with 512 tokens of context is promised of a GPU: 628.2 MiB, as `stowage-agent plan` says, rounded up.
const ON_GPU: Bytes = Bytes::mib(629);
/// The default margin of a GPU as small as these.
const MARGIN: Bytes = Bytes::mib(256);

/// One replica of SmolLM2 with 512 tokens of context, wholly on a GPU or not at all.
pub fn on_gpu(name: &str) -> ModelDeployment {
    with_policy(name, "RequireGPU")
}

/// The same by another placement policy.
pub fn with_policy(name: &str, policy: &str) -> ModelDeployment {
    let object = json!({
        "apiVersion": "stowage.dev/v1alpha1",
        "kind": "ModelDeployment",
        "metadata": {"name": name, "namespace": "default"},
        "spec": {"model": {"path": models::SMOLLM2}, "parameters": {"num_ctx": 512}, "placement": {"policy": policy}},
    });
    serde_json::from_value(object).expect("these are fields of a ModelDeployment, with all that must be there")
}

/// The size of a GPU on which so many of them fit and no more.
pub fn room_for(replicas: u64) -> Bytes {
    Bytes(ON_GPU.0 * replicas + MARGIN.0 + ON_GPU.0 / 2)
}
