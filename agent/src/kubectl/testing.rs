//! A cluster for tests, as objects.

use jiff::Timestamp;
use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::api::core::v1::Node;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta};
use stowage_crds::model_node::{DeviceBackend, DeviceStatus, ModelFile, SystemStatus};
use stowage_crds::{ModelDeployment, ModelNode, ModelNodeSpec, ModelNodeStatus, names, yaml};
use stowage_placement::Bytes;
use stowage_placement::testing::SMOLLM2_135M;

use super::candidates::Seen;

pub const NOW: i64 = 1_800_000_000;

pub fn now() -> Timestamp {
    Timestamp::from_second(NOW).unwrap()
}

fn named(name: &str) -> ObjectMeta {
    ObjectMeta { name: Some(name.to_owned()), ..ObjectMeta::default() }
}

/// A node with one simulated GPU of this size, 16 GiB of memory, and `smollm2.gguf`.
pub fn gpu_node(name: &str, vram: Bytes) -> ModelNode {
    let gpu = DeviceStatus {
        uuid: format!("GPU-{name}"),
        name: "Simulated GPU".into(),
        backend: DeviceBackend::Simulated,
        total_bytes: vram,
        free_bytes: vram,
        ..DeviceStatus::default()
    };
    let summary = SMOLLM2_135M.summary();
    let file = ModelFile { path: "smollm2.gguf".into(), size_bytes: summary.size_bytes, summary: Some(summary), ..ModelFile::default() };
    let system = SystemStatus { memory_bytes: Bytes::gib(16), cores: 8, ..SystemStatus::default() };
    let status =
        ModelNodeStatus { devices: vec![gpu], gpu_count: 1, system: Some(system), models: vec![file], ..ModelNodeStatus::default() };
    ModelNode { metadata: named(name), spec: ModelNodeSpec::default(), status: Some(status) }
}

/// The nodes as an administrator sees them, each with a fresh Lease.
pub fn seen(model_nodes: Vec<ModelNode>) -> Seen {
    let names: Vec<String> = model_nodes.iter().filter_map(|node| node.metadata.name.clone()).collect();
    let nodes = names.iter().map(|name| Node { metadata: named(name), ..Node::default() }).collect();
    let leases = names.iter().map(|name| lease(name, 5)).collect();
    Seen::new(model_nodes, Some(nodes), Some(leases), now())
}

/// Renewed so many seconds ago.
pub fn lease(node: &str, ago: i64) -> Lease {
    let renewed = Timestamp::from_second(NOW - ago).unwrap();
    let spec = LeaseSpec { renew_time: Some(MicroTime(renewed)), lease_duration_seconds: Some(40), ..LeaseSpec::default() };
    Lease { metadata: named(&names::node_lease(node)), spec: Some(spec) }
}

/// `smollm2` with this context.
pub fn deployment(num_ctx: u64) -> ModelDeployment {
    yaml::from_str(&format!(
        "apiVersion: stowage.dev/v1alpha1\nkind: ModelDeployment\nmetadata: {{name: smollm2, namespace: default, generation: 2}}\n\
         spec: {{model: {{path: smollm2.gguf}}, parameters: {{num_ctx: {num_ctx}}}}}\n"
    ))
    .unwrap()
}

/// Compares with what stands in `testdata/NAME`; `STOWAGE_UPDATE_GOLDEN=1` writes it anew.
pub fn is_golden(name: &str, made: &str) {
    let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("src/kubectl/testdata").join(name);
    if std::env::var_os("STOWAGE_UPDATE_GOLDEN").is_some() {
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, made).unwrap();
    }
    let expected = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(expected == made, "{} is not what is made now; with STOWAGE_UPDATE_GOLDEN=1 it is:\n{made}", path.display());
}
