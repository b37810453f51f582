//! What would make it fit. Each change is planned like a request of its own, so it does what it says.

mod device;
mod release;
mod request;

use crate::device_plan::NodeDevices;
use crate::fit_report::Suggestion;
use crate::fit_report::considered::{Considered, Limits, Outcome, consider};
use crate::request::Asked;

/// Best first: what keeps the most of what was asked, then what others would have to give up, and last what only other hardware gives.
pub(super) fn of(considered: &Considered<'_>, limits: Limits) -> Vec<Suggestion> {
    if considered.outcome == Outcome::Fits {
        return Vec::new();
    }
    let changes = [
        request::smaller_batch(considered),
        request::cache_type(considered),
        request::context(considered, limits),
        request::fewer_sequences(considered),
        request::best_split(considered),
        release::of(considered),
        device::of(considered),
    ];
    changes.into_iter().flatten().collect()
}

/// The changed request as a suggestion, if with it the request is met as wished.
fn met(considered: &Considered<'_>, asked: &Asked, change: &str, value: String, message: String) -> Option<Suggestion> {
    let changed = consider(considered.engine, considered.summary, asked, considered.devices).ok()?;
    (changed.outcome == Outcome::Fits).then(|| suggestion(&changed, change, value, message))
}

/// Changed devices as a suggestion, if on them the request is met as wished.
fn met_on(devices: &NodeDevices, considered: &Considered<'_>, change: &str, value: String, message: String) -> Option<Suggestion> {
    let asked = resolved(considered);
    let changed = consider(considered.engine, considered.summary, &asked, devices).ok()?;
    (changed.outcome == Outcome::Fits).then(|| suggestion(&changed, change, value, message))
}

fn suggestion(changed: &Considered<'_>, change: &str, value: String, message: String) -> Suggestion {
    Suggestion { change: change.into(), value, processor: changed.plan().processor.clone(), message }
}

fn resolved(considered: &Considered<'_>) -> Asked {
    considered.asked.resolved(considered.request.num_ctx)
}
