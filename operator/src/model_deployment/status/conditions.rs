//! The conditions, each a small question with its answer in numbers.

use stowage_crds::conditions::{ConditionType, Observation};
use stowage_placement::{Reason, Refusal};

use super::{Standing, told};
/// Reasons of an obstacle that passes by itself.
fn is_passing(reason: Reason) -> bool {
    matches!(reason, Reason::WaitingForRoom | Reason::ReplacingForRoom | Reason::Preempting | Reason::Pending)
}

impl Standing<'_> {
    pub(super) fn observations(&self) -> Vec<Observation> {
        vec![self.is_ready(), self.is_scheduled(), self.is_cached(), self.is_progressing(), self.is_degraded()]
    }

    fn is_ready(&self) -> Observation {
        let (ready, asked) = (self.ready(), self.wanted.replicas);
        let counted = format!("{ready} of {asked} replicas serve");
        match ready >= asked {
            true if asked == 0 => observe(ConditionType::Ready, true, Reason::ScaledToZero, "No replica is asked for."),
            true => observe(ConditionType::Ready, true, Reason::Serving, counted),
            false => {
                let (reason, message) = self.reason();
                observe(ConditionType::Ready, false, reason, format!("{counted}. {message}"))
            }
        }
    }

    fn is_scheduled(&self) -> Observation {
        let (placed, asked) = (self.current().count(), self.wanted.replicas);
        if placed >= asked {
            let mut places: Vec<String> =
                self.current().map(|slot| format!("{} ({})", slot.placement.node, slot.placement.processor)).collect();
            places.sort();
            let message = match places.is_empty() {
                true => "No replica is asked for.".into(),
                false => format!("{placed} of {asked} replicas have a place: {}", places.join(", ")),
            };
            return observe(ConditionType::Scheduled, true, Reason::Assigned, message);
        }
        let (reason, message) = match &self.outcome.obstacle {
            Some(Refusal { reason, message }) => (*reason, message.clone()),
            None if self.deployment.spec.paused => (Reason::Paused, "Changes wait until spec.paused is false.".into()),
            None => (Reason::RollingOut, format!("{placed} of {asked} replicas of the newest revision have a place")),
        };
        observe(ConditionType::Scheduled, false, reason, message)
    }

    fn is_cached(&self) -> Observation {
        let has_file = |node: &str| self.found.as_ref().is_ok_and(|found| found.present_on.contains(node));
        let loaded = |reason| {
            matches!(reason, Reason::WorkerStarting | Reason::Loading | Reason::Serving | Reason::RunningOnCPU | Reason::PartlyOnCPU)
        };
        let mut lacking = self.current().map(|slot| &slot.placement).filter(|placed| !loaded(placed.reason) && !has_file(&placed.node));
        match lacking.next() {
            Some(placement) => observe(ConditionType::ModelCached, false, placement.reason, told(placement)),
            None if self.current().next().is_none() => match self.found {
                Err(Refusal { reason, message }) => observe(ConditionType::ModelCached, false, *reason, message.clone()),
                Ok(_) => observe(ConditionType::ModelCached, false, Reason::Pending, "The model is placed nowhere yet."),
            },
            None => {
                observe(ConditionType::ModelCached, true, Reason::AsAsked, "The model's file lies on every node that it was placed on.")
            }
        }
    }

    fn is_progressing(&self) -> Observation {
        let serving = self.current().filter(|slot| slot.is_ready()).count();
        if self.stalled && self.outcome.obstacle.as_ref().is_none_or(|obstacle| is_passing(obstacle.reason)) {
            let (_, why) = self.reason();
            let message = format!("No step further for {} s. {why}", self.deployment.spec.progress_deadline_seconds);
            return observe(ConditionType::Progressing, false, Reason::ProgressDeadlineExceeded, message);
        }
        if let Some(Refusal { reason, message }) = &self.outcome.obstacle {
            return observe(ConditionType::Progressing, is_passing(*reason), *reason, message.clone());
        }
        if self.is_rolled_out() {
            let message = format!("All replicas run revision {}.", self.wanted.revision);
            return observe(ConditionType::Progressing, true, Reason::RolledOut, message);
        }
        if self.deployment.spec.paused {
            return observe(ConditionType::Progressing, false, Reason::Paused, "Changes wait until spec.paused is false.");
        }
        let message = format!("{serving} of {} replicas serve revision {}", self.wanted.replicas, self.wanted.revision);
        observe(ConditionType::Progressing, true, Reason::RollingOut, message)
    }

    fn is_degraded(&self) -> Observation {
        let on_cpu = |reason| matches!(reason, Reason::RunningOnCPU | Reason::PartlyOnCPU);
        let reasons = self.live().map(|slot| slot.placement.reason).filter(|reason| on_cpu(*reason));
        if let Some(changed) = self.live().map(|slot| &slot.placement).find(|placement| placement.reason == Reason::ModelFileChanged) {
            return observe(ConditionType::Degraded, true, changed.reason, told(changed));
        }
        let leaving = self.live().filter(|slot| slot.is_current && slot.is_ready()).find_map(|slot| Some((slot, slot.leaving.as_ref()?)));
        if let Some((slot, Refusal { reason, message })) = leaving {
            let replica = &slot.placement.replica;
            return observe(
                ConditionType::Degraded,
                true,
                *reason,
                format!("{replica} serves until another has taken its place: {message}"),
            );
        }
        let mut serving = self.live().filter(|slot| slot.is_ready()).map(|slot| &slot.placement);
        if let Some(unwatched) = serving.find(|placement| placement.reason == Reason::NodeNotReady) {
            return observe(ConditionType::Degraded, true, unwatched.reason, told(unwatched));
        }
        if let Some(Refusal { reason, message }) = self.live().find_map(|slot| slot.crowded.as_ref()) {
            return observe(ConditionType::Degraded, true, *reason, message.clone());
        }
        // RunningOnCPU comes before PartlyOnCPU.
        match reasons.min() {
            Some(reason) => observe(ConditionType::Degraded, true, reason, self.shortage()),
            None => observe(ConditionType::Degraded, false, Reason::AsAsked, "Where it serves, it serves as was preferred."),
        }
    }
}

fn observe(condition: ConditionType, status: bool, reason: Reason, message: impl Into<String>) -> Observation {
    Observation { condition, status, reason, message: message.into() }
}
