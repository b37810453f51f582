//! What becomes of ModelDeployments that are decided on while the writes for others are on their way.

use std::collections::BTreeMap;
use std::sync::Arc;

use stowage_crds::ModelDeploymentStatus;
use stowage_crds::model_deployment::PlacementState;
use stowage_placement::{Bytes, Defaults};

use super::interleavings::HIGH;
use super::{items, next_step};
use crate::cache::Key;
use crate::model_deployment::apply::Answer;
use crate::state::State;
use crate::step::{Decision, Item, Promises, Step, Write};
use crate::testing::cluster::Cluster;
use crate::testing::{gpu_node, lease, listed, now, priority_class, state_with};

/// Room for two replicas.
const GPU: Bytes = Bytes::mib(1900);

/// A leader whose writes wait on their way until they are let through.
struct Burst {
    cluster: Cluster,
    state: State,
    sent: BTreeMap<Item, Arc<Decision>>,
}

impl Burst {
    fn new(nodes: &[&str], deployments: &[&str]) -> Burst {
        let nodes = || nodes.iter().map(|name| gpu_node(name, GPU));
        let mut cluster = Cluster::with_nodes(nodes());
        for name in deployments {
            cluster.apply_deployment(name, |_| {});
        }
        let mut state = state_with(Vec::new(), cluster.deployments.objects.values().cloned().collect());
        state.hear(nodes().map(|node| lease(&node.metadata.name.unwrap_or_default(), 0)).collect(), now());
        state.nodes = listed(cluster.nodes.objects.values().cloned());
        state.model_nodes = listed(cluster.model_nodes.objects.values().cloned());
        state.priority_classes = listed([priority_class(HIGH, 1000)]);
        Burst { cluster, state, sent: BTreeMap::new() }
    }

    /// Goes through everything once; what is to be written is on its way then.
    fn pass(&mut self) {
        for item in items(&self.state) {
            self.settle(item);
        }
    }

    fn settle(&mut self, item: Item) {
        loop {
            match next_step(&self.state, &item, now()) {
                Step::Done => return,
                Step::Confirm { target, as_of } => self.state.confirm(self.cluster.read(&target), as_of),
                Step::Remember(remark) => self.state.memory.remember(remark, now()),
                Step::Write(decision) => {
                    let decision = Arc::new(*decision);
                    self.state.in_flight.writes(item.clone(), decision.clone());
                    self.sent.insert(item.clone(), decision);
                }
            }
        }
    }

    /// The write for this item is taken, and the answer heard.
    fn answer(&mut self, item: &Item) -> Answer {
        let decision = self.sent.remove(item).unwrap();
        let answer = self.cluster.send(&decision.write).unwrap();
        self.state.in_flight.ended(item);
        self.state.assume(answer.clone());
        answer
    }

    fn answer_all(&mut self) {
        let items: Vec<Item> = self.sent.keys().cloned().collect();
        items.iter().for_each(|item| drop(self.answer(item)));
    }

    /// The write for this item never arrives.
    fn fail(&mut self, item: &Item) {
        self.sent.remove(item).unwrap();
        self.state.in_flight.ended(item);
    }

    /// The status of this ModelDeployment that is on its way.
    fn status(&self, name: &str) -> Option<&ModelDeploymentStatus> {
        match &self.sent.get(&of(name))?.write {
            Write::Status { status, .. } => Some(status),
            _ => None,
        }
    }

    fn reason(&self, name: &str) -> &str {
        &self.status(name).unwrap().summary.as_ref().unwrap().reason
    }

    fn promises(&self) -> Vec<&Promises> {
        let writes = self.sent.values().map(|decision| &decision.write);
        writes.filter_map(|write| if let Write::Promises(promises) = write { Some(promises.as_ref()) } else { None }).collect()
    }
}

fn of(name: &str) -> Item {
    Item::Deployment(Key::new("default", name))
}

