//! What a node offers, and one replica is not to have: places that others claim, or are about to claim, and that are not promised yet; what
//! ModelDeployments of higher priority wait for; and host memory for which the scheduler was seen to have no room.

use std::collections::BTreeMap;

use k8s_openapi::jiff::Timestamp;
use kube::ResourceExt;
use stowage_crds::model_deployment::{PlacementState, PlacementStatus};
use stowage_crds::model_node::Assignment;
use stowage_crds::{ModelDeployment, ModelDeploymentStatus, ModelNode};
use stowage_placement::{Bytes, DeviceKind, HOST, Holder, NodeDevices, PlanReport, Who};

use crate::cache::Key;
use crate::model_deployment::preemption;
use crate::model_deployment::validate::Wanted;
use crate::model_node::promises;
use crate::state::{State, is_live};
use crate::workers::story;

/// By the names of the nodes.
pub struct Reserved<'a> {
    claims: BTreeMap<&'a str, Vec<Claim<'a>>>,
    awaited: BTreeMap<&'a str, Vec<&'a PlanReport>>,
    room_for_pods: BTreeMap<String, Bytes>,
}

struct Claim<'a> {
    owner: &'a Key,
    placement: &'a PlacementStatus,
}

impl<'a> Reserved<'a> {
    /// From one that is to be claimed for what is wanted, on whichever node.
    pub fn from_a_claim(state: &'a State, wanted: &Wanted, now: Timestamp) -> Reserved<'a> {
        let mut claims: BTreeMap<&'a str, Vec<Claim<'a>>> = BTreeMap::new();
        let in_flight = state.in_flight.statuses();
        for (key, deployment) in state.deployments.iter().filter(|(_, deployment)| is_live(deployment)) {
            // Of an older revision of its own none is promised any more.
            let counts = |claim: &&PlacementStatus| *key != wanted.key || claim.revision == wanted.revision;
            for placement in self::claims(deployment, in_flight.get(key).copied()).into_iter().filter(counts) {
                if state.model_node(&placement.node).is_some_and(|node| may_be_promised(node, placement)) {
                    claims.entry(&placement.node).or_default().push(Claim { owner: key, placement });
                }
            }
        }
        Reserved { claims, awaited: awaited(state, wanted), room_for_pods: room_for_pods(story::without_room(state, now)) }
    }

    /// From one that is claimed, and to be promised on this node: whatever others claim meanwhile.
    pub fn from_a_promise(state: &'a State, wanted: &Wanted, node: &ModelNode, now: Timestamp) -> Reserved<'a> {
        let assignments = node.spec.assignments.iter().map(|assignment| (node, assignment));
        let without_room = assignments.filter(|(_, assignment)| story::finds_no_room(state, assignment, now));
        Reserved { claims: BTreeMap::new(), awaited: awaited(state, wanted), room_for_pods: room_for_pods(without_room) }
    }

    /// Takes all of it from what the node offers; says how many claims that were.
    pub fn take(&self, node: &str, devices: &mut NodeDevices) -> u32 {
        if let Some(room) = self.room_for_pods.get(node) {
            devices.host.offered = devices.host.offered.min(*room);
        }
        for on in self.awaited.get(node).into_iter().flatten().flat_map(|report| &report.plan.devices) {
            take(devices, &on.id, on.total_bytes);
        }
        let claims = self.claims.get(node).map(Vec::as_slice).unwrap_or_default();
        for Claim { owner, placement } in claims {
            for on in &placement.devices {
                let taken = take(devices, &on.id, on.predicted_bytes);
                if let Some(gpu) = devices.gpus.iter_mut().find(|gpu| gpu.id == on.id && taken > Bytes::ZERO) {
                    let (namespace, deployment) = (owner.namespace.clone(), owner.name.clone());
                    let who = Who::Replica { namespace, deployment, replica: placement.replica.clone() };
                    gpu.holders.push(Holder { who, bytes: taken });
                }
            }
        }
        u32::try_from(claims.len()).unwrap_or(u32::MAX)
    }
}

fn awaited<'a>(state: &'a State, wanted: &Wanted) -> BTreeMap<&'a str, Vec<&'a PlanReport>> {
    let mut awaited: BTreeMap<&str, Vec<&PlanReport>> = BTreeMap::new();
    for (node, report) in preemption::awaited(state, wanted) {
        awaited.entry(node).or_default().push(report);
    }
    awaited
}

/// Of host memory, what a Pod may ask for as far as is known, on nodes where the scheduler finds no room for one: less than that one, since others than ours ask
/// for memory too.
fn room_for_pods<'n>(without_room: impl Iterator<Item = (&'n ModelNode, &'n Assignment)>) -> BTreeMap<String, Bytes> {
    let mut room = BTreeMap::new();
    for (node, assignment) in without_room {
        for on in assignment.plan.devices.iter().filter(|on| on.kind == DeviceKind::Host) {
            let less: &mut Bytes = room.entry(node.name_any()).or_insert(Bytes(u64::MAX));
            *less = (*less).min(on.total_bytes.saturating_sub(Bytes(1)));
        }
    }
    room
}

