//! One node as Stowage sees it: what was promised there in `spec`, devices and actual replicas in `status`.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use stowage_placement::{Bytes, DevicePlan, ModelSummary, Request, Tokens};

use crate::model_deployment::{DeviceBytes, ModelSource, Parameters, ReplicaState};

/// Assignments that a node holds at most.
pub const MAX_ASSIGNMENTS: usize = 64;
/// Model files that a node publishes at most.
pub const MAX_MODELS: usize = 64;

/// One node as Stowage sees it. Made and removed by the operator; named after the Node.
#[derive(CustomResource, KubeSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[kube(
    group = "stowage.dev",
    version = "v1alpha1",
    kind = "ModelNode",
    shortname = "mnode",
    doc = "One node as Stowage sees it: assignments in spec, devices and actual replicas in status.",
    status = "ModelNodeStatus",
    derive = "PartialEq",
    derive = "Default",
    printcolumn(name = "GPUs", type_ = "integer", json_path = ".status.gpuCount"),
    printcolumn(name = "Free-VRAM", type_ = "string", json_path = ".status.freeVram", description = "Free on all GPUs, as last published"),
    printcolumn(name = "Cores", type_ = "integer", json_path = ".status.system.cores"),
    printcolumn(name = "Replicas", type_ = "integer", json_path = ".status.replicaCount"),
    printcolumn(name = "Version", type_ = "string", json_path = ".status.version"),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
#[serde(rename_all = "camelCase")]
pub struct ModelNodeSpec {
    /// Promises of bytes on this node's devices, written by the operator.
    // The default is not for convenience: without it, server-side apply turns a list whose last entry is taken away into null, which the schema refuses.
    #[schemars(length(max = 64), extend("default" = []))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["uid".to_owned()]))]
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub assignments: Vec<Assignment>,
    /// What admins say of this node's devices.
    #[schemars(length(max = 64), extend("default" = []))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["uuid".to_owned()]))]
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub devices: Vec<DevicePolicy>,
}

/// A promise of bytes on this node's devices to one replica, with the plan to carry out.
#[derive(KubeSchema, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Assignment {
    /// By which `status.replicas` refers to it.
    pub uid: String,
    /// Which replica it is for.
    pub replica: String,
    /// Whose replica it is.
    pub model_deployment: ModelDeploymentReference,
    /// Of the ModelDeployment.
    pub revision: String,
    /// What the agent is to do.
    pub state: AssignmentState,
    /// With `Drain` and `Release`: when answers that still run are cut off.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub deadline: Option<Time>,
    /// The file, as it was resolved.
    pub source: AssignedSource,
    /// What was asked for, with what was settled.
    pub request: Request,
    /// What goes on which device.
    pub plan: DevicePlan,
    /// Of the fit report that the plan is from: the largest context that fitted on this node then with the whole model on GPU, 0 where none did. For
    /// what users are told; nothing is planned with it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_num_ctx_on_gpu: Option<Tokens>,
    /// Likewise with layers on CPU allowed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_num_ctx: Option<Tokens>,
    /// Threads, and the defaults of requests. Changes here reload nothing, but for `num_thread`.
    #[serde(default)]
    pub parameters: Parameters,
    /// As of the ModelDeployment.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub system: String,
    /// As of the ModelDeployment.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub template: String,
    /// As of the ModelDeployment.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub aliases: Vec<String>,
    /// Of the ModelDeployment, which may be gone when this is released.
    #[serde(default = "thirty_seconds")]
    pub termination_grace_period_seconds: u32,
}

fn thirty_seconds() -> u32 {
    30
}

/// A ModelDeployment, and no later one of its name.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ModelDeploymentReference {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Its uid.
    pub uid: String,
}

/// The model's source with what was resolved of it.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct AssignedSource {
    /// As of the ModelDeployment.
    pub model: ModelSource,
    /// Commit of a Hugging Face revision.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub commit: String,
    /// `sha256:…`, where it is known.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub digest: String,
    /// Size of the file, where it is known.
    #[serde(default)]
    pub size_bytes: Bytes,
}

/// What the agent should do with an assignment.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum AssignmentState {
    /// Load and serve.
    Serve,
    /// Take no new requests, finish those that run.
    Drain,
    /// End it and report it gone.
    Release,
}

/// What an admin says of a device.
#[derive(KubeSchema, Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct DevicePolicy {
    /// The GPU's.
    pub uuid: String,
    /// False keeps Stowage off the device.
    #[serde(default = "yes")]
    pub managed: bool,
    /// Bytes to leave free; the default margin is the least.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub margin_bytes: Option<Bytes>,
}

fn yes() -> bool {
    true
}

/// What the node's agent reports.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ModelNodeStatus {
    /// The generation of the spec that this status speaks of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// Its GPUs.
    #[schemars(length(max = 64))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["uuid".to_owned()]))]
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub devices: Vec<DeviceStatus>,
    /// How many there are.
    #[serde(default)]
    pub gpu_count: u32,
    /// Sum over the GPUs, for the column.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub free_vram: String,
    /// Why there is no GPU to use, where there is none: NVML's own words.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub gpu_message: String,
    /// Its processor and memory.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub system: Option<SystemStatus>,
    /// What runs there.
    #[schemars(length(max = 128))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["uid".to_owned()]))]
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub replicas: Vec<ReplicaStatus>,
    /// How many run there.
    #[serde(default)]
    pub replica_count: u32,
    /// Files in its model directory and its cache.
    #[schemars(length(max = 64))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["path".to_owned()]))]
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub models: Vec<ModelFile>,
    /// Why these are not all: the model directory can't be read, or holds too many.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub models_message: String,
    /// Address at which this node's workers and its door are reached.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub address: String,
    /// The agent's.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub version: String,
}

