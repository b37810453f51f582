//! The promises in one ModelNode: each is backed by a claim in a ModelDeployment's status, made after it and taken back after it.
//!
//! Promises are written on the version of the ModelNode that they were planned on, so their bytes were free at that moment; all that are due go in one write,
//! each planned on the ones before it, those of the highest priority first. Five rules keep replicas from being promised twice, whoever believes that it
//! leads:
//! - A claim is on one ModelNode, by its uid: when that is gone it is over, and one that another machine brings under the same name knows nothing of it.
//! - A claim is judged by knowledge of its ModelDeployment that is no older than what is known of the ModelNode; else that is read again first.
//! - A claim whose promise is missing and won't be made is first written down as withdrawn, in an annotation of the ModelNode. A promise that is still
//!   on its way was planned on an older version and fails; a promise planned on a newer one sees the annotation. Only then is the claim dropped.
//! - What was withdrawn is never promised again: assignment uids are used once.
//! - A promise is removed only when the agent reported its replica gone and no Pod of its worker runs, and in that write counts as withdrawn.

use std::collections::BTreeSet;

use k8s_openapi::jiff::Timestamp;
use kube::ResourceExt;
use stowage_crds::model_deployment::{PlacementState, PlacementStatus, ReplicaState};
use stowage_crds::model_node::{AssignedSource, Assignment, AssignmentState, MAX_ASSIGNMENTS, ModelDeploymentReference};
use stowage_crds::{ModelDeployment, ModelNode};
use stowage_placement::{Asked, Choice, ContextPolicy, PlanReport, choose};

use crate::cache::{Key, Revision};
use crate::clock::{after, whole_seconds};
use crate::ledger;
use crate::model_deployment::candidates::candidate;
use crate::model_deployment::reserved::Reserved;
use crate::model_deployment::validate::{Wanted, revision};
use crate::model_deployment::{models, preemption};
use crate::state::{State, is_live};
use crate::step::{Promises, Step, Target, Write};
use crate::workers::story;

/// On ModelNodes: uids of claims that were withdrawn, or ended, and whose ModelDeployment may not know it yet; separated by commas.
pub const WITHDRAWN_ANNOTATION: &str = "stowage.dev/withdrawn";

/// Whether it is written down that this claim has no promise and never will have one again.
pub fn is_withdrawn(node: &ModelNode, uid: &str) -> bool {
    withdrawn(node).contains(uid) && node.spec.assignments.iter().all(|assignment| assignment.uid != uid)
}

/// Whether this ModelNode, and not one that had its name before, is the one that the place was claimed on.
pub fn is_claimed_on(node: &ModelNode, placement: &PlacementStatus) -> bool {
    placement.model_node_uid.is_empty() || node.metadata.uid.as_deref() == Some(&placement.model_node_uid)
}

fn withdrawn(node: &ModelNode) -> BTreeSet<&str> {
    let annotation = node.annotations().get(WITHDRAWN_ANNOTATION).map(String::as_str).unwrap_or_default();
    annotation.split(',').filter(|uid| !uid.is_empty()).collect()
}

pub fn step(state: &State, name: &str, now: Timestamp) -> Step {
    let Some(node) = state.model_node(name) else { return Step::Done };
    if node.metadata.deletion_timestamp.is_some() {
        return Step::Done;
    }
    let view = View { state, node, name, now };
    view.step().unwrap_or_else(|confirm| confirm)
}

struct View<'a> {
    state: &'a State,
    node: &'a ModelNode,
    name: &'a str,
    now: Timestamp,
}

/// A claim on this node.
struct Claim<'a> {
    deployment: &'a ModelDeployment,
    placement: &'a PlacementStatus,
}

impl<'a> View<'a> {
    fn step(&self) -> Result<Step, Step> {
        let kept = self.kept()?;
        // What changes in the promises there are goes first: new ones are planned on what follows from it.
        if kept != self.node.spec.assignments {
            let promised = self.node.spec.assignments.iter().map(|assignment| assignment.uid.as_str());
            let ended: BTreeSet<&str> = promised.filter(|uid| kept.iter().all(|kept| kept.uid != *uid)).collect();
            let withdrawn = self.still_withdrawn().into_iter().chain(ended).collect();
            return Ok(self.write(kept, withdrawn));
        }
        let missing = self.missing();
        if missing.is_empty() {
            return Ok(Step::Done);
        }
        // With what is promised so far.
        let mut node = self.node.clone();
        let mut hopeless: BTreeSet<&str> = BTreeSet::new();
        for claim in &missing {
            self.must_be_fresh(&Key::of(claim.deployment))?;
            match self.promise(claim, &node) {
                Promise::Made(assignment) => node.spec.assignments.push(*assignment),
                Promise::Waits => {}
                Promise::Impossible => drop(hopeless.insert(&claim.placement.assignment_uid)),
            }
        }
        match node.spec.assignments == kept && hopeless.is_empty() {
            true => Ok(Step::Done),
            false => Ok(self.write(node.spec.assignments, self.still_withdrawn().into_iter().chain(hopeless).collect())),
        }
    }