#[test]
fn places_that_are_being_claimed_are_given_to_nobody_else_and_a_node_gets_its_promises_in_one_write() {
    let mut burst = Burst::new(&["n1", "n2"], &["a", "b", "c", "d", "e"]);
    burst.pass();
    let mut claimed: BTreeMap<&str, Bytes> = BTreeMap::new();
    for name in ["a", "b", "c", "d"] {
        let [claim] = burst.status(name).unwrap().placements.as_slice() else { panic!("{name} claims nothing") };
        let bytes = claimed.entry(&claim.node).or_default();
        *bytes = bytes.saturating_add(claim.devices[0].predicted_bytes);
    }
    assert!(claimed.len() == 2 && claimed.values().all(|bytes| *bytes <= Defaults::default().offered_by(GPU)), "{claimed:?}");
    assert_eq!(burst.reason("e"), "InsufficientVRAM");
    burst.answer_all();
    burst.pass();
    let promised: Vec<usize> = burst.promises().iter().map(|promises| promises.assignments.len()).collect();
    assert_eq!(promised, [2, 2]);
    assert!(burst.promises().iter().all(|promises| promises.withdrawn.is_empty()));
    burst.answer_all();
    burst.pass();
    let places = ["a", "b", "c", "d"].map(|name| burst.status(name).unwrap().placements[0].state);
    assert_eq!(places, [PlacementState::Placed; 4]);
    assert_eq!((burst.promises().len(), burst.status("e")), (0, None));
}

#[test]
fn a_claim_that_is_written_and_not_promised_yet_counts_still() {
    let mut burst = Burst::new(&["n1"], &["a", "b"]);
    burst.pass();
    burst.answer(&of("a"));
    burst.fail(&of("b"));
    burst.cluster.apply_deployment("c", |_| {});
    burst.state.deployments.assume(burst.cluster.deployments.objects[&Key::new("default", "c")].clone());
    burst.pass();
    assert_eq!(burst.promises()[0].assignments.len(), 1, "the promise is on its way, and not written");
    assert_eq!((burst.status("b").unwrap().placements.len(), burst.status("c").unwrap().placements.len()), (1, 0));
}

#[test]
fn a_claim_that_was_not_taken_leaves_its_bytes_to_others() {
    let mut burst = Burst::new(&["n1"], &["a", "b", "c"]);
    burst.pass();
    assert_eq!(burst.reason("c"), "InsufficientVRAM");
    burst.fail(&of("a"));
    burst.cluster.delete_deployment("a");
    burst.state.deployments.confirm(Key::new("default", "a"), None, crate::cache::Revision(u64::MAX));
    burst.answer_all();
    burst.pass();
    assert_eq!(burst.status("c").unwrap().placements.len(), 1);
}

#[test]
fn nothing_is_decided_on_an_object_whose_write_is_not_answered_and_nothing_waits_for_it() {
    let mut burst = Burst::new(&["n1", "n2"], &["a", "b"]);
    burst.pass();
    let slow = burst.sent.remove(&of("a")).unwrap();
    burst.answer_all();
    for _ in 0..4 {
        burst.pass();
        assert!(burst.status("a").is_none(), "its status is on its way");
        burst.answer_all();
    }
    assert_eq!(burst.cluster.promised(), 1, "the other one has its promise");
    burst.sent.insert(of("a"), slow);
    burst.answer_all();
    for _ in 0..4 {
        burst.pass();
        burst.answer_all();
    }
    assert_eq!(burst.cluster.promised(), 2);
}

#[test]
fn what_one_of_high_priority_is_about_to_wait_for_is_on_offer_to_none_below_it() {
    let mut burst = Burst::new(&["n1"], &["low-1", "low-2"]);
    for _ in 0..3 {
        burst.pass();
        burst.answer_all();
    }
    assert_eq!(burst.cluster.promised(), 2);
    // One of the low ones goes, and with it all of its bytes; the high one wants those of both.
    burst.cluster.apply_deployment("high", |deployment| {
        deployment.spec.priority_class_name = HIGH.into();
        deployment.spec.parallel = 3;
        deployment.spec.parameters.num_ctx = Some(stowage_placement::Tokens(8192));
    });
    burst.cluster.apply_deployment("low-3", |_| {});
    for name in ["high", "low-3"] {
        burst.state.deployments.assume(burst.cluster.deployments.objects[&Key::new("default", name)].clone());
    }
    let mut node = burst.cluster.model_nodes.objects[&Key::cluster("n1")].clone();
    node.spec.assignments.pop();
    node.metadata.resource_version = Some("900".into());
    burst.state.model_nodes.assume(node);
    burst.pass();
    assert_eq!(burst.reason("high"), "Preempting");
    assert_eq!(burst.status("low-3").unwrap().placements.len(), 0, "there would be room for it");
}
