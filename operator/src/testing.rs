//! Objects for tests: nodes with one simulated GPU, a small model, ModelDeployments of it.

pub mod agent;
pub mod cluster;

use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::api::core::v1::{Node, NodeSpec};
use k8s_openapi::api::scheduling::v1::PriorityClass;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta, OwnerReference};
use k8s_openapi::jiff::Timestamp;
use kube::runtime::watcher::Event;
use serde_json::json;
use stowage_crds::model_deployment::{DeviceBytes, ReplicaState, ResolvedSource};
use stowage_crds::model_node::{Assignment, DeviceBackend, DeviceStatus, ModelFile, ModelNodeStatus, ReplicaStatus, SystemStatus};
use stowage_crds::{ModelDeployment, ModelNode, ModelNodeSpec, names};
use stowage_placement::testing::SMOLLM2_135M;
use stowage_placement::{Bytes, DeviceAllocation, DevicePlan, HOST, LayerCount};

use crate::cache::Cache;
use crate::state::{RemoteModel, State};
use crate::workers::Settings;

/// The model that everything here runs.
pub const MODEL: &str = "smollm2.gguf";
/// When tests take place.
pub const NOW: i64 = 1_800_000_000;

pub fn now() -> Timestamp {
    Timestamp::from_second(NOW).unwrap()
}

pub fn gpu(node: &str) -> String {
    format!("GPU-{node}")
}

/// A ModelDeployment of one replica on a GPU or not at all.
pub fn deployment(name: &str) -> ModelDeployment {
    let mut deployment: ModelDeployment = serde_json::from_value(json!({
        "apiVersion": "stowage.dev/v1alpha1", "kind": "ModelDeployment",
        "metadata": {"name": name, "namespace": "default", "uid": format!("uid-{name}"), "resourceVersion": "20", "generation": 1},
        "spec": {"model": {"path": MODEL}, "parameters": {"num_ctx": 2048}, "placement": {"policy": "RequireGPU"}},
    }))
    .unwrap();
    deployment.status = None;
    deployment
}

pub fn node(name: &str) -> Node {
    Node {
        metadata: ObjectMeta {
            name: Some(name.into()),
            uid: Some(format!("uid-{name}")),
            resource_version: Some("5".into()),
            ..ObjectMeta::default()
        },
        spec: Some(NodeSpec::default()),
        status: None,
    }
}

pub fn priority_class(name: &str, value: i32) -> PriorityClass {
    let metadata = ObjectMeta { name: Some(name.into()), resource_version: Some("7".into()), ..ObjectMeta::default() };
    PriorityClass { metadata, value: Some(value), ..PriorityClass::default() }
}

/// A Lease renewed so many seconds before [`NOW`].
pub fn lease(node: &str, seconds_ago: i64) -> Lease {
    Lease {
        metadata: ObjectMeta {
            name: Some(names::node_lease(node)),
            namespace: Some(names::SYSTEM_NAMESPACE.into()),
            resource_version: Some("6".into()),
            ..ObjectMeta::default()
        },
        spec: Some(LeaseSpec {
            lease_duration_seconds: Some(40),
            renew_time: Some(MicroTime(Timestamp::from_second(NOW - seconds_ago).unwrap())),
            ..LeaseSpec::default()
        }),
    }
}

/// A ModelNode with one simulated GPU that has the model.
pub fn gpu_node(name: &str, vram: Bytes) -> ModelNode {
    let mut node = ModelNode::new(name, ModelNodeSpec::default());
    node.metadata.uid = Some(format!("uid-mnode-{name}"));
    node.metadata.resource_version = Some("10".into());
    let owner = OwnerReference {
        name: name.into(),
        uid: format!("uid-{name}"),
        kind: "Node".into(),
        api_version: "v1".into(),
        ..OwnerReference::default()
    };
    node.metadata.owner_references = Some(vec![owner]);
    let device = DeviceStatus {
        uuid: gpu(name),
        name: "Simulated RTX".into(),
        backend: DeviceBackend::Simulated,
        total_bytes: vram,
        free_bytes: vram,
        ..DeviceStatus::default()
    };
    let system = SystemStatus { cores: 8, memory_bytes: Bytes::gib(64), ..SystemStatus::default() };
    node.status = Some(ModelNodeStatus {
        devices: vec![device],
        system: Some(system),
        models: vec![model_file(MODEL)],
        ..ModelNodeStatus::default()
    });
    node
}

