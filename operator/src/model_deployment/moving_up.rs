//! Replicas that run on CPU, in part or wholly, though a GPU was preferred: they move there once one has had room for all of it for long enough.
//!
//! One replica of the whole cluster moves at a time, and only where nothing else is on the move in its ModelDeployment. The new one is started beside the
//! old one where `maxSurge` allows it; else the old one goes first, where `maxUnavailable` allows that.

use stowage_crds::ModelDeploymentStatus;
use stowage_placement::{PlacementPolicy, Reason, Refusal};

use crate::clock::after;
use crate::model_deployment::candidates::Decided;
use crate::model_deployment::rollout::{Outcome, Situation};
use crate::model_deployment::slots::Slot;
use crate::step::Remark;

/// How the replica with this index among the slots gets to a better place.
struct Move {
    slot: usize,
    to: Decided,
    /// The new place has its bytes beside the old one.
    beside: bool,
}

/// Why a replica leaves its place for one on this node.
pub fn leaves_for(node: &str) -> Refusal {
    Refusal { reason: Reason::MovingUp, message: format!("{node} has had room for all of it on GPU for a while") }
}

impl Situation<'_> {
    /// Moves a replica up, or remembers since when one could.
    pub(super) fn move_up(&self, outcome: &mut Outcome) {
        let known = self.state.memory.room_above.get(&self.wanted.uid);
        let uid = self.wanted.uid.clone();
        match (self.possible_move(outcome), known) {
            (None, None) => {}
            (None, Some(_)) => outcome.remark = Some(Remark::NoRoomAbove { uid }),
            (Some(_), None) if self.state.move_up_after > 0 => outcome.remark = Some(Remark::RoomAbove { uid }),
            (Some(_), Some(since)) if self.now < after(*since, self.state.move_up_after) => {}
            (Some(_), _) if self.is_any_moving() => {}
            (Some(possible), _) => self.make(outcome, possible),
        }
    }

    /// Whether a replica of any ModelDeployment is on the way to a better place, or about to be.
    fn is_any_moving(&self) -> bool {
        let written = self.state.deployments.iter().filter_map(|(_, other)| other.status.as_ref());
        written.chain(self.state.in_flight.statuses().into_values()).any(is_moving)
    }

    fn make(&self, outcome: &mut Outcome, Move { slot, to, beside }: Move) {
        let leaves = outcome.slots[slot].placement.assignment_uid.clone();
        if beside {
            self.claim(outcome, to);
            if let Some(new) = outcome.slots.last_mut() {
                new.placement.replaces = leaves;
            }
        } else {
            let Refusal { reason, message } = leaves_for(to.node());
            outcome.slots[slot].release(reason, message);
        }
    }

    /// Nothing else is on the move, a replica is not wholly on the GPU that was preferred, and now there is one that has room for it.
    fn possible_move(&self, outcome: &Outcome) -> Option<Move> {
        let asked = self.wanted.asked(outcome.num_ctx);
        let prefers_gpu = asked.policy == PlacementPolicy::PreferGPU && asked.num_gpu < 0;
        let rests = |slot: &Slot| slot.stays() && slot.is_ready() && slot.placement.reason != Reason::NodeNotReady;
        let at_rest = outcome.obstacle.is_none() && outcome.slots.iter().all(rests);
        if !prefers_gpu || !at_rest || outcome.staying() != self.wanted.replicas || self.just_refused().is_some() {
            return None;
        }
        let found = self.found.as_ref().ok()?;
        let worst = outcome.slots.iter().enumerate().min_by_key(|(_, slot)| slot.placement.gpu_layers);
        let (slot, worst) = worst.filter(|(_, slot)| slot.placement.gpu_layers < slot.placement.total_layers)?;
        let whole = |gone: &[&str]| {
            let place = self.choose(found, &asked, outcome, Some(gone)).ok()?;
            (place.report.plan.gpu_layers == place.report.plan.total_layers && place.report.fit.fits).then_some(place)
        };
        let may_miss_one = outcome.ready() > self.wanted.replicas.saturating_sub(self.wanted.max_unavailable);
        if self.wanted.max_surge > 0
            && let Some(to) = whole(&[])
        {
            return Some(Move { slot, to, beside: true });
        }
        let to = may_miss_one.then(|| whole(&[&worst.placement.assignment_uid])).flatten()?;
        Some(Move { slot, to, beside: false })
    }
}

/// Whether it has a replica on the way to a better place.
fn is_moving(status: &ModelDeploymentStatus) -> bool {
    status.placements.iter().any(|placement| !placement.replaces.is_empty() || placement.reason == Reason::MovingUp)
}
