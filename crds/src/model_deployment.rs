//! What a user asks for: a model, its parameters, replicas, a placement policy.

use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
pub use stowage_placement::ContextPolicy;
use stowage_placement::fit_report::ModelDescription;
use stowage_placement::{Bytes, KvCacheType, NodeDevices, PlacementPolicy, PlanReport, Tokens};

mod asked;
mod status;
pub use status::{
    DecisionRecord, DeviceBytes, MAX_PLACEMENTS, ModelDeploymentStatus, PlacementState, PlacementStatus, ReplicaState, Resolved,
    ResolvedSource, Summary,
};

/// A language model to run: which one, with which parameters, how many replicas of it, and on which devices.
#[derive(CustomResource, KubeSchema, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[kube(
    group = "stowage.dev",
    version = "v1alpha1",
    kind = "ModelDeployment",
    namespaced,
    shortname = "mdl",
    category = "all",
    doc = "A language model to run: which one, with which parameters, how many replicas of it, and on which devices.",
    status = "ModelDeploymentStatus",
    derive = "PartialEq",
    scale(spec_replicas_path = ".spec.replicas", status_replicas_path = ".status.replicas", label_selector_path = ".status.selector"),
    printcolumn(name = "Ready", type_ = "string", json_path = ".status.ready", description = "Replicas that serve, of those asked for"),
    printcolumn(name = "Processor", type_ = "string", json_path = ".status.summary.processor", description = "Where the bytes are"),
    printcolumn(
        name = "Context",
        type_ = "integer",
        json_path = ".status.summary.numCtx",
        description = "Tokens of context of each sequence"
    ),
    printcolumn(name = "Layers", type_ = "string", json_path = ".status.summary.layers", description = "Layers on GPU, of all"),
    printcolumn(name = "VRAM", type_ = "string", json_path = ".status.summary.vram", description = "GPU memory held"),
    printcolumn(name = "Node", type_ = "string", json_path = ".status.summary.node"),
    printcolumn(name = "Reason", type_ = "string", json_path = ".status.summary.reason", description = "Why it is as it is"),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp"),
    printcolumn(
        name = "Speed",
        type_ = "string",
        json_path = ".status.summary.speed",
        description = "Measured when it was loaded, one sequence alone",
        priority = 1
    ),
    printcolumn(name = "Model", type_ = "string", json_path = ".status.model.name", priority = 1),
    printcolumn(name = "Quant", type_ = "string", json_path = ".status.model.quantization", priority = 1),
    printcolumn(name = "Predicted", type_ = "string", json_path = ".status.summary.predicted", priority = 1),
    printcolumn(name = "Measured", type_ = "string", json_path = ".status.summary.measured", priority = 1),
    printcolumn(name = "Max-GPU-Ctx", type_ = "integer", json_path = ".status.summary.maxNumCtxOnGpu", priority = 1)
)]
#[kube(validation = Rule::new("size(self.metadata.name) <= 50 && self.metadata.name.matches('^[a-z]([-a-z0-9]*[a-z0-9])?$')").message("metadata.name must be a DNS label of at most 50 characters (lower-case letters, digits and '-', beginning with a letter), because a Service is named after it: write qwen2-5 instead of qwen2.5, and put qwen2.5 into spec.aliases"))]
#[x_kube(validation = ("!(self.placement.policy == 'RequireCPU' && has(self.parameters.num_gpu) && self.parameters.num_gpu > 0)", "placement.policy RequireCPU contradicts a num_gpu above 0: leave num_gpu out, or use PreferGPU"))]
#[x_kube(validation = ("!(self.placement.policy == 'RequireGPU' && has(self.parameters.num_gpu) && self.parameters.num_gpu == 0)", "placement.policy RequireGPU contradicts num_gpu 0: leave num_gpu out, or use RequireCPU"))]
#[x_kube(validation = ("self.placement.contextPolicy != 'ShrinkToFit' || has(self.placement.minContext)", "placement.contextPolicy ShrinkToFit needs placement.minContext: the smallest context that will still do"))]
#[x_kube(validation = ("!has(self.placement.minContext) || self.placement.contextPolicy == 'ShrinkToFit'", "placement.minContext only has a meaning with placement.contextPolicy ShrinkToFit: set that, or leave minContext out"))]
#[x_kube(validation = ("!has(self.placement.minContext) || !has(self.parameters.num_ctx) || self.placement.minContext <= self.parameters.num_ctx", "placement.minContext must not be above parameters.num_ctx"))]
#[serde(rename_all = "camelCase")]
pub struct ModelDeploymentSpec {
    /// Where the model comes from.
    pub model: ModelSource,
    /// More names that clients may ask for, such as `deepseek-r1:32b`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16), inner(length(min = 1, max = 128)))]
    #[x_kube(merge_strategy = ListMerge::Set)]
    pub aliases: Vec<String>,
    /// The names of Ollama's Modelfile PARAMETER, with the same meaning.
    #[serde(default)]
    pub parameters: Parameters,
    /// Modelfile SYSTEM: the system message of conversations that bring none.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    #[schemars(length(max = 16384))]
    pub system: String,
    /// A chat template (Jinja) that replaces the file's own.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    #[schemars(length(max = 65536))]
    pub template: String,
    /// Type of the elements of the K and V caches.
    #[serde(default)]
    pub kv_cache_type: KvCacheType,
    /// Sequences served at once by a replica, each with `num_ctx`.
    #[serde(default = "one")]
    #[schemars(range(min = 1, max = 256))]
    pub parallel: u32,
    /// On which devices of which nodes a replica may live.
    #[serde(default)]
    pub placement: PlacementSpec,
    /// Replicas of a higher class are served first. Must exist where it is set.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    #[schemars(length(max = 253))]
    pub priority_class_name: String,
    /// Loaded copies of the model.
    #[serde(default = "one")]
    #[schemars(range(min = 0, max = 1000))]
    pub replicas: u32,
    /// How a new revision takes the place of the old one.
    #[serde(default)]
    pub update_strategy: UpdateStrategy,
    /// Seconds after which a rollout that did not progress is reported as failed.
    #[serde(default = "ten_minutes")]
    #[schemars(range(min = 1, max = 86400))]
    pub progress_deadline_seconds: u32,
    /// Seconds that a replica has to finish its answers before it ends.
    #[serde(default = "thirty_seconds")]
    #[schemars(range(min = 0, max = 3600))]
    pub termination_grace_period_seconds: u32,
    /// While true, changes are not acted upon.
    #[serde(default)]
    pub paused: bool,
    /// The Service by which the replicas are reached.
    #[serde(default)]
    pub service: ServiceSpec,
}

