//! Which ModelNodes there should be: one for each Node whose agent has made its Lease, for as long as the Node lives.

use std::collections::BTreeSet;

use kube::ResourceExt;
use stowage_crds::names;

use crate::state::State;
use crate::step::{Step, Write};

/// Every node that may need a ModelNode, or may have one too many.
pub fn names(state: &State) -> BTreeSet<String> {
    let with_lease = state.leases.iter().filter_map(|(_, lease)| node_of_lease(&lease.name_any()));
    with_lease.chain(state.model_nodes.keys().into_iter().map(|key| key.name)).collect()
}

/// The node that a Lease speaks for, by its name.
fn node_of_lease(lease: &str) -> Option<String> {
    let prefix = names::node_lease("");
    lease.strip_prefix(&prefix).filter(|node| !node.is_empty()).map(str::to_owned)
}

pub fn step(state: &State, name: &str) -> Step {
    let node_uid = state.node(name).and_then(|node| node.uid());
    let model_node = state.model_node(name);
    let owner = model_node.and_then(|node| node.owner_references().first().map(|owner| owner.uid.clone()));
    match (node_uid, model_node) {
        (Some(node_uid), None) if state.ready_until(name).is_some() => {
            Step::write(Write::MakeModelNode { name: name.to_owned(), node_uid })
        }
        // Of a Node of that name that is no more; with it went the machine that the promises were made on.
        (node_uid, Some(model_node)) if owner.is_some() && node_uid != owner && model_node.metadata.deletion_timestamp.is_none() => {
            let (uid, version) = (model_node.uid().unwrap_or_default(), model_node.resource_version().unwrap_or_default());
            Step::write(Write::RemoveModelNode { name: name.to_owned(), uid, version })
        }
        _ => Step::Done,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cache::Key;
    use crate::testing::{gpu_node, lease, node, now, state_with};
    use stowage_placement::Bytes;

    #[test]
    fn a_lease_and_a_node_make_a_model_node_and_neither_does_alone() {
        let mut state = state_with(Vec::new(), Vec::new());
        state.hear(vec![lease("n1", 0)], now());
        assert_eq!(step(&state, "n1"), Step::Done);
        state.nodes.assume(node("n1"));
        assert_eq!(names(&state), BTreeSet::from(["n1".to_owned()]));
        assert_eq!(step(&state, "n1"), Step::write(Write::MakeModelNode { name: "n1".into(), node_uid: "uid-n1".into() }));
    }

    #[test]
    fn a_model_node_goes_with_its_node_even_when_another_of_that_name_came() {
        let mut state = state_with(vec![gpu_node("n1", Bytes::gib(8))], Vec::new());
        assert_eq!(step(&state, "n1"), Step::Done);
        let mut other = node("n1");
        other.metadata.uid = Some("another".into());
        other.metadata.resource_version = Some("900".into());
        state.nodes.assume(other);
        assert!(matches!(step(&state, "n1"), Step::Write(decision) if matches!(decision.write, Write::RemoveModelNode { .. })));
        state.nodes.confirm(Key::cluster("n1"), None, crate::cache::Revision(901));
        assert!(matches!(step(&state, "n1"), Step::Write(decision) if matches!(decision.write, Write::RemoveModelNode { .. })));
    }
}