pub fn model_file(path: &str) -> ModelFile {
    let summary = SMOLLM2_135M.summary();
    ModelFile { path: path.into(), size_bytes: summary.size_bytes, summary: Some(summary), ..ModelFile::default() }
}

pub fn remote_model() -> RemoteModel {
    RemoteModel { summary: SMOLLM2_135M.summary(), source: ResolvedSource::default() }
}

/// A promise of so many bytes on the GPU of node `n1`.
pub fn assignment(uid: &str, bytes: Bytes) -> Assignment {
    let on = |id: String, total_bytes| DeviceAllocation { id, total_bytes, ..DeviceAllocation::default() };
    Assignment {
        replica: format!("m-{uid}"),
        model_deployment: Default::default(),
        revision: String::new(),
        plan: DevicePlan {
            processor: "100% GPU".into(),
            gpu_layers: LayerCount(31),
            total_layers: LayerCount(31),
            devices: vec![on(gpu("n1"), bytes), on(HOST.into(), Bytes::ZERO)],
        },
        ..stowage_crds::testing::assignment(uid)
    }
}

/// A replica that holds this much on the GPU of node `n1`.
pub fn replica_status(uid: &str, state: ReplicaState, held: Option<Bytes>) -> ReplicaStatus {
    let devices = vec![DeviceBytes { id: gpu("n1"), predicted_bytes: Bytes::ZERO, measured_bytes: held }];
    ReplicaStatus { uid: uid.into(), replica: format!("m-{uid}"), state, devices, ..ReplicaStatus::default() }
}

/// What all workers' Pods have in common, as a chart might say it.
pub fn worker_settings() -> Settings {
    let volume = |name: &str, source: serde_json::Value| json!({"name": name, "hostPath": source});
    serde_json::from_value(json!({
        "image": "registry/stowage-agent:1", "serviceAccount": "stowage-worker", "user": 65532, "group": 65532,
        "socket": "/run/stowage/pods/agent.sock", "port": 11434,
        "volumes": [
            volume("models", json!({"path": "/var/lib/stowage/models"})),
            volume("socket", json!({"path": "/run/stowage/pods", "type": "Directory"})),
        ],
        "volumeMounts": [
            {"name": "models", "mountPath": "/var/lib/stowage/models"}, {"name": "socket", "mountPath": "/run/stowage/pods"},
        ],
        "resources": {"requests": {"cpu": "500m"}}, "env": [{"name": "RUST_LOG", "value": "info"}],
        "labels": {"app.kubernetes.io/component": "worker"}, "gpuRuntimeClassName": "nvidia",
    }))
    .unwrap()
}

/// Everything there is, with a Node and a fresh Lease for each ModelNode, as if listed.
pub fn state_with(model_nodes: Vec<ModelNode>, deployments: Vec<ModelDeployment>) -> State {
    let names: Vec<String> = model_nodes.iter().filter_map(|node| node.metadata.name.clone()).collect();
    let mut state = State {
        nodes: listed(names.iter().map(|name| node(name))),
        model_nodes: listed(model_nodes),
        deployments: listed(deployments),
        services: listed([]),
        slices: listed([]),
        priority_classes: listed([]),
        pods: listed([]),
        system_namespace: names::SYSTEM_NAMESPACE.into(),
        ..State::default()
    };
    state.hear(names.iter().map(|name| lease(name, 0)).collect(), now());
    state
}

impl State {
    /// These are all the Leases that there are.
    pub fn hear(&mut self, leases: Vec<Lease>, now: Timestamp) {
        self.leases = listed(leases);
        self.heartbeats.listen(&self.leases, now);
    }
}

/// A cache that a whole list came through.
pub fn listed<K: kube::ResourceExt>(objects: impl IntoIterator<Item = K>) -> Cache<K> {
    let mut cache = Cache::default();
    cache.take_in(Event::Init);
    for object in objects {
        cache.take_in(Event::InitApply(object));
    }
    cache.take_in(Event::InitDone);
    cache
}
