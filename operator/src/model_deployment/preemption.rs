//! Priority: a ModelDeployment that finds no place as good as it asked for takes the bytes of replicas of lower priority.
//!
//! It names the assignments that are to make way in its own status; their owners release them when they see that, and the bytes are had back as always. Until
//! then what is to become free there is kept from all of lower priority.

use std::collections::BTreeSet;

use k8s_openapi::jiff::Timestamp;
use kube::ResourceExt;
use stowage_crds::model_deployment::PlacementState;
use stowage_crds::model_node::{Assignment, AssignmentState};
use stowage_crds::{ModelDeployment, ModelDeploymentStatus, ModelNode};
use stowage_placement::{Asked, Bytes, Choice, PlanReport, Reason, Refusal, choose};

use crate::cache::Key;
use crate::model_deployment::candidates::{Decided, candidate, candidates, record};
use crate::model_deployment::models::Found;
use crate::model_deployment::reserved::Reserved;
use crate::model_deployment::rollout::{Outcome, Situation};
use crate::model_deployment::validate::Wanted;
use crate::state::{State, is_live};

/// After so many refusals of one revision in a row by agents nobody is made to leave until they are forgotten.
const MOST_REFUSALS: u32 = 3;

/// All ModelDeployments, in the order in which they are decided on: the highest priority first, then the oldest.
pub fn in_order(state: &State) -> Vec<Key> {
    let created = |deployment: &ModelDeployment| deployment.metadata.creation_timestamp.as_ref().map(|time| time.0);
    let mut ranked: Vec<(std::cmp::Reverse<i32>, Option<Timestamp>, Key)> = state
        .deployments
        .iter()
        .map(|(key, deployment)| (std::cmp::Reverse(state.priority(deployment).unwrap_or(0)), created(deployment), key.clone()))
        .collect();
    ranked.sort();
    ranked.into_iter().map(|(_, _, key)| key).collect()
}

/// Who takes the place of this assignment, where a ModelDeployment of higher priority is to have it.
pub fn preempted_by(state: &State, deployment: &ModelDeployment, assignment_uid: &str) -> Option<Refusal> {
    let names = |status: &ModelDeploymentStatus| status.preempts.iter().any(|uid| uid == assignment_uid);
    let priority = state.priority(deployment)?;
    let still_names = |key: &Key| state.in_flight.statuses().get(key).copied().is_none_or(names);
    let mut others =
        state.deployments.iter().filter(|(key, other)| is_live(other) && other.status.as_ref().is_some_and(names) && still_names(key));
    let (key, above) = others.find_map(|(key, other)| Some((key, state.priority(other).filter(|above| *above > priority)?)))?;
    let message = format!("{key}, whose priority is {above}, takes the bytes of this replica, whose priority is {priority}");
    Some(Refusal { reason: Reason::Preempted, message })
}

/// The plan for which a ModelDeployment waits until its bytes are free, and the node where it does.
fn waits_for(status: &ModelDeploymentStatus) -> Option<(&str, &PlanReport)> {
    let reason = status.summary.as_ref()?.reason.as_str();
    let waits = [Reason::Preempting, Reason::WaitingForRoom].iter().any(|waits| waits.as_str() == reason);
    if waits { Some((&status.decision.as_ref()?.node, status.fit.as_ref()?)) } else { None }
}

/// What those of higher priority wait for, each with the name of the node where it does; what one is about to say goes before what it said.
pub fn awaited<'a>(state: &'a State, wanted: &Wanted) -> Vec<(&'a str, &'a PlanReport)> {
    let priority = |deployment: &ModelDeployment| state.priority(deployment).unwrap_or(0);
    let own = state.deployments.get(&wanted.key).map_or(0, |deployment| priority(deployment));
    let in_flight = state.in_flight.statuses();
    let waiting = state.deployments.iter().filter_map(|(key, other)| {
        let status = in_flight.get(key).copied().or(other.status.as_ref())?;
        Some((other, waits_for(status)?))
    });
    waiting.filter(|(other, _)| is_live(other) && priority(other) > own).map(|(_, awaited)| awaited).collect()
}

/// Who would have to leave a node, and the place that there is then.
struct Preemption<'a> {
    victims: Vec<Victim<'a>>,
    place: Decided,
}

#[derive(Clone, Copy)]
struct Victim<'a> {
    priority: i32,
    bytes: Bytes,
    assignment: &'a Assignment,
}

