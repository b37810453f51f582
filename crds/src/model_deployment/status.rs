//! What the operator says of a ModelDeployment: where its replicas are, and why.

use super::*;

/// Placements that a status lists at most, the worst first.
pub const MAX_PLACEMENTS: usize = 32;

/// What the operator says of a ModelDeployment.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ModelDeploymentStatus {
    /// The generation of the spec that this status speaks of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// Replicas that have a place.
    #[serde(default)]
    pub replicas: u32,
    /// Replicas that serve.
    #[serde(default)]
    pub ready_replicas: u32,
    /// Replicas of the newest revision.
    #[serde(default)]
    pub updated_replicas: u32,
    /// `1/1`: replicas that serve, of those asked for.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub ready: String,
    /// Label selector of the replicas, for the scale subresource.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub selector: String,
    /// The model, once its header is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub model: Option<ModelDescription>,
    /// What was settled for the newest revision, once.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub resolved: Option<Resolved>,
    /// What `kubectl get` prints, of the worst placement.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub summary: Option<Summary>,
    /// The fit report for the best node.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fit: Option<PlanReport>,
    /// On what the fit report was decided: `agent plan --node` comes to the same report from it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub decision: Option<DecisionRecord>,
    /// Assignments of lower priority that are to make way for a replica of this ModelDeployment, by uid.
    #[schemars(length(max = 64))]
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[x_kube(merge_strategy = ListMerge::Set)]
    pub preempts: Vec<String>,
    /// When a rollout last came a step further; from then `progressDeadlineSeconds` counts. None while there is no rollout.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub progressed_at: Option<Time>,
    #[schemars(length(max = 32))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["replica".to_owned()]))]
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub placements: Vec<PlacementStatus>,
    #[x_kube(merge_strategy = ListMerge::Map(vec!["type".to_owned()]))]
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub conditions: Vec<Condition>,
}

/// The figures that a decision was made on.
#[derive(KubeSchema, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct DecisionRecord {
    /// Nodes that it was chosen from.
    #[serde(default)]
    pub nodes: u32,
    /// The node that was chosen, or where none was, the one that came nearest.
    pub node: String,
    /// The ModelNode's uid.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub model_node_uid: String,
    /// Of the ModelNode, when it was decided.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub resource_version: String,
    /// What its devices offered to this ModelDeployment, what it has there already and may give back included.
    pub offered: NodeDevices,
}

/// What was settled for a revision, and stays settled as long as the revision does.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Resolved {
    /// Of the ModelDeployment: changes with whatever needs the model loaded anew.
    #[serde(default)]
    pub revision: String,
    /// `None` until a node could be asked what fits.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub num_ctx: Option<Tokens>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source: Option<ResolvedSource>,
}

/// The exact file that was meant.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ResolvedSource {
    /// A URL, or a path in the agents' model directory.
    #[serde(default)]
    pub location: String,
    /// The commit that a Hugging Face revision stood for.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub commit: String,
    /// Size of the file, where it is known.
    #[serde(default)]
    pub size_bytes: Bytes,
    /// `sha256:…`, where it is known.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub digest: String,
}

/// What `kubectl get` prints.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Summary {
    /// How the worst placement runs.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub processor: String,
    /// Tokens of context of each sequence.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub num_ctx: Option<Tokens>,
    /// Layers on GPU, of all.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub layers: String,
    /// GPU memory that it holds.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub vram: String,
    /// Where the worst placement is.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub node: String,
    /// Why it is as it is.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub reason: String,
    /// Bytes that were predicted, and how far that may be off.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub predicted: String,
    /// Bytes that were measured.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub measured: String,
    /// See `placements[].speed`.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub speed: String,
    /// The largest context that fits wholly on GPU.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_num_ctx_on_gpu: Option<Tokens>,
}

/// One replica's place. With `state: Claimed` it is the claim that comes before the promise in ModelNode.spec.
#[derive(KubeSchema, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PlacementStatus {
    /// Its name, `NAME-REVISION-INDEX`.
    pub replica: String,
    /// Of the ModelDeployment.
    pub revision: String,
    /// Where it is.
    pub node: String,
    /// Of the ModelNode that the place was claimed on; another one of the same name is of another machine.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub model_node_uid: String,
    /// Of the assignment in ModelNode.spec.
    pub assignment_uid: String,
    /// The assignment whose place this one takes once it serves, of a replica that moves to a better place.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub replaces: String,
    /// How far it is.
    pub state: PlacementState,
    /// How it runs.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub processor: String,
    /// Tokens of context of each sequence.
    #[serde(default)]
    pub num_ctx: Tokens,
    /// Layers on GPU.
    #[serde(default)]
    pub gpu_layers: u32,
    /// Layers of the model.
    #[serde(default)]
    pub total_layers: u32,
    /// Bytes on each device.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["id".to_owned()]))]
    pub devices: Vec<DeviceBytes>,
    /// What it was predicted to take, on all devices.
    #[serde(default)]
    pub predicted_bytes: Bytes,
    /// How far the prediction may be off, up or down: what is known of these kinds of GPU.
    #[serde(default)]
    pub uncertainty_bytes: Bytes,
    /// What it took, once that was measured.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub measured_bytes: Option<Bytes>,
    /// `282 tokens/s`: what one sequence alone was generated with when the replica was loaded; of a model that generates no text, what it was read with.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub speed: String,
    /// Percent of the present step (download or load) that is done.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub percent: Option<u32>,
    /// Why it is as it is.
    pub reason: stowage_placement::Reason,
    /// The reason in words, with numbers.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub message: String,
    /// `address:port` of the replica's HTTP API.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub endpoint: String,
    /// The Pod that it runs in, where it has one of its own.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub pod_ref: String,
}

/// How far a placement is, in the operator's eyes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
pub enum PlacementState {
    /// Claimed here; not yet promised in ModelNode.spec.
    Claimed,
    /// Promised; the agent is carrying it out.
    Placed,
    /// Loaded and serving.
    Ready,
    /// To be given back: answers are finished, then the bytes are freed.
    Releasing,
}

/// How far a replica is, in its agent's eyes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
pub enum ReplicaState {
    #[default]
    Pending,
    Downloading,
    Loading,
    Ready,
    Draining,
    /// The plan does not hold on this node; the operator decides again.
    Refused,
    /// It could not be carried out; the agent tries again where that may help.
    Failed,
    /// Nothing of it is left: its bytes may be promised again.
    Gone,
}

/// What a replica takes of one device.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct DeviceBytes {
    /// A GPU's UUID, or `host`.
    pub id: String,
    /// What it was predicted to take.
    #[serde(default)]
    pub predicted_bytes: Bytes,
    /// What it took, once that was measured.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub measured_bytes: Option<Bytes>,
}
