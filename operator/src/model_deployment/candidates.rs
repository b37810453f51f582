//! The nodes among which a replica's place is chosen, as the planner sees them.

use k8s_openapi::jiff::Timestamp;
use kube::ResourceExt;
use stowage_crds::ModelNode;
use stowage_crds::candidate::{self, selector_matches};
use stowage_crds::model_deployment::DecisionRecord;
use stowage_crds::model_node::Assignment;
use stowage_placement::{Asked, Bytes, Choice, Node, PlanReport, Refusal, choose};

use crate::ledger::Ledger;
use crate::model_deployment::models::Found;
use crate::model_deployment::reserved::Reserved;
use crate::model_deployment::validate::Wanted;
use crate::state::State;

/// How a replica fits on the node that was chosen, or on the one that came nearest.
#[derive(Clone, Debug, PartialEq)]
pub struct Decided {
    pub report: PlanReport,
    pub record: DecisionRecord,
}

impl Decided {
    pub fn node(&self) -> &str {
        &self.record.node
    }

    /// As it stands in a status.
    pub fn without_layers(self) -> Decided {
        Decided { report: self.report.without_layers(), ..self }
    }
}

/// No, and how near it came.
pub type Refused = (Refusal, Option<Box<Decided>>);

/// Chooses a place for one replica, counting assignments for which `given_back` holds as gone. `siblings` is how many replicas of the same
/// ModelDeployment are to stay on a node.
pub fn choose_place(
    state: &State,
    wanted: &Wanted,
    found: &Found,
    asked: &Asked,
    now: Timestamp,
    given_back: &dyn Fn(&Assignment) -> bool,
    siblings: &dyn Fn(&str) -> u32,
) -> Result<Decided, Refused> {
    let reserved = Reserved::from_a_claim(state, wanted, now);
    let of = |node| candidate(state, wanted, found, now, node, given_back, &reserved);
    let beside = |node: Node| Node { siblings: siblings(&node.name), ..node };
    let mut nodes: Vec<Node> = candidates(state, found).map(of).map(beside).collect();
    let count = u32::try_from(nodes.len()).unwrap_or(u32::MAX);
    let choice = choose(&found.summary, asked, &nodes);
    let mut decided = |index: usize, report| Decided { report, record: record(state, nodes.swap_remove(index), count) };
    match choice {
        Choice::Placed { node, report } => Ok(decided(node, report)),
        Choice::Refused { refusal, best } => Err((refusal, best.map(|(node, report)| Box::new(decided(node, report))))),
    }
}

/// On what it was decided, enough to decide it again.
pub fn record(state: &State, node: Node, nodes: u32) -> DecisionRecord {
    let Node { name, devices: offered, .. } = node;
    let object = state.model_node(&name);
    let model_node_uid = object.and_then(|object| object.uid()).unwrap_or_default();
    let resource_version = object.and_then(|object| object.resource_version()).unwrap_or_default();
    DecisionRecord { nodes, node: name, model_node_uid, resource_version, offered }
}

pub fn candidates<'a>(state: &'a State, found: &'a Found) -> impl Iterator<Item = &'a ModelNode> {
    let can_have_it = |name: &str| found.only_on.as_ref().is_none_or(|nodes| nodes.contains(name));
    state.model_nodes.iter().filter(move |(key, _)| can_have_it(&key.name)).map(|(_, node)| node.as_ref())
}

/// One node as a candidate, less what is reserved.
pub fn candidate(
    state: &State,
    wanted: &Wanted,
    found: &Found,
    now: Timestamp,
    node: &ModelNode,
    given_back: &dyn Fn(&Assignment) -> bool,
    reserved: &Reserved<'_>,
) -> Node {
    let name = node.name_any();
    let ledger = Ledger::without(node, state.defaults, given_back);
    let labels = state.node(&name).map(|node| node.labels().clone()).unwrap_or_default();
    let selector_matches = selector_matches(&wanted.placement, &wanted.spec_asked, &labels, node);
    let mut devices = candidate::devices(&ledger, &wanted.placement, selector_matches);
    // What a replica of this revision was seen to take beyond its plan is there for it, and promised to nobody.
    let beyond_plan = state.refused(wanted).map_or(Bytes::ZERO, |refused| refused.beyond_plan);
    devices.host.offered = devices.host.offered.saturating_sub(beyond_plan);
    let claimed = reserved.take(&name, &mut devices);
    Node {
        ready: state.is_ready(&name, now),
        schedulable: state.node(&name).is_some() && !state.is_cordoned(&name),
        selector_matches,
        assignments: ledger.assignments().saturating_add(claimed),
        has_model_file: found.present_on.contains(&name),
        siblings: 0,
        devices,
        name,
    }
}