    /// Claims whose promise is due.
    fn missing(&self) -> Vec<Claim<'a>> {
        let withdrawn = withdrawn(self.node);
        let is_promised = |uid: &str| self.node.spec.assignments.iter().any(|assignment| assignment.uid == uid);
        let is_due = |uid: &str| !is_promised(uid) && !withdrawn.contains(uid);
        self.claims().into_iter().filter(|claim| is_due(&claim.placement.assignment_uid)).collect()
    }

    /// Claims of all ModelDeployments on this node, those of the highest priority first.
    fn claims(&self) -> Vec<Claim<'a>> {
        let keys = preemption::in_order(self.state).into_iter();
        let deployments = keys.filter_map(|key| self.state.deployments.get(&key)).map(AsRef::as_ref).filter(|found| is_live(found));
        let claims = deployments.flat_map(|deployment| {
            let placements = deployment.status.iter().flat_map(|status| &status.placements);
            placements.map(move |placement| Claim { deployment, placement })
        });
        claims.filter(|claim| claim.placement.node == self.name && is_claimed_on(self.node, claim.placement)).collect()
    }

    /// The promises that stay, each as it should be now.
    fn kept(&self) -> Result<Vec<Assignment>, Step> {
        let mut kept = Vec::new();
        for assignment in &self.node.spec.assignments {
            if let Some(assignment) = self.keep(assignment)? {
                kept.push(assignment);
            }
        }
        Ok(kept)
    }

    fn keep(&self, assignment: &Assignment) -> Result<Option<Assignment>, Step> {
        if assignment.state == AssignmentState::Release {
            let gone = ledger::replica(self.node, &assignment.uid).is_some_and(|replica| replica.state == ReplicaState::Gone);
            let gone = gone && !story::lives(self.state, assignment);
            return Ok((!gone).then(|| assignment.clone()));
        }
        let owner = self.state.deployment(&assignment.model_deployment);
        let claim = owner.and_then(|owner| {
            let claimed = |placement: &&PlacementStatus| placement.assignment_uid == assignment.uid && placement.node == self.name;
            owner.status.iter().flat_map(|status| &status.placements).find(claimed).map(|placement| (owner, placement))
        });
        match claim {
            // A replica leaves its Service before it's taken away; whether it has, the step of the endpoints sees to.
            Some((owner, placement)) if placement.state == PlacementState::Releasing && self.is_routed(owner, placement) => {
                Ok(Some(assignment.clone()))
            }
            Some((owner, placement)) if placement.state == PlacementState::Releasing => {
                Ok(Some(self.released(assignment, owner.spec.termination_grace_period_seconds)))
            }
            Some((owner, _)) => Ok(Some(with_settings(assignment, owner))),
            None => {
                let ModelDeploymentReference { namespace, name, .. } = &assignment.model_deployment;
                self.must_be_fresh(&Key::new(namespace, name))?;
                let grace = owner.map_or(assignment.termination_grace_period_seconds, |owner| owner.spec.termination_grace_period_seconds);
                Ok(Some(self.released(assignment, grace)))
            }
        }
    }

    fn is_routed(&self, owner: &ModelDeployment, placement: &PlacementStatus) -> bool {
        let owner = Key::of(owner);
        let slice = self.state.slices.get(&Key::new(&owner.namespace, &placement.replica));
        slice.is_some() || self.state.in_flight.makes_slice(&owner, &placement.replica)
    }

    fn released(&self, assignment: &Assignment, grace_seconds: u32) -> Assignment {
        let deadline = whole_seconds(after(self.now, grace_seconds.into()));
        Assignment { state: AssignmentState::Release, deadline: Some(deadline), ..assignment.clone() }
    }

    fn must_be_fresh(&self, key: &Key) -> Result<(), Step> {
        let as_of = Revision::of(self.node);
        match self.state.deployments.fresh(key) < as_of {
            true => Err(Step::Confirm { target: Target::Deployment(key.clone()), as_of }),
            false => Ok(()),
        }
    }

    /// What must stay written down: withdrawn claims that their ModelDeployments still carry.
    fn still_withdrawn(&self) -> BTreeSet<&str> {
        let claimed: BTreeSet<&str> = self.claims().iter().map(|claim| claim.placement.assignment_uid.as_str()).collect();
        withdrawn(self.node).into_iter().filter(|uid| claimed.contains(uid)).collect()
    }

    fn write(&self, assignments: Vec<Assignment>, withdrawn: BTreeSet<&str>) -> Step {
        Step::write(Write::Promises(Box::new(Promises {
            node: self.name.to_owned(),
            version: self.node.resource_version().unwrap_or_default(),
            assignments,
            withdrawn: withdrawn.into_iter().collect::<Vec<_>>().join(","),
        })))
    }

    /// By what the ModelNode alone says, and the promises made before this one; whatever others claim there meanwhile.
    fn promise(&self, claim: &Claim<'_>, node: &ModelNode) -> Promise {
        let Claim { deployment, placement } = claim;
        let wanted = Wanted::of(deployment);
        let outdated = placement.revision != wanted.revision || placement.state != PlacementState::Claimed;
        if outdated || node.spec.assignments.len() >= MAX_ASSIGNMENTS {
            return Promise::Impossible;
        }
        let found = match models::find(self.state, &wanted.origin) {
            Ok(found) => found,
            // A new leader has to read the header first.
            Err(refusal) if refusal.reason == stowage_placement::Reason::Pending => return Promise::Waits,
            Err(_) => return Promise::Impossible,
        };
        if found.only_on.as_ref().is_some_and(|nodes| !nodes.contains(self.name)) {
            return Promise::Impossible;
        }
        let asked = Asked {
            num_ctx: Some(placement.num_ctx),
            context_policy: ContextPolicy::Exact,
            min_context: None,
            ..wanted.spec_asked.clone()
        };
        let reserved = Reserved::from_a_promise(self.state, &wanted, node, self.now);
        let node = candidate(self.state, &wanted, &found, self.now, node, &|_| false, &reserved);
        match choose(&found.summary, &asked, &[node]) {
            Choice::Placed { report, .. } if report.plan.gpu_layers.0 >= placement.gpu_layers => {
                Promise::Made(Box::new(assignment(deployment, &wanted, placement, report, &found.source)))
            }
            _ => Promise::Impossible,
        }
    }
}

