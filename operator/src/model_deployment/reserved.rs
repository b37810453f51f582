//! What a node offers, and one replica is not to have: places that others claim, or are about to claim, and that are not promised yet; and what
//! ModelDeployments of higher priority wait for.

use std::collections::BTreeMap;

use stowage_crds::model_deployment::{PlacementState, PlacementStatus};
use stowage_crds::{ModelDeployment, ModelDeploymentStatus, ModelNode};
use stowage_placement::{Bytes, HOST, Holder, NodeDevices, PlanReport, Who};

use crate::cache::Key;
use crate::model_deployment::preemption;
use crate::model_deployment::validate::Wanted;
use crate::model_node::promises;
use crate::state::{State, is_live};

/// By the names of the nodes.
#[derive(Default)]
pub struct Reserved<'a> {
    claims: BTreeMap<&'a str, Vec<Claim<'a>>>,
    awaited: BTreeMap<&'a str, Vec<&'a PlanReport>>,
}

struct Claim<'a> {
    owner: &'a Key,
    placement: &'a PlacementStatus,
}

impl<'a> Reserved<'a> {
    /// From one that is to be claimed for what is wanted.
    pub fn from_a_claim(state: &'a State, wanted: &Wanted) -> Reserved<'a> {
        let mut reserved = Reserved::from_a_promise(state, wanted);
        let in_flight = state.in_flight.statuses();
        for (key, deployment) in state.deployments.iter().filter(|(_, deployment)| is_live(deployment)) {
            // Of an older revision of its own none is promised any more.
            let counts = |claim: &&PlacementStatus| *key != wanted.key || claim.revision == wanted.revision;
            for placement in claims(deployment, in_flight.get(key).copied()).into_iter().filter(counts) {
                if state.model_node(&placement.node).is_some_and(|node| may_be_promised(node, placement)) {
                    reserved.claims.entry(&placement.node).or_default().push(Claim { owner: key, placement });
                }
            }
        }
        reserved
    }

    /// From one that is claimed, and to be promised: whatever others claim meanwhile.
    pub fn from_a_promise(state: &'a State, wanted: &Wanted) -> Reserved<'a> {
        let mut reserved = Reserved::default();
        for (node, report) in preemption::awaited(state, wanted) {
            reserved.awaited.entry(node).or_default().push(report);
        }
        reserved
    }

    /// Takes all of it from what the node offers; says how many claims that were.
    pub fn take(&self, node: &str, devices: &mut NodeDevices) -> u32 {
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
