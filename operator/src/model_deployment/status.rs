//! How a ModelDeployment stands, in its status: the places, the summary that `kubectl get` prints, and the conditions with the numbers.

mod conditions;
pub mod progress;

use k8s_openapi::jiff::Timestamp;
use stowage_crds::model_deployment::{DecisionRecord, ModelDeploymentStatus, PlacementState, PlacementStatus, Resolved, Summary};
use stowage_crds::{ModelDeployment, names};
use stowage_placement::fit_report::ModelDescription;
use stowage_placement::{PlanReport, Reason, Refusal};

use crate::clock::whole_seconds;
use crate::model_deployment::candidates::Decided;
use crate::model_deployment::models::Found;
use crate::model_deployment::rollout::{Outcome, count};
use crate::model_deployment::slots::{Slot, predicted, vram};
use crate::model_deployment::validate::Wanted;

/// All that a status is made of.
pub struct Standing<'a> {
    pub deployment: &'a ModelDeployment,
    pub wanted: &'a Wanted,
    pub found: &'a Result<Found, Refusal>,
    pub outcome: &'a Outcome,
    pub fit: Option<PlanReport>,
    /// The rollout has not come further for too long.
    pub stalled: bool,
}

/// The whole status. Nothing in it changes with time alone, but for what a deadline brings.
pub fn compute(
    deployment: &ModelDeployment,
    wanted: &Wanted,
    found: &Result<Found, Refusal>,
    outcome: &Outcome,
    now: Timestamp,
) -> ModelDeploymentStatus {
    let previous = deployment.status.clone().unwrap_or_default();
    let same_revision = wanted.settled(deployment).is_some();
    let (fit, decision) = decided(outcome, &previous, same_revision);
    let mut standing = Standing { deployment, wanted, found, outcome, fit, stalled: false };
    let progressed_at = standing.progressed_at(&previous, now);
    standing.stalled = standing.is_stalled(progressed_at.as_ref(), now);
    let mut conditions = previous.conditions;
    stowage_crds::conditions::set(&mut conditions, &standing.observations(), deployment.metadata.generation, whole_seconds(now));
    ModelDeploymentStatus {
        observed_generation: deployment.metadata.generation,
        replicas: count(standing.live().count()),
        ready_replicas: count(standing.ready()),
        updated_replicas: count(standing.current().count()),
        ready: format!("{}/{}", standing.ready(), wanted.replicas),
        selector: format!("{}={}", names::MODEL_DEPLOYMENT_LABEL, wanted.key.name),
        model: standing.model().or_else(|| previous.model.filter(|_| same_revision)),
        resolved: Some(standing.resolved()),
        summary: Some(standing.summary()),
        fit: standing.fit.clone(),
        decision,
        preempts: outcome.preempts.clone(),
        progressed_at,
        placements: standing.placements(),
        conditions,
    }
}

/// The fit report and what it stands on. Where it comes out the same again, what it was first decided on stays: a node's version changes with
/// whatever is said of it.
fn decided(outcome: &Outcome, previous: &ModelDeploymentStatus, same_revision: bool) -> (Option<PlanReport>, Option<DecisionRecord>) {
    match &outcome.fit {
        Some(Decided { report, .. }) if previous.fit.as_ref() == Some(report) && previous.decision.is_some() => {
            (previous.fit.clone(), previous.decision.clone())
        }
        Some(Decided { report, record }) => (Some(report.clone()), Some(record.clone())),
        None if same_revision => (previous.fit.clone(), previous.decision.clone()),
        None => (None, None),
    }
}

/// With lists that the API server keeps as maps in one order, so that two statuses can be compared.
pub fn in_order(mut status: ModelDeploymentStatus) -> ModelDeploymentStatus {
    status.placements.sort_by(|a, b| a.replica.cmp(&b.replica));
    for placement in &mut status.placements {
        placement.devices.sort_by(|a, b| a.id.cmp(&b.id));
    }
    status.conditions.sort_by(|a, b| a.type_.cmp(&b.type_));
    status
}