impl Situation<'_> {
    /// Where this ModelDeployment has a place only if replicas of lower priority leave, has them leave; says whether it does.
    pub(super) fn preempt(&self, outcome: &mut Outcome, found: &Found, asked: &Asked) -> bool {
        let Some(priority) = self.state.priority(self.deployment) else { return false };
        let refused = self.state.refused(self.wanted).filter(|refused| self.now < refused.remembered_until());
        if refused.is_some_and(|refused| refused.times >= MOST_REFUSALS) {
            return false;
        }
        let reserved = Reserved::from_a_claim(self.state, self.wanted, self.now);
        let possible = candidates(self.state, found).filter_map(|node| self.preemption(found, asked, node, priority, &reserved));
        let cost = |preemption: &Preemption<'_>| {
            let victims = &preemption.victims;
            let highest = victims.iter().map(|victim| victim.priority).max();
            (highest, victims.len(), victims.iter().map(|victim| victim.bytes).sum::<Bytes>(), preemption.place.node().to_owned())
        };
        let Some(Preemption { victims, place }) = possible.min_by_key(cost) else { return false };
        let named: Vec<String> =
            victims.iter().map(|victim| format!("{} (priority {})", victim.assignment.replica, victim.priority)).collect();
        let message = format!(
            "With priority {priority} it takes the place of {} on {}. Then: {}",
            named.join(", "),
            place.node(),
            place.report.fit.message
        );
        outcome.preempts = victims.iter().map(|victim| victim.assignment.uid.clone()).collect();
        outcome.obstacle = Some(Refusal { reason: Reason::Preempting, message });
        outcome.fit = Some(place.without_layers());
        true
    }

    /// The fewest and least of lower priority whose leaving makes room for what is asked, on this node.
    fn preemption<'a>(
        &self,
        found: &Found,
        asked: &Asked,
        node: &'a ModelNode,
        priority: i32,
        reserved: &Reserved<'_>,
    ) -> Option<Preemption<'a>> {
        let mut lower: Vec<Victim<'a>> = node.spec.assignments.iter().filter_map(|assignment| self.victim(assignment, priority)).collect();
        lower.sort_by(|a, b| (a.priority, b.bytes, &a.assignment.uid).cmp(&(b.priority, a.bytes, &b.assignment.uid)));
        let place = |victims: &[Victim<'_>]| self.place_without(found, asked, node, victims, reserved);
        if lower.is_empty() || place(&lower).is_none() {
            return None;
        }
        // Those of the highest priority are spared first, then the smallest.
        let mut victims = lower.clone();
        for spared in lower.iter().rev() {
            let fewer: Vec<Victim<'a>> = victims.iter().filter(|victim| victim.assignment.uid != spared.assignment.uid).copied().collect();
            if !fewer.is_empty() && place(&fewer).is_some() {
                victims = fewer;
            }
        }
        let place = place(&victims)?;
        Some(Preemption { victims, place })
    }

    fn victim<'a>(&self, assignment: &'a Assignment, priority: i32) -> Option<Victim<'a>> {
        let owner = self.state.deployment(&assignment.model_deployment)?;
        let below = self.state.priority(owner).filter(|below| *below < priority)?;
        let bytes = assignment.plan.devices.iter().map(|on| on.total_bytes).sum();
        (assignment.state != AssignmentState::Release).then_some(Victim { priority: below, bytes, assignment })
    }

    /// The place on this node, as good as asked, once these and all that is being released are gone.
    fn place_without(
        &self,
        found: &Found,
        asked: &Asked,
        node: &ModelNode,
        victims: &[Victim<'_>],
        reserved: &Reserved<'_>,
    ) -> Option<Decided> {
        let gone: BTreeSet<&str> = victims.iter().map(|victim| victim.assignment.uid.as_str()).collect();
        let given_back = |assignment: &Assignment| gone.contains(assignment.uid.as_str()) || assignment.state == AssignmentState::Release;
        let node = candidate(self.state, self.wanted, found, self.now, node, &given_back, reserved);
        match choose(&found.summary, asked, std::slice::from_ref(&node)) {
            Choice::Placed { report, .. } if report.fit.fits => Some(Decided { report, record: record(self.state, node, 1) }),
            _ => None,
        }
    }

    /// Releases what has to make way for others.
    pub(super) fn make_way_for_others(&self, outcome: &mut Outcome) {
        for slot in outcome.slots.iter_mut().filter(|slot| !slot.is_releasing() && slot.placement.state != PlacementState::Claimed) {
            if let Some(why) = preempted_by(self.state, self.deployment, &slot.placement.assignment_uid) {
                slot.release(why.reason, why.message);
            }
        }
    }
}

/// Why nothing can be placed, where the class that is named does not exist.
pub fn unknown_class(state: &State, deployment: &ModelDeployment) -> Option<Refusal> {
    state.priority(deployment).is_none().then(|| Refusal {
        reason: Reason::InvalidRequest,
        message: format!(
            "priorityClassName {:?} of {}: there is no such PriorityClass",
            deployment.spec.priority_class_name,
            deployment.name_any()
        ),
    })
}
