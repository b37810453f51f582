//! Who holds what, as the ledger counts it.

use kube::ResourceExt;
use serde::Serialize;
use stowage_crds::ModelNode;
use stowage_crds::ledger::{Ledger, Share};
use stowage_crds::model_deployment::{DeviceSelector, ReplicaState};
use stowage_crds::model_node::{DeviceBackend, DeviceProcess, DeviceStatus};
use stowage_placement::{Bytes, Defaults, Device, HOST};

#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Snapshot {
    pub nodes: Vec<NodeUse>,
}

#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct NodeUse {
    pub node: String,
    /// Its GPUs, then the host.
    pub devices: Vec<DeviceUse>,
    /// What its agent says of its GPUs: why there is none to use, or that they are simulated.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub message: String,
}

/// One device's memory: `heldBytes + promisedBytes + othersBytes + marginBytes + freeBytes` is `totalBytes`, unless more is promised and held than it has.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct DeviceUse {
    /// A GPU's UUID, or `host`.
    pub id: String,
    pub name: String,
    /// What runs there is computed on the CPU.
    pub simulated: bool,
    /// Why it is not used, where it is not.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub unused: String,
    pub total_bytes: Bytes,
    /// By replicas, as measured.
    pub held_bytes: Bytes,
    /// To replicas, beyond what they hold.
    pub promised_bytes: Bytes,
    /// By processes that are none of Stowage's.
    pub others_bytes: Bytes,
    /// Left free in any case.
    pub margin_bytes: Bytes,
    /// On offer to the next replica.
    pub free_bytes: Bytes,
    pub replicas: Vec<ReplicaUse>,
    pub others: Vec<DeviceProcess>,
}

/// One replica on one device.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ReplicaUse {
    /// `NAMESPACE/REPLICA`.
    pub replica: String,
    pub promised_bytes: Bytes,
    /// 0 until it was measured.
    pub held_bytes: Bytes,
    /// What was measured, less what was promised, which is what was predicted; of a replica that serves.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub difference_bytes: Option<i64>,
    /// As its agent sees it.
    pub state: ReplicaState,
}

impl Snapshot {
    /// Of the nodes that are `named`, or of all where none is.
    pub fn new(model_nodes: &[ModelNode], named: &[String], defaults: Defaults) -> Snapshot {
        let wanted = |node: &&ModelNode| named.is_empty() || named.contains(&node.name_any());
        let mut nodes: Vec<NodeUse> = model_nodes.iter().filter(wanted).map(|node| NodeUse::new(node, defaults)).collect();
        nodes.sort_by(|one, other| one.node.cmp(&other.node));
        Snapshot { nodes }
    }
}

impl NodeUse {
    fn new(node: &ModelNode, defaults: Defaults) -> NodeUse {
        let ledger = Ledger::new(node, defaults);
        let offered = ledger.devices(&DeviceSelector::default());
        let gpus = node.status.iter().flat_map(|status| &status.devices);
        let gpus = gpus.map(|gpu| DeviceUse::gpu(node, gpu, &ledger, offered.gpus.iter().find(|offer| offer.id == gpu.uuid)));
        let host = node.status.as_ref().and_then(|status| status.system.as_ref()).map(|system| DeviceUse {
            name: system.cpu.clone(),
            ..DeviceUse::of(HOST, system.memory_bytes, system.memory_used_by_others_bytes, &ledger, Some(&offered.host))
        });
        let message = node.status.as_ref().map(|status| status.gpu_message.clone()).unwrap_or_default();
        NodeUse { node: node.name_any(), devices: gpus.chain(host).collect(), message }
    }
}

impl DeviceUse {
    /// `offer`: missing where nobody may use the GPU.
    fn gpu(node: &ModelNode, gpu: &DeviceStatus, ledger: &Ledger<'_>, offer: Option<&Device>) -> DeviceUse {
        let kept = node.spec.devices.iter().any(|policy| policy.uuid == gpu.uuid && !policy.managed);
        let unused = match (offer, kept) {
            (Some(_), _) => String::new(),
            (None, true) => "kept out by the ModelNode's spec.devices".to_owned(),
            (None, false) => gpu.message.clone(),
        };
        DeviceUse {
            name: gpu.name.clone(),
            simulated: gpu.backend == DeviceBackend::Simulated,
            unused,
            others: gpu.used_by.clone(),
            ..DeviceUse::of(&gpu.uuid, gpu.total_bytes, gpu.used_by_others_bytes, ledger, offer)
        }
    }

    fn of(id: &str, total: Bytes, others: Bytes, ledger: &Ledger<'_>, offer: Option<&Device>) -> DeviceUse {
        let shares = ledger.shares(id);
        let shares = shares.iter().filter(|share| share.promised.max(share.held) > Bytes::ZERO);
        DeviceUse {
            id: id.to_owned(),
            name: String::new(),
            simulated: false,
            unused: String::new(),
            total_bytes: total,
            held_bytes: shares.clone().map(|share| share.held).sum(),
            promised_bytes: shares.clone().map(|share| share.promised.saturating_sub(share.held)).sum(),
            others_bytes: others,
            margin_bytes: offer.map(|offer| offer.margin).unwrap_or_default(),
            free_bytes: offer.map(|offer| offer.offered).unwrap_or_default(),
            replicas: shares.map(ReplicaUse::new).collect(),
            others: Vec::new(),
        }
    }
}

impl ReplicaUse {
    fn new(share: &Share<'_>) -> ReplicaUse {
        let replica = match (share.assignment, share.replica) {
            (Some(assignment), _) => format!("{}/{}", assignment.model_deployment.namespace, assignment.replica),
            (None, Some(replica)) => format!("{} (its assignment is gone)", replica.replica),
            (None, None) => String::new(),
        };
        let state = share.replica.map(|replica| replica.state).unwrap_or_default();
        let mut shown = ReplicaUse { replica, promised_bytes: share.promised, held_bytes: share.held, difference_bytes: None, state };
        shown.difference_bytes = shown.measured().and_then(|measured| measured.0.checked_signed_diff(share.promised.0));
        shown
    }

    /// What it takes, once it has loaded: before that it was not promised what it holds, but what it will hold.
    pub fn measured(&self) -> Option<Bytes> {
        (self.state == ReplicaState::Ready && self.held_bytes > Bytes::ZERO).then_some(self.held_bytes)
    }
}
