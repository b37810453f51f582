//! Places that are claimed, or are being claimed, and not promised yet: no other replica is given their bytes.

use std::collections::BTreeMap;

use stowage_crds::model_deployment::{PlacementState, PlacementStatus};
use stowage_crds::{ModelDeployment, ModelNode};
use stowage_placement::{Bytes, HOST, Holder, NodeDevices, Who};

use crate::cache::Key;
use crate::model_deployment::validate::revision;
use crate::model_node::promises;
use crate::state::{State, is_live};

/// By the names of their nodes.
#[derive(Default)]
pub struct Claims<'a> {
    claims: BTreeMap<&'a str, Vec<Claim<'a>>>,
}

struct Claim<'a> {
    owner: &'a Key,
    placement: &'a PlacementStatus,
}

impl<'a> Claims<'a> {
    /// All that may still be promised.
    pub fn outstanding(state: &'a State) -> Claims<'a> {
        let mut found = Claims::default();
        for (key, deployment) in state.deployments.iter().filter(|(_, deployment)| is_live(deployment)) {
            for placement in claims(state, key, deployment) {
                let node = state.model_node(&placement.node);
                if node.is_some_and(|node| may_be_promised(node, placement)) {
                    found.claims.entry(&placement.node).or_default().push(Claim { owner: key, placement });
                }
            }
        }
        found
    }

    /// Takes from what the node offers what is claimed there, for the replicas that are to have it; says how many those are.
    pub fn take(&self, node: &str, devices: &mut NodeDevices) -> u32 {
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
pub fn take(devices: &mut NodeDevices, id: &str, bytes: Bytes) -> Bytes {
    let device = if id == HOST { Some(&mut devices.host) } else { devices.gpus.iter_mut().find(|device| device.id == id) };
    let Some(device) = device else { return Bytes::ZERO };
    let taken = bytes.min(device.offered);
    device.offered = device.offered.saturating_sub(taken);
    taken
}

/// Those of one ModelDeployment, each once. Of an older revision none is promised any more.
fn claims<'a>(state: &'a State, key: &Key, deployment: &'a ModelDeployment) -> Vec<&'a PlacementStatus> {
    let is_claim = |placement: &&PlacementStatus| placement.state == PlacementState::Claimed;
    let placements = |status: &'a stowage_crds::ModelDeploymentStatus| status.placements.iter().filter(is_claim);
    let mut claims: Vec<&PlacementStatus> = deployment.status.iter().flat_map(placements).collect();
    for new in state.in_flight.status(key).into_iter().flat_map(placements) {
        if claims.iter().all(|known| known.assignment_uid != new.assignment_uid) {
            claims.push(new);
        }
    }
    if !claims.is_empty() {
        let current = revision(deployment);
        claims.retain(|claim| claim.revision == current);
    }
    claims
}

fn may_be_promised(node: &ModelNode, claim: &PlacementStatus) -> bool {
    let is_promised = node.spec.assignments.iter().any(|assignment| assignment.uid == claim.assignment_uid);
    promises::is_claimed_on(node, claim) && !is_promised && !promises::is_withdrawn(node, &claim.assignment_uid)
}
