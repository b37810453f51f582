//! Places that are claimed, or are being claimed, and not promised yet: no other replica is given their bytes.

use std::collections::BTreeMap;

use stowage_crds::model_deployment::{PlacementState, PlacementStatus};
use stowage_crds::{ModelDeployment, ModelNode};
use stowage_placement::{Bytes, HOST, NodeDevices};

use crate::cache::Key;
use crate::model_deployment::validate::revision;
use crate::model_node::promises;
use crate::state::{State, is_live};

/// By the names of their nodes.
#[derive(Default)]
pub struct Claims<'a> {
    claims: BTreeMap<&'a str, Vec<&'a PlacementStatus>>,
}

impl<'a> Claims<'a> {
    /// All that may still be promised.
    pub fn outstanding(state: &'a State) -> Claims<'a> {
        let mut found = Claims::default();
        for (key, deployment) in state.deployments.iter().filter(|(_, deployment)| is_live(deployment)) {
            for claim in claims(state, key, deployment) {
                let node = state.model_node(&claim.node);
                if node.is_some_and(|node| may_be_promised(node, claim)) {
                    found.claims.entry(&claim.node).or_default().push(claim);
                }
            }
        }
        found
    }

    /// Takes from what the node offers what is claimed there; says by how many replicas.
    pub fn take(&self, node: &str, devices: &mut NodeDevices) -> u32 {
        let claims = self.claims.get(node).map(Vec::as_slice).unwrap_or_default();
        for on in claims.iter().flat_map(|claim| &claim.devices) {
            take(devices, &on.id, on.predicted_bytes);
        }
        u32::try_from(claims.len()).unwrap_or(u32::MAX)
    }
}

/// Takes bytes of a device from what is on offer.
pub fn take(devices: &mut NodeDevices, id: &str, bytes: Bytes) {
    let device = if id == HOST { Some(&mut devices.host) } else { devices.gpus.iter_mut().find(|device| device.id == id) };
    if let Some(device) = device {
        device.offered = device.offered.saturating_sub(bytes);
    }
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