/// Exactly one source. A split file is named by its first part.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[x_kube(validation = ("(has(self.huggingFace) ? 1 : 0) + (has(self.http) ? 1 : 0) + (has(self.path) ? 1 : 0) == 1", "model needs exactly one source: huggingFace, http or path"))]
#[serde(rename_all = "camelCase")]
pub struct ModelSource {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hugging_face: Option<HuggingFaceSource>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub http: Option<HttpSource>,
    /// A GGUF file in the agents' model directory, named relative to it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 1024))]
    #[x_kube(validation = ("!self.startsWith('/') && !self.split('/').exists(part, part == '..' || part == '.' || part == '')", "model.path is relative to the agents' model directory: no leading '/', no '.' and no '..' in it"))]
    pub path: Option<String>,
}

/// A file of a repository on the Hugging Face hub.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct HuggingFaceSource {
    /// `OWNER/NAME`.
    #[schemars(length(min = 3, max = 256), regex(pattern = r"^[A-Za-z0-9._-]+/[A-Za-z0-9._-]+$"))]
    pub repository: String,
    /// Of a GGUF file in it; of a split model, the first part.
    #[schemars(length(min = 1, max = 1024))]
    pub file: String,
    /// A branch, a tag or a commit; resolved to a commit once a revision of the ModelDeployment.
    #[serde(default = "main_branch")]
    #[schemars(length(min = 1, max = 128))]
    pub revision: String,
}

/// A file behind a URL.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct HttpSource {
    /// Of a GGUF file; of a split model, of its first part.
    #[schemars(length(min = 1, max = 2048), regex(pattern = r"^https?://[^\s]+$"))]
    pub url: String,
    /// The file's SHA-256, in hexadecimal; of a split model, its first part's. Where it is missing, the file is taken as it comes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(regex(pattern = r"^[0-9a-f]{64}$"))]
    pub sha256: Option<String>,
}

