//! What is promised, held and on offer on a node, by its ModelNode: the operator decides on it, and `agent plan --node` replays what it decided.
//!
//! A replica counts with what it was promised or holds, whichever is more; replicas that only the agent knows (a worker whose assignment is gone) count too.

use std::collections::BTreeMap;

use stowage_placement::layout::Backend;
use stowage_placement::offer::{offer, overdrawn};
use stowage_placement::{Bytes, Defaults, Device, HOST, Holder, NodeDevices, Who};

use crate::ModelNode;
use crate::model_deployment::{DeviceSelector, ReplicaState};
use crate::model_node::{Assignment, DeviceBackend, DeviceProcess, DeviceStatus, ReplicaStatus};

/// A replica as spec promises it and as status reports it.
type Replica<'a> = (Option<&'a Assignment>, Option<&'a ReplicaStatus>);

/// What one replica has of one device.
#[derive(Clone, Copy, Debug)]
pub struct Share<'a> {
    /// `None`: a worker whose assignment is gone.
    pub assignment: Option<&'a Assignment>,
    /// `None`: its agent has said nothing of it yet.
    pub replica: Option<&'a ReplicaStatus>,
    pub promised: Bytes,
    pub held: Bytes,
}

/// One node's account.
pub struct Ledger<'a> {
    node: &'a ModelNode,
    /// The union of what spec promises and status reports, by uid.
    replicas: BTreeMap<&'a str, Replica<'a>>,
    /// What is assumed of devices of which neither admin nor agent says otherwise.
    defaults: Defaults,
}

impl<'a> Ledger<'a> {
    pub fn new(node: &'a ModelNode, defaults: Defaults) -> Ledger<'a> {
        Ledger { node, replicas: replicas(node), defaults }
    }

    /// The account as it will be once these are gone.
    pub fn without(node: &'a ModelNode, defaults: Defaults, given_back: impl Fn(&'a Assignment) -> bool) -> Ledger<'a> {
        let mut ledger = Ledger::new(node, defaults);
        for assignment in node.spec.assignments.iter().filter(|assignment| given_back(assignment)) {
            ledger.replicas.remove(assignment.uid.as_str());
        }
        ledger
    }

    /// Assignments of this node, in its spec or held by a worker.
    pub fn assignments(&self) -> u32 {
        u32::try_from(self.replicas.len()).unwrap_or(u32::MAX)
    }

    /// What the node offers to one more replica, of the GPUs that the engine can use and the selector matches.
    pub fn devices(&self, selector: &DeviceSelector) -> NodeDevices {
        let gpus = self.node.status.iter().flat_map(|status| &status.devices);
        let gpus = gpus.filter(|gpu| matches(selector, gpu)).filter_map(|gpu| self.gpu(gpu));
        NodeDevices { gpus: gpus.collect(), host: self.host(), defaults: self.defaults }
    }

    /// What each replica was promised of a device and holds there, in the order of their uids.
    pub fn shares(&self, device: &str) -> Vec<Share<'a>> {
        let share = |&(assignment, replica): &Replica<'a>| Share {
            assignment,
            replica,
            promised: assignment.map_or(Bytes::ZERO, |assignment| promised_on(assignment, device)),
            held: replica.map_or(Bytes::ZERO, |replica| held_on(replica, assignment.is_some(), device)),
        };
        self.replicas.values().map(share).collect()
    }

    /// Promised and held bytes on a device, one entry a replica.
    pub fn holdings(&self, device: &str) -> Vec<(Bytes, Bytes)> {
        self.shares(device).into_iter().map(|share| (share.promised, share.held)).collect()
    }

    /// Bytes of this GPU that are promised to replicas and that others use, and who those are; `None` where every promise can be kept.
    pub fn taken_by_others(&self, device: &str) -> Option<(Bytes, &'a DeviceStatus)> {
        let gpu = self.node.status.as_ref()?.devices.iter().find(|gpu| gpu.uuid == device)?;
        let lacking = overdrawn(gpu.total_bytes, gpu.used_by_others_bytes, self.holdings(device).into_iter(), Bytes::ZERO);
        (lacking > Bytes::ZERO).then_some((lacking, gpu))
    }

    fn gpu(&self, gpu: &DeviceStatus) -> Option<Device> {
        let backend = match gpu.backend {
            DeviceBackend::None => return None,
            DeviceBackend::Cuda => Backend::Cuda,
            DeviceBackend::Simulated => Backend::SimulatedGpu,
        };
        let policy = self.node.spec.devices.iter().find(|policy| policy.uuid == gpu.uuid);
        if policy.is_some_and(|policy| !policy.managed) {
            return None;
        }
        let margin = self.defaults.margin(gpu.total_bytes);
        let margin = policy.and_then(|policy| policy.margin_bytes).map_or(margin, |asked| asked.max(margin));
        let (overhead, uncertainty) = match &gpu.calibration {
            Some(calibration) => (calibration.overhead_bytes, calibration.uncertainty_bytes),
            None => (self.defaults.overhead_bytes, self.defaults.uncertainty()),
        };
        let (total, others, holdings) = (gpu.total_bytes, gpu.used_by_others_bytes, self.holdings(&gpu.uuid));
        let offered = offer(total, others, holdings.iter().copied(), margin);
        let overdrawn = overdrawn(total, others, holdings.into_iter(), margin);
        let holders = self.holders(gpu, overdrawn);
        Some(Device { id: gpu.uuid.clone(), backend, offered, margin, overhead, uncertainty, holders })
    }

    fn host(&self) -> Device {
        let (total, others) = match self.node.status.as_ref().and_then(|status| status.system.as_ref()) {
            Some(system) => (system.memory_bytes, system.memory_used_by_others_bytes),
            None => (Bytes::ZERO, Bytes::ZERO),
        };
        let margin = self.defaults.margin(total);
        let offered = offer(total, others, self.holdings(HOST).into_iter(), margin);
        Device { id: HOST.into(), offered, margin, ..Device::default() }
    }

    /// Who holds the GPU: replicas, with what they were promised or hold, and processes of others, as far as the agent saw them. What is promised
    /// beyond what the GPU has is had back first, and by nobody.
    fn holders(&self, gpu: &DeviceStatus, overdrawn: Bytes) -> Vec<Holder> {
        let replica = |share: Share<'_>| {
            // Of a worker whose assignment is gone nobody knows any more whose it was; it ends by itself.
            let assignment = share.assignment?;
            let owner = &assignment.model_deployment;
            let (namespace, deployment) = (owner.namespace.clone(), owner.name.clone());
            let who = Who::Replica { namespace, deployment, replica: assignment.replica.clone() };
            Some(Holder { who, bytes: share.promised.max(share.held) })
        };
        let process =
            |process: &DeviceProcess| Holder { who: Who::Process { pid: process.pid, name: process.name.clone() }, bytes: process.bytes };
        let holders = self.shares(&gpu.uuid).into_iter().filter_map(replica).chain(gpu.used_by.iter().map(process));
        let given_back = |holder: Holder| Holder { bytes: holder.bytes.saturating_sub(overdrawn), ..holder };
        holders.map(given_back).filter(|holder| holder.bytes > Bytes::ZERO).collect()
    }
}