/// Takes bytes of a device from what is on offer, as far as they are; says how many those were.
fn take(devices: &mut NodeDevices, id: &str, bytes: Bytes) -> Bytes {
    let device = if id == HOST { Some(&mut devices.host) } else { devices.gpus.iter_mut().find(|device| device.id == id) };
    let Some(device) = device else { return Bytes::ZERO };
    let taken = bytes.min(device.offered);
    device.offered = device.offered.saturating_sub(taken);
    taken
}

/// Those of one ModelDeployment, written or being written, each once.
fn claims<'a>(deployment: &'a ModelDeployment, in_flight: Option<&'a ModelDeploymentStatus>) -> Vec<&'a PlacementStatus> {
    let placements = |status: &'a ModelDeploymentStatus| status.placements.iter().filter(|place| place.state == PlacementState::Claimed);
    let mut claims: Vec<&PlacementStatus> = deployment.status.iter().flat_map(placements).collect();
    for new in in_flight.into_iter().flat_map(placements) {
        if claims.iter().all(|known| known.assignment_uid != new.assignment_uid) {
            claims.push(new);
        }
    }
    claims
}

fn may_be_promised(node: &ModelNode, claim: &PlacementStatus) -> bool {
    let is_promised = node.spec.assignments.iter().any(|assignment| assignment.uid == claim.assignment_uid);
    promises::is_claimed_on(node, claim) && !is_promised && !promises::is_withdrawn(node, &claim.assignment_uid)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use serde_json::json;
    use stowage_crds::model_node::AssignmentState;

    use super::*;
    use crate::clock::after;
    use crate::testing::{assignment, deployment, gpu_node, listed, now, state_with, worker_settings};
    use crate::workers::pods;

    /// Of 8 GiB, what is on offer of the host's memory on each node, to a claim, and to a promise on it.
    fn offered(state: &State, now: Timestamp) -> Vec<(Bytes, Bytes)> {
        let wanted = Wanted::of(&deployment("m"));
        let claim = Reserved::from_a_claim(state, &wanted, now);
        let of = |reserved: &Reserved<'_>, node: &ModelNode| {
            let mut devices = NodeDevices::new(Vec::new(), Bytes::gib(8));
            reserved.take(&node.name_any(), &mut devices);
            devices.host.offered
        };
        let nodes = state.model_nodes.iter().map(|(_, node)| node.as_ref());
        nodes.map(|node| (of(&claim, node), of(&Reserved::from_a_promise(state, &wanted, node, now), node))).collect()
    }

    #[test]
    fn less_host_memory_is_on_offer_than_the_scheduler_found_no_room_for_and_on_that_node_alone() {
        let mut nodes = ["n1", "n2"].map(|name| gpu_node(name, Bytes::gib(8)));
        for (uid, gib) in [("small", 3), ("large", 5), ("runs", 1)] {
            let mut promise = assignment(uid, Bytes::ZERO);
            let host = promise.plan.devices.iter_mut().find(|on| on.id == HOST).unwrap();
            (host.kind, host.total_bytes) = (DeviceKind::Host, Bytes::gib(gib));
            nodes[0].spec.assignments.push(promise);
        }
        let pod_of = |promise: &Assignment| {
            let is_scheduled = if promise.uid == "runs" { "True" } else { "False" };
            let condition = json!({"type": "PodScheduled", "status": is_scheduled, "reason": "Unschedulable", "lastTransitionTime": now()});
            let mut pod = pods::pod(promise, "n1", "stowage-system", &worker_settings());
            pod.status = Some(serde_json::from_value(json!({"conditions": [condition]})).unwrap());
            pod
        };
        let pods = nodes[0].spec.assignments.iter().map(pod_of).collect::<Vec<_>>();
        let mut state = state_with(nodes.to_vec(), Vec::new());
        (state.workers, state.pods) = (Some(Arc::new(worker_settings())), listed(pods));
        let all = (Bytes::gib(8), Bytes::gib(8));
        let below = |bytes: Bytes| (Bytes(bytes.0 - 1), Bytes(bytes.0 - 1));
        assert_eq!(offered(&state, after(now(), 9)), [all, all], "room may come");
        assert_eq!(offered(&state, after(now(), 10)), [below(Bytes::gib(3)), all]);
        nodes[0].spec.assignments[0].state = AssignmentState::Release;
        state.model_nodes = listed(nodes);
        assert_eq!(offered(&state, after(now(), 10)), [below(Bytes::gib(5)), all], "a Pod that goes says no more what there is room for");
    }
}
