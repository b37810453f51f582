//! What users are told as Events: the transitions between one status and the next, so that every leader tells the same and nothing is told twice.

use stowage_crds::ModelDeploymentStatus;
use stowage_crds::conditions::{ConditionType, find};
use stowage_crds::model_deployment::{PlacementState, PlacementStatus};
use stowage_placement::Reason;

use crate::model_deployment::slots::predicted;
use crate::model_deployment::validate::Wanted;
use crate::step::Notice;

/// Downloads are told of in steps of so many percent.
const PERCENT_STEP: u32 = 25;

pub fn between(wanted: &Wanted, old: &ModelDeploymentStatus, new: &ModelDeploymentStatus) -> Vec<Notice> {
    let notice = |warning, reason, message: String| Notice { key: wanted.key.clone(), uid: wanted.uid.clone(), warning, reason, message };
    let mut notices: Vec<Notice> = Vec::new();
    for placement in &new.placements {
        let before = old.placements.iter().find(|before| before.assignment_uid == placement.assignment_uid);
        let told = of_placement(before, placement);
        notices.extend(told.map(|(warning, reason, message)| notice(warning, reason, message)));
    }
    let changed = |condition, status: &str| {
        let (now, before) = (find(&new.conditions, condition)?, find(&old.conditions, condition));
        let told_before = before.is_some_and(|before| before.status == now.status && before.reason == now.reason);
        (now.status == status && !told_before).then_some(now)
    };
    let stalled = changed(ConditionType::Progressing, "False").filter(|found| found.reason == Reason::ProgressDeadlineExceeded.as_str());
    for found in [changed(ConditionType::Scheduled, "False"), changed(ConditionType::Degraded, "True"), stalled].into_iter().flatten() {
        let Some(reason) = Reason::named(&found.reason) else { continue };
        // Those of a rollout are told with the placements that they move.
        if !matches!(reason, Reason::Pending | Reason::RollingOut | Reason::ReplacingForRoom | Reason::Paused) {
            notices.push(notice(!matches!(reason, Reason::WaitingForRoom | Reason::Preempting), reason, found.message.clone()));
        }
    }
    notices
}

fn of_placement(before: Option<&PlacementStatus>, now: &PlacementStatus) -> Option<(bool, Reason, String)> {
    let PlacementStatus { replica, node, processor, num_ctx, .. } = now;
    let Some(before) = before else {
        let message = format!("{replica} is placed on {node}: {processor}, num_ctx {num_ctx}, {} predicted", predicted(now));
        return Some((false, Reason::Assigned, message));
    };
    match (before.state, now.state) {
        (before, PlacementState::Ready) if before != PlacementState::Ready => {
            let measured = now.measured_bytes.map(|bytes| format!(", {bytes} measured")).unwrap_or_default();
            Some((false, Reason::Serving, format!("{replica} serves on {node}: {processor}{measured}")))
        }
        (before, PlacementState::Releasing) if before != PlacementState::Releasing => {
            let normal = matches!(now.reason, Reason::Draining | Reason::ReplacingForRoom | Reason::NodeUnschedulable | Reason::MovingUp);
            Some((!normal, now.reason, format!("{replica} is taken from {node}: {}", now.message)))
        }
        (_, PlacementState::Placed) => on_the_way(before, now),
        _ => None,
    }
}

fn on_the_way(before: &PlacementStatus, now: &PlacementStatus) -> Option<(bool, Reason, String)> {
    let PlacementStatus { replica, node, .. } = now;
    match now.reason {
        Reason::Downloading => {
            let step = |percent: Option<u32>| percent.unwrap_or(0) / PERCENT_STEP;
            let news = before.reason != Reason::Downloading || step(before.percent) < step(now.percent);
            let message = format!("{replica}: the model file is on its way to {node}, {} %", now.percent.unwrap_or(0));
            news.then_some((false, Reason::Downloading, message))
        }
        Reason::Assigned | Reason::Pending | Reason::WorkerStarting | Reason::Loading => None,
        reason => (before.reason != reason).then(|| (true, reason, format!("{replica} on {node}: {}", now.message))),
    }
}