/// By uid, what spec promises and what status reports, of those that are not gone.
fn replicas(node: &ModelNode) -> BTreeMap<&str, Replica<'_>> {
    let mut replicas: BTreeMap<&str, Replica<'_>> = BTreeMap::new();
    for assignment in &node.spec.assignments {
        replicas.entry(&assignment.uid).or_default().0 = Some(assignment);
    }
    let reported = node.status.iter().flat_map(|status| &status.replicas);
    for replica in reported.filter(|replica| replica.state != ReplicaState::Gone) {
        replicas.entry(&replica.uid).or_default().1 = Some(replica);
    }
    replicas
}

/// Whether the selector admits this GPU.
pub fn matches(selector: &DeviceSelector, gpu: &DeviceStatus) -> bool {
    let product = gpu.name.to_lowercase().contains(&selector.product.to_lowercase());
    product && gpu.total_bytes >= selector.min_memory
}

/// What the agent last said of an assignment.
pub fn replica<'a>(node: &'a ModelNode, uid: &str) -> Option<&'a ReplicaStatus> {
    node.status.as_ref()?.replicas.iter().find(|replica| replica.uid == uid)
}

fn promised_on(assignment: &Assignment, device: &str) -> Bytes {
    assignment.plan.devices.iter().filter(|on| on.id == device).map(|on| on.total_bytes).sum()
}

/// A worker whose assignment is gone still counts with what it was to take, in case it has not taken all of it yet.
fn held_on(replica: &ReplicaStatus, is_promised: bool, device: &str) -> Bytes {
    let on = replica.devices.iter().filter(|on| on.id == device);
    on.map(|on| on.measured_bytes.unwrap_or_default().max(if is_promised { Bytes::ZERO } else { on.predicted_bytes })).sum()
}
