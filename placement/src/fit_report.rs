//! The footprint against the devices: does it fit, how much is short, what would make it fit.
//!
//! [`decide`] goes through it in order: `demand` says what the request insists on, `contexts` settles `num_ctx`, `considered` plans and
//! gives the verdict, `message` and `suggestions` put it into words.

mod considered;
mod contexts;
mod demand;
mod message;
mod runs_on;
mod suggestions;

pub(crate) use considered::{Considered, consider};
pub(crate) use contexts::{Allowed, largest, smallest};
pub(crate) use demand::Demand;
pub(crate) use runs_on::RunsOn;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::capability::Engine;
use crate::device_plan::{DevicePlan, NodeDevices};
use crate::footprint::{Footprint, FootprintError};
use crate::model_summary::ModelSummary;
use crate::offer::Defaults;
use crate::reason::Reason;
use crate::request::{Asked, Request};
use crate::units::{Bytes, LayerCount, Tokens};

/// Everything that `agent plan` prints, and that a ModelDeployment's `status.fit` carries for its best node.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct PlanReport {
    /// What the model is.
    pub model: ModelDescription,
    /// What was asked for, with what was settled.
    pub request: Request,
    /// What it needs.
    pub footprint: Footprint,
    /// Where it goes; where it is refused, the nearest that the GPUs can hold.
    pub plan: DevicePlan,
    /// With which the devices' offers were made.
    #[serde(default)]
    pub defaults: Defaults,
    /// Whether it fits, what is short, and what would make it fit.
    pub fit: FitReport,
}

/// The model as a person knows it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ModelDescription {
    /// As the file names it, such as `llama`.
    pub architecture: String,
    /// The model's own name.
    #[serde(default)]
    pub name: String,
    /// Weights of the model.
    #[schemars(schema_with = "crate::units::unsigned")]
    pub parameter_count: u64,
    /// The most frequent type of weights, as file names have it: `Q4_K_M`.
    pub quantization: String,
    /// Its layers, the output layer counted.
    pub total_layers: LayerCount,
    /// Tokens that it was trained for.
    pub trained_context: Tokens,
    /// Size of the file.
    pub size_bytes: Bytes,
}

/// Whether it fits, what is short, and what would make it fit.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct FitReport {
    /// Whether the request is met as wished: for `num_gpu: -1` under `PreferGPU` that is the whole model on GPU, else what was demanded.
    pub fits: bool,
    pub reason: Reason,
    /// The same for people, with the numbers.
    pub message: String,
    /// Bytes missing on GPU for the layers that are wished there, all unless `num_gpu` says fewer; where those fit or none is, bytes missing in host
    /// memory. 0: nothing is missing.
    pub shortfall_bytes: Bytes,
    /// Largest multiple of 256 at which the whole model fits on GPU, up to the trained context; 0 where none does.
    pub max_num_ctx_on_gpu: Tokens,
    /// Likewise with layers on CPU allowed.
    pub max_num_ctx: Tokens,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub suggestions: Vec<Suggestion>,
}

/// A change that would make it fit: `change` is a field of the request, or `node` (another one, which is kept out), `release` (who would have to
/// leave) or `device` (a size of GPU).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Suggestion {
    /// What to change.
    pub change: String,
    /// To what.
    pub value: String,
    /// How it would run then.
    pub processor: String,
    /// The same for people, with what it costs.
    pub message: String,
}

/// The answer to one request on one node.
#[derive(Clone, Debug, PartialEq)]
pub struct Decision {
    /// The resolved request, the bytes, the plan (where it is refused, the nearest one that the GPUs can hold) and how it fits.
    pub report: PlanReport,
    /// `Ok`: `report.plan` may be carried out, though it may be less than was wished (`report.fit.fits` is false where a part runs on CPU that was
    /// wished on GPU). `Err`: nothing may be loaded.
    pub verdict: Result<(), Refusal>,
}

/// No, and why.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct Refusal {
    pub reason: Reason,
    pub message: String,
}

impl Refusal {
    pub(crate) fn new(reason: Reason, message: impl Into<String>) -> Refusal {
        Refusal { reason, message: message.into() }
    }
}

impl From<FootprintError> for Refusal {
    fn from(error: FootprintError) -> Refusal {
        Refusal::new(error.reason(), error.to_string())
    }
}

impl PlanReport {
    /// As it stands in a Kubernetes object: without the list of layers.
    pub fn without_layers(mut self) -> PlanReport {
        self.footprint = self.footprint.without_layers();
        self
    }
}

/// Plans `asked` for one node: resolves the context, plans the devices, and reports how it fits. An error means that there is nothing to report on:
/// what is asked contradicts itself, or its sizes overflow.
pub fn decide(summary: &ModelSummary, asked: &Asked, devices: &NodeDevices) -> Result<Decision, Refusal> {
    decide_for(Engine::OURS, summary, asked, devices)
}

/// Likewise for another engine than ours.
pub fn decide_for(engine: Engine, summary: &ModelSummary, asked: &Asked, devices: &NodeDevices) -> Result<Decision, Refusal> {
    consider(engine, summary, asked, devices)?.decision()
}

#[cfg(test)]
mod tests;
