use proptest::prelude::*;
use stowage_crds::ModelNode;
use stowage_crds::model_deployment::{DeviceBytes, ReplicaState};
use stowage_crds::model_node::{Assignment, DeviceBackend, DevicePolicy, DeviceProcess, ModelDeploymentReference, ReplicaStatus};
use stowage_placement::{Bytes, Defaults, DeviceAllocation, DeviceKind, DevicePlan};

use super::*;
use crate::kubectl::testing::{gpu_node, is_golden};

/// A promise of so much of the node's GPU.
fn assignment(node: &str, replica: &str, promised: Bytes) -> Assignment {
    let gpu = DeviceAllocation { id: format!("GPU-{node}"), kind: DeviceKind::Gpu, total_bytes: promised, ..DeviceAllocation::default() };
    Assignment {
        replica: replica.to_owned(),
        revision: "5d9f".into(),
        model_deployment: ModelDeploymentReference { namespace: "default".into(), name: "smollm2".into(), uid: "u".into() },
        plan: DevicePlan { devices: vec![gpu], ..DevicePlan::default() },
        ..stowage_crds::testing::assignment(replica)
    }
}

fn loaded(node: &str, replica: &str, held: Bytes) -> ReplicaStatus {
    let gpu = DeviceBytes { id: format!("GPU-{node}"), predicted_bytes: held, measured_bytes: Some(held) };
    ReplicaStatus {
        uid: replica.into(),
        replica: replica.into(),
        state: ReplicaState::Ready,
        devices: vec![gpu],
        ..ReplicaStatus::default()
    }
}

fn busy_node() -> ModelNode {
    let mut node = gpu_node("one", Bytes::gib(4));
    node.spec.assignments =
        vec![assignment("one", "smollm2-5d9f-0", Bytes::mib(700)), assignment("one", "smollm2-5d9f-1", Bytes::mib(700))];
    let status = node.status.as_mut().unwrap();
    status.replicas = vec![loaded("one", "smollm2-5d9f-0", Bytes::mib(660))];
    status.devices[0].used_by_others_bytes = Bytes::gib(1);
    status.devices[0].used_by = vec![DeviceProcess { pid: 4711, name: "someone else".into(), bytes: Bytes::mib(1000) }];
    status.system.as_mut().unwrap().memory_used_by_others_bytes = Bytes::gib(3);
    node
}

#[test]
fn a_device_is_drawn_with_who_holds_it() {
    let mut unused = gpu_node("two", Bytes::gib(8));
    unused.status.as_mut().unwrap().devices[0].backend = DeviceBackend::None;
    unused.status.as_mut().unwrap().devices[0].message = "this build computes on no GPU".into();
    let snapshot = Snapshot::new(&[unused, busy_node()], &[], Defaults::default());
    let drawn = draw::render(&snapshot);
    is_golden("top.txt", &drawn);
    let page = std::fs::read_to_string(std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/kubectl-stowage.md")).unwrap();
    assert!(page.contains(&format!("```text\n{drawn}```\n")), "docs/kubectl-stowage.md shows something else than:\n{drawn}");
}

#[test]
fn what_a_replica_takes_is_told_beside_what_was_predicted_once_it_serves() {
    let mut node = busy_node();
    node.status
        .as_mut()
        .unwrap()
        .replicas
        .push(ReplicaStatus { state: ReplicaState::Loading, ..loaded("one", "smollm2-5d9f-1", Bytes::mib(20)) });
    let snapshot = Snapshot::new(&[node], &[], Defaults::default());
    let differences: Vec<_> = snapshot.nodes[0].devices[0].replicas.iter().map(|replica| replica.difference_bytes).collect();
    assert_eq!(differences, [Some(-(Bytes::mib(40).0 as i64)), None]);
    assert!(draw::render(&snapshot).contains("Ready, 40.0 MiB less than predicted (5.7 %)\n"));
}

#[test]
fn nodes_that_are_named_are_shown_alone_and_a_gpu_that_is_kept_out_says_so() {
    let mut kept_out = busy_node();
    kept_out.spec.devices = vec![DevicePolicy { uuid: "GPU-one".into(), managed: false, margin_bytes: None }];
    let snapshot = Snapshot::new(&[kept_out, gpu_node("two", Bytes::gib(8))], &["one".to_owned()], Defaults::default());
    assert_eq!(snapshot.nodes.len(), 1);
    assert_eq!(snapshot.nodes[0].devices[0].unused, "kept out by the ModelNode's spec.devices");
    assert!(draw::render(&Snapshot { nodes: Vec::new() }).contains("no agent has reported yet"));
}

proptest! {
    #[test]
    fn what_is_held_promised_used_kept_free_and_free_is_all_of_the_device(total in 2u64..64, promised in 0u64..2048, held in 0u64..2048, others in 0u64..2048) {
        let mut node = gpu_node("one", Bytes::gib(total));
        node.spec.assignments = vec![assignment("one", "a", Bytes::mib(promised))];
        let status = node.status.as_mut().unwrap();
        status.replicas = vec![loaded("one", "a", Bytes::mib(held))];
        status.devices[0].used_by_others_bytes = Bytes::mib(others);
        let snapshot = Snapshot::new(&[node], &[], Defaults::default());
        let device = &snapshot.nodes[0].devices[0];
        let parts: Bytes = [device.held_bytes, device.promised_bytes, device.others_bytes, device.margin_bytes, device.free_bytes].into_iter().sum();
        if device.free_bytes > Bytes::ZERO {
            prop_assert_eq!(parts, device.total_bytes);
        } else {
            prop_assert!(parts >= device.total_bytes);
        }
        let drawn = draw::render(&snapshot);
        let bar = drawn.lines().find(|line| line.contains('[')).unwrap();
        prop_assert_eq!(bar.split(['[', ']']).nth(1).unwrap().chars().count(), 40);
    }
}
