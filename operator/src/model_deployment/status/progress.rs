//! Whether a rollout comes further: when it last did, and whether that was too long ago.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::jiff::Timestamp;
use stowage_crds::ModelDeployment;
use stowage_crds::model_deployment::{ModelDeploymentStatus, PlacementState, PlacementStatus};
use stowage_placement::Reason;

use super::Standing;
use crate::clock::{after, whole_seconds};

/// When the rollout of this ModelDeployment counts as stalled if nothing moves before; `None` where there is no rollout.
pub fn deadline(deployment: &ModelDeployment) -> Option<Timestamp> {
    let since = deployment.status.as_ref()?.progressed_at.as_ref()?;
    Some(after(since.0, deployment.spec.progress_deadline_seconds.into()))
}

/// How far a rollout is, counted so that nothing which goes back and forth (a load that fails and is tried again) counts for more each time.
#[derive(PartialEq)]
struct Stage {
    serving: usize,
    others: usize,
}

impl Stage {
    fn of(placements: &[PlacementStatus], revision: &str) -> Stage {
        let is_new = |placement: &&PlacementStatus| placement.revision == revision && placement.state != PlacementState::Releasing;
        let serving = placements.iter().filter(is_new).filter(|placement| placement.state == PlacementState::Ready).count();
        Stage { serving, others: placements.len() - placements.iter().filter(is_new).count() }
    }

    fn is_beyond(&self, before: &Stage) -> bool {
        self.serving > before.serving || self.others < before.others
    }
}

/// Whether more of a model file came down; what came stays, even where the download is interrupted.
fn downloaded_more(before: &[PlacementStatus], now: &[PlacementStatus]) -> bool {
    now.iter().filter(|placement| placement.reason == Reason::Downloading).any(|placement| {
        let known = before.iter().find(|before| before.assignment_uid == placement.assignment_uid);
        known.is_some_and(|known| known.reason == Reason::Downloading && placement.percent > known.percent)
    })
}

impl Standing<'_> {
    /// Whether every replica that is asked for serves where it may stay, and nothing else is left.
    pub(super) fn is_rolled_out(&self) -> bool {
        let serving = self.current().filter(|slot| slot.is_ready()).count();
        serving >= self.wanted.replicas && self.outcome.slots.iter().all(|slot| slot.stays())
    }

    /// When the rollout last came a step further.
    pub(super) fn progressed_at(&self, previous: &ModelDeploymentStatus, now: Timestamp) -> Option<Time> {
        if self.is_rolled_out() || self.deployment.spec.paused {
            return None;
        }
        let before = previous.progressed_at.clone().filter(|_| self.wanted.settled(self.deployment).is_some());
        let placements = self.placements();
        let stage = |placements: &[PlacementStatus]| Stage::of(placements, &self.wanted.revision);
        let further = stage(&placements).is_beyond(&stage(&previous.placements)) || downloaded_more(&previous.placements, &placements);
        before.filter(|_| !further).or_else(|| Some(whole_seconds(now)))
    }

    /// Whether the rollout has not come further for too long.
    pub(super) fn is_stalled(&self, progressed_at: Option<&Time>, now: Timestamp) -> bool {
        let allowed = self.deployment.spec.progress_deadline_seconds;
        progressed_at.is_some_and(|since| after(since.0, allowed.into()) <= now)
    }
}
