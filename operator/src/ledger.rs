//! What is promised, held and on offer on each node, counted as [`stowage_crds::ledger`] does, and when more will be.

use k8s_openapi::jiff::Timestamp;
pub use stowage_crds::ledger::{Ledger, matches, replica};
use stowage_crds::model_node::{Assignment, AssignmentState};

use crate::clock::after;

/// After its deadline, a release that is this much late no longer counts as about to come.
const OVERDUE_SECONDS: i64 = 60;

/// When the bytes of an assignment that is being released should be free at the latest; `None` where it is not being released.
pub fn freed_by(assignment: &Assignment) -> Option<Timestamp> {
    match (assignment.state, &assignment.deadline) {
        (AssignmentState::Release, Some(deadline)) => Some(after(deadline.0, OVERDUE_SECONDS)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use stowage_crds::ModelNode;
    use stowage_crds::model_deployment::{DeviceSelector, ReplicaState};
    use stowage_crds::model_node::DeviceBackend;
    use stowage_placement::{Bytes, Defaults};

    use super::*;
    use crate::testing::{assignment, gpu_node, replica_status};

    fn offered(node: &ModelNode) -> Bytes {
        Ledger::new(node, Defaults::default()).devices(&DeviceSelector::default()).gpus[0].offered
    }

    #[test]
    fn a_node_offers_what_is_neither_promised_nor_held_nor_used_by_others() {
        let mut node = gpu_node("n1", Bytes::gib(24));
        assert_eq!(offered(&node), Defaults::default().offered_by(Bytes::gib(24)));
        let all = offered(&node);
        node.spec.assignments = vec![assignment("a", Bytes::gib(4))];
        assert_eq!(offered(&node), all.saturating_sub(Bytes::gib(4)));
        node.status.as_mut().unwrap().replicas = vec![replica_status("a", ReplicaState::Ready, Some(Bytes::gib(5)))];
        assert_eq!(offered(&node), all.saturating_sub(Bytes::gib(5)), "held more than promised");
        node.status.as_mut().unwrap().devices[0].used_by_others_bytes = Bytes::gib(2);
        assert_eq!(offered(&node), all.saturating_sub(Bytes::gib(7)));
    }

    #[test]
    fn a_worker_without_an_assignment_counts_what_it_holds_until_it_is_gone() {
        let mut node = gpu_node("n1", Bytes::gib(24));
        let all = offered(&node);
        node.status.as_mut().unwrap().replicas = vec![replica_status("orphan", ReplicaState::Draining, Some(Bytes::gib(5)))];
        assert_eq!(offered(&node), all.saturating_sub(Bytes::gib(5)));
        node.status.as_mut().unwrap().replicas[0].state = ReplicaState::Gone;
        assert_eq!(offered(&node), all);
    }

    #[test]
    fn bytes_being_released_count_until_the_assignment_is_removed() {
        let mut node = gpu_node("n1", Bytes::gib(24));
        let all = offered(&node);
        node.spec.assignments = vec![Assignment { state: AssignmentState::Release, ..assignment("a", Bytes::gib(4)) }];
        node.status.as_mut().unwrap().replicas = vec![replica_status("a", ReplicaState::Gone, None)];
        assert_eq!(offered(&node), all.saturating_sub(Bytes::gib(4)));
        let later = Ledger::without(&node, Defaults::default(), |assignment| assignment.uid == "a").devices(&DeviceSelector::default());
        assert_eq!(later.gpus[0].offered, all);
    }

    #[test]
    fn a_gpu_that_is_unmanaged_or_without_a_backend_or_not_selected_is_not_on_offer() {
        let mut node = gpu_node("n1", Bytes::gib(24));
        let selector = DeviceSelector { product: "h100".into(), ..DeviceSelector::default() };
        assert!(Ledger::new(&node, Defaults::default()).devices(&selector).gpus.is_empty());
        node.spec.devices = vec![stowage_crds::model_node::DevicePolicy { uuid: "GPU-n1".into(), managed: false, margin_bytes: None }];
        assert!(Ledger::new(&node, Defaults::default()).devices(&DeviceSelector::default()).gpus.is_empty());
        node.spec.devices.clear();
        node.status.as_mut().unwrap().devices[0].backend = DeviceBackend::None;
        assert!(Ledger::new(&node, Defaults::default()).devices(&DeviceSelector::default()).gpus.is_empty());
    }
}