/// A GPU as NVML reports it.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct DeviceStatus {
    /// As NVML gives it.
    #[serde(default)]
    pub uuid: String,
    /// Its product name.
    #[serde(default)]
    pub name: String,
    /// How the engine computes there.
    #[serde(default)]
    pub backend: DeviceBackend,
    /// Why the engine can't use it, where `backend` is `None`.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub message: String,
    /// All of its memory.
    #[serde(default)]
    pub total_bytes: Bytes,
    /// What is free of it, as last published.
    #[serde(default)]
    pub free_bytes: Bytes,
    /// Held by processes that are no workers of this node.
    #[serde(default)]
    pub used_by_others_bytes: Bytes,
    /// Who those are, as far as that can be seen.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    pub used_by: Vec<DeviceProcess>,
    /// As `9.0`.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub compute_capability: String,
    /// The driver's version.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub driver: String,
    /// What was measured on this kind of GPU: by the agent when it started, and of each load since. Missing until then; the operator's default counts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub calibration: Option<Calibration>,
}

/// What was learnt from the loads on one kind of GPU: how much a replica takes beside what the engine allocates for it, which is the driver's
/// context and libraries, and how well that was predicted.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Calibration {
    /// Loads that it was learnt from, the agent's own for this purpose among them.
    #[serde(default)]
    pub loads: u32,
    /// What a replica is taken to need beside its allocations: the most that any of them took.
    #[serde(default)]
    pub overhead_bytes: Bytes,
    /// How far a prediction with it may be off, up or down.
    #[serde(default)]
    pub uncertainty_bytes: Bytes,
    /// Of the last load: what was measured, less what had been predicted. Negative: less was taken.
    #[serde(default)]
    pub last_error_bytes: i64,
}

/// How the engine of this node computes on the device.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum DeviceBackend {
    /// Not at all.
    #[default]
    None,
    Cuda,
    /// On the CPU, charging the bytes to a simulated device: for tests only.
    Simulated,
}

/// A process that holds device memory and is no worker.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct DeviceProcess {
    /// Its id on the host.
    #[serde(default)]
    pub pid: u32,
    /// Its name, where that can be seen.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub name: String,
    /// What it holds of the device.
    #[serde(default)]
    pub bytes: Bytes,
}

/// The processor and the memory of a node.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SystemStatus {
    /// Physical cores that the agent may use.
    #[serde(default)]
    pub cores: u32,
    /// The processor's name.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub cpu: String,
    /// Such as `avx2`, `avx512vnni`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub instruction_sets: Vec<String>,
    /// The machine's memory, or the cgroup's limit where there is one.
    #[serde(default)]
    pub memory_bytes: Bytes,
    /// Of it, held by processes that are no workers, page cache left out.
    #[serde(default)]
    pub memory_used_by_others_bytes: Bytes,
}

/// A replica as its agent sees it.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ReplicaStatus {
    /// Of the assignment.
    #[serde(default)]
    pub uid: String,
    /// Its name.
    #[serde(default)]
    pub replica: String,
    /// How far it is.
    #[serde(default)]
    pub state: ReplicaState,
    /// Percent of the download or the load, by its state.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub percent: Option<u32>,
    /// Why it is as it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<stowage_placement::Reason>,
    /// The reason in words.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub message: String,
    /// How it runs.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub processor: String,
    /// Missing until its worker has measured it, and where it ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub speed: Option<Speed>,
    /// Tokens of context of each sequence.
    #[serde(default)]
    pub num_ctx: Tokens,
    /// Bytes on each device.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["id".to_owned()]))]
    pub devices: Vec<DeviceBytes>,
    /// `address:port` of its HTTP API.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub address: String,
    /// Times that its worker was started anew.
    #[serde(default)]
    pub restarts: u32,
    /// Of the Pod that its worker is in; empty while there is none, and where workers are not in Pods of their own.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub pod_uid: String,
}

/// Tokens a second of one replica, measured once after it was loaded, before it served: of one sequence alone, with nothing before it in the context,
/// and with whatever else ran on the node at that time.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Speed {
    /// Reading a prompt of at most `num_batch` tokens, as long as 50 ms allow: longer ones are read faster.
    #[serde(default)]
    pub prefill_tokens_per_second: f64,
    /// Generating. Missing for a model that generates no text.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub decode_tokens_per_second: Option<f64>,
    /// That computed.
    #[serde(default)]
    pub threads: u32,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub measured_at: Option<Time>,
}

/// A model file in the agent's model directory.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ModelFile {
    /// Relative to the model directory.
    #[serde(default)]
    pub path: String,
    /// Size of the file.
    #[serde(default)]
    pub size_bytes: Bytes,
    /// `sha256:…`, where it was computed.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub digest: String,
    /// What placement needs of its header.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub summary: Option<ModelSummary>,
    /// Why there is no summary.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<stowage_placement::Reason>,
    /// The same in words.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub message: String,
}
