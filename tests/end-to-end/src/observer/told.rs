//! The reasons that statuses gave.

use kube::runtime::watcher::Event;
use stowage_crds::{ModelDeployment, ModelNode};
use stowage_placement::Reason;

/// Those that a ModelDeployment's status gives: in its conditions, for its placements, in its fit report.
pub(super) fn by_deployment(event: &Event<ModelDeployment>) -> Vec<Reason> {
    let status = of(event).and_then(|deployment| deployment.status.as_ref());
    let Some(status) = status else { return Vec::new() };
    let conditions = status.conditions.iter().filter_map(|condition| Reason::named(&condition.reason));
    let placements = status.placements.iter().map(|placement| placement.reason);
    conditions.chain(placements).chain(status.fit.iter().map(|report| report.fit.reason)).collect()
}

/// Those that a ModelNode's status gives for its replicas.
pub(super) fn by_node(event: &Event<ModelNode>) -> Vec<Reason> {
    let status = of(event).and_then(|node| node.status.as_ref());
    status.iter().flat_map(|status| &status.replicas).filter_map(|replica| replica.reason).collect()
}

fn of<K>(event: &Event<K>) -> Option<&K> {
    match event {
        Event::Apply(object) | Event::InitApply(object) => Some(object),
        Event::Init | Event::InitDone | Event::Delete(_) => None,
    }
}