/// Parameters of the Modelfile. The first four decide how the model is loaded; the rest are defaults that a request may override.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Parameters {
    /// Tokens of context. Omitted: the largest that fits wholly on a GPU, up to 32768 and the trained context; 8192 on CPU.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "stowage_placement::units::unsigned")]
    #[x_kube(validation = ("self >= 1", "num_ctx must be at least 1; leave it out to have the largest context that fits"))]
    pub num_ctx: Option<Tokens>,
    /// Layers on GPU. -1 or omitted: as many as fit; 0: none; N: exactly N (999: all).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[x_kube(validation = ("self >= -1", "num_gpu must be at least -1: -1 for as many layers as fit, 0 for none, 999 for all"))]
    pub num_gpu: Option<i64>,
    /// Tokens read in one step of prefill. Omitted: 512.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 65536))]
    pub num_batch: Option<u32>,
    /// Threads for the layers on CPU. Omitted or 0: one a physical core.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 1024))]
    pub num_thread: Option<u32>,
    /// Most tokens in an answer; -1: no limit but the context.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = -2, max = 1_000_000_000))]
    pub num_predict: Option<i64>,
    /// How much less likely tokens are preferred: 0 takes the most likely one always.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0.0, max = 100.0))]
    pub temperature: Option<f64>,
    /// Only this many of the most likely tokens are drawn from; 0: all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 1_000_000))]
    pub top_k: Option<u32>,
    /// Only the most likely tokens that make up this probability together are drawn from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0.0, max = 1.0))]
    pub top_p: Option<f64>,
    /// Only tokens at least this likely, as a share of the most likely one, are drawn from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0.0, max = 1.0))]
    pub min_p: Option<f64>,
    /// By how much tokens that came before are less likely; 1: not at all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0.0, max = 100.0))]
    pub repeat_penalty: Option<f64>,
    /// How many of the last tokens that counts for; -1: the whole context, 0: none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = -1, max = 1_000_000))]
    pub repeat_last_n: Option<i64>,
    /// Of the random numbers; the same one gives the same answer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0))]
    pub seed: Option<i64>,
    /// Texts at which an answer ends.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16), inner(length(min = 1, max = 256)))]
    pub stop: Vec<String>,
}

/// On which devices of which nodes a replica may live.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PlacementSpec {
    /// Whether it must be on GPU, should be, or must not be.
    #[serde(default)]
    pub policy: PlacementPolicy,
    /// Whether `num_ctx` may be shortened to make it fit.
    #[serde(default)]
    pub context_policy: ContextPolicy,
    /// The smallest context that `ShrinkToFit` may go down to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "stowage_placement::units::unsigned")]
    #[x_kube(validation = ("self >= 1", "placement.minContext must be at least 1"))]
    pub min_context: Option<Tokens>,
    /// Labels that the Node must have.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub node_selector: BTreeMap<String, String>,
    /// Which GPUs may be used.
    #[serde(default)]
    pub device_selector: DeviceSelector,
}

/// Which GPUs may be used.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct DeviceSelector {
    /// Part of the device's product name, such as `H100`; empty: any.
    #[serde(default)]
    #[schemars(length(max = 128))]
    pub product: String,
    /// Total memory that a device must have, in bytes.
    #[serde(default)]
    pub min_memory: Bytes,
    /// Most devices over which a replica is spread; 0: as many as it takes.
    #[serde(default)]
    #[schemars(range(min = 0, max = 64))]
    pub max_devices: u32,
}

/// How a new revision takes the place of the old one.
#[derive(KubeSchema, Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[x_kube(validation = ("self.maxSurge > 0 || self.maxUnavailable > 0", "updateStrategy.maxSurge and maxUnavailable must not both be 0: no replica could ever be replaced"))]
#[serde(rename_all = "camelCase")]
pub struct UpdateStrategy {
    /// Replicas beyond `replicas` during a rollout.
    #[schemars(range(min = 0, max = 1000))]
    #[serde(default = "one")]
    pub max_surge: u32,
    /// Replicas that may be missing during a rollout.
    #[schemars(range(min = 0, max = 1000))]
    #[serde(default)]
    pub max_unavailable: u32,
    #[serde(default)]
    pub when_no_room: WhenNoRoom,
}

impl Default for UpdateStrategy {
    fn default() -> UpdateStrategy {
        UpdateStrategy { max_surge: 1, max_unavailable: 0, when_no_room: WhenNoRoom::Replace }
    }
}

/// What is done where no node has room for the old and the new revision at once.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum WhenNoRoom {
    /// The old replica goes first, and an Event says so.
    #[default]
    Replace,
    /// The rollout waits.
    Wait,
}

/// The Service by which the replicas are reached.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ServiceSpec {
    /// As of Kubernetes' Services.
    #[serde(default, rename = "type")]
    pub type_: ServiceType,
    /// For what makes load balancers and the like.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub annotations: BTreeMap<String, String>,
}

/// As of Kubernetes' Services.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum ServiceType {
    #[default]
    ClusterIP,
    NodePort,
    LoadBalancer,
}

fn one() -> u32 {
    1
}

fn ten_minutes() -> u32 {
    600
}

fn thirty_seconds() -> u32 {
    30
}

fn main_branch() -> String {
    "main".to_owned()
}