impl Standing<'_> {
    fn live(&self) -> impl Iterator<Item = &Slot> {
        self.outcome.slots.iter().filter(|slot| !slot.is_releasing())
    }

    fn current(&self) -> impl Iterator<Item = &Slot> {
        self.live().filter(|slot| slot.is_current)
    }

    fn ready(&self) -> usize {
        self.live().filter(|slot| slot.is_ready()).count()
    }

    /// The worst first.
    fn placements(&self) -> Vec<PlacementStatus> {
        let mut placements: Vec<PlacementStatus> = self.outcome.slots.iter().map(|slot| slot.placement.clone()).collect();
        placements.sort_by(|a, b| badness(a).cmp(&badness(b)).then_with(|| a.replica.cmp(&b.replica)));
        placements
    }

    /// The replica that the columns speak of: the worst of the newest revision, else of any.
    fn worst(&self) -> Option<&PlacementStatus> {
        let worst = |slots: &mut dyn Iterator<Item = &Slot>| -> Option<String> {
            slots.map(|slot| &slot.placement).min_by_key(|placement| badness(placement)).map(|placement| placement.replica.clone())
        };
        let replica = worst(&mut self.current()).or_else(|| worst(&mut self.live()))?;
        self.live().map(|slot| &slot.placement).find(|placement| placement.replica == replica)
    }

    /// Of what is loaded, whatever became of its file since.
    fn model(&self) -> Option<ModelDescription> {
        let found = self.found.as_ref().ok().map(|found| found.summary.describe());
        let known = self.deployment.status.as_ref().and_then(|status| status.model.clone());
        if self.is_held() { known.or(found) } else { found }
    }

    /// Whether a replica of the newest revision has a place.
    fn is_held(&self) -> bool {
        self.outcome.slots.iter().any(|slot| slot.is_current && slot.placement.state != PlacementState::Claimed)
    }

    /// What was settled stays so while a replica of the revision has a place.
    fn resolved(&self) -> Resolved {
        let settled = self.wanted.settled(self.deployment).and_then(|settled| settled.source.clone());
        let found = self.found.as_ref().ok().map(|found| found.source.clone());
        let source = if self.is_held() { settled.or(found) } else { found.or(settled) };
        Resolved { revision: self.wanted.revision.clone(), num_ctx: self.outcome.num_ctx, source }
    }

    fn summary(&self) -> Summary {
        let max_num_ctx_on_gpu = self.fit.as_ref().map(|fit| fit.fit.max_num_ctx_on_gpu);
        let reason = self.reason().0.as_str().to_owned();
        let Some(placement) = self.worst() else {
            let num_ctx = self.outcome.num_ctx.or_else(|| self.fit.as_ref().map(|fit| fit.request.num_ctx));
            return Summary { num_ctx, reason, max_num_ctx_on_gpu, ..Summary::default() };
        };
        Summary {
            processor: placement.processor.clone(),
            num_ctx: Some(placement.num_ctx),
            layers: format!("{}/{}", placement.gpu_layers, placement.total_layers),
            vram: vram(placement).to_string(),
            node: placement.node.clone(),
            reason,
            predicted: predicted(placement),
            measured: placement.measured_bytes.map(|bytes| bytes.to_string()).unwrap_or_default(),
            speed: placement.speed.clone(),
            max_num_ctx_on_gpu,
        }
    }

    /// Why it is as it is, in one word and in full.
    fn reason(&self) -> (Reason, String) {
        if let Some(Refusal { reason, message }) = &self.outcome.obstacle {
            return (*reason, message.clone());
        }
        if self.wanted.replicas == 0 {
            return (Reason::ScaledToZero, "No replica is asked for.".into());
        }
        match self.worst() {
            _ if self.deployment.spec.paused && self.current().count() < self.wanted.replicas => {
                (Reason::Paused, "Changes wait until spec.paused is false.".into())
            }
            Some(placement) if placement.state == PlacementState::Ready && placement.reason == Reason::Serving => {
                (Reason::AsAsked, "All is as asked.".into())
            }
            Some(placement) if matches!(placement.reason, Reason::RunningOnCPU | Reason::PartlyOnCPU) => {
                (placement.reason, self.shortage())
            }
            Some(placement) => (placement.reason, told(placement)),
            None => (Reason::Pending, "A place is being sought.".into()),
        }
    }

    /// What is missing for the whole model on GPU, with the numbers.
    fn shortage(&self) -> String {
        let fit = self.fit.as_ref().filter(|fit| !fit.fit.fits).map(|fit| fit.fit.message.clone());
        fit.unwrap_or_else(|| "When it was placed, the GPUs offered too little for all of it.".into())
    }
}

fn told(placement: &PlacementStatus) -> String {
    let percent = placement.percent.map(|percent| format!(" ({percent} %)")).unwrap_or_default();
    let message = if placement.message.is_empty() { placement.reason.meaning().trim().to_owned() } else { placement.message.clone() };
    format!("{} on {}: {message}{percent}", placement.replica, placement.node)
}

/// What is smaller is worse: no progress, then on the way, then serving on CPU, then serving on GPU.
fn badness(placement: &PlacementStatus) -> (u8, u32) {
    let stage = match placement.state {
        PlacementState::Releasing => 4,
        PlacementState::Ready => 3,
        _ => match placement.reason {
            Reason::Assigned | Reason::WorkerStarting => 1,
            Reason::Downloading | Reason::Loading => 2,
            _ => 0,
        },
    };
    (stage, placement.gpu_layers)
}