enum Promise {
    Made(Box<Assignment>),
    Waits,
    Impossible,
}

fn assignment(
    deployment: &ModelDeployment,
    wanted: &Wanted,
    placement: &PlacementStatus,
    report: PlanReport,
    found: &stowage_crds::model_deployment::ResolvedSource,
) -> Assignment {
    let source = wanted.settled(deployment).and_then(|settled| settled.source.as_ref()).unwrap_or(found);
    let spec = &deployment.spec;
    Assignment {
        uid: placement.assignment_uid.clone(),
        replica: placement.replica.clone(),
        model_deployment: ModelDeploymentReference {
            namespace: wanted.key.namespace.clone(),
            name: wanted.key.name.clone(),
            uid: wanted.uid.clone(),
        },
        revision: placement.revision.clone(),
        state: AssignmentState::Serve,
        deadline: None,
        source: AssignedSource {
            model: spec.model.clone(),
            commit: source.commit.clone(),
            digest: source.digest.clone(),
            size_bytes: source.size_bytes,
        },
        request: report.request,
        plan: report.plan,
        max_num_ctx_on_gpu: Some(report.fit.max_num_ctx_on_gpu),
        max_num_ctx: Some(report.fit.max_num_ctx),
        parameters: spec.parameters.clone(),
        system: spec.system.clone(),
        template: spec.template.clone(),
        aliases: spec.aliases.clone(),
        termination_grace_period_seconds: spec.termination_grace_period_seconds,
    }
}

/// What changes without a reload follows the spec at once, as long as the revision is the same.
fn with_settings(assignment: &Assignment, owner: &ModelDeployment) -> Assignment {
    if owner.spec.paused || revision(owner) != assignment.revision {
        return assignment.clone();
    }
    let spec = &owner.spec;
    Assignment {
        parameters: spec.parameters.clone(),
        system: spec.system.clone(),
        template: spec.template.clone(),
        aliases: spec.aliases.clone(),
        termination_grace_period_seconds: spec.termination_grace_period_seconds,
        ..assignment.clone()
    }
}

#[cfg(test)]
mod tests;
