//! Which node a replica goes to.
//!
//! `survey` says of each node, from sums alone, how well it could do at best; `search` plans nodes in that order and stops as soon as no other could
//! be better, so the choice is the one that planning them all would give. `refusal` counts why none could take it, and `elsewhere` looks for one that
//! could if it were considered.

mod elsewhere;
mod figures;
mod refusal;
mod runs;
mod search;
mod survey;

use crate::capability::Engine;
use crate::device_plan::NodeDevices;
use crate::fit_report::{Demand, PlanReport, Refusal};
use crate::model_summary::ModelSummary;
use crate::node_choice::refusal::refuse;
use crate::node_choice::search::Search;
use crate::reason::Reason;
use crate::request::Asked;

/// A node as the choice sees it, made from a ModelNode and the assumed state of the ledger.
#[derive(Clone, Debug)]
pub struct Node {
    /// Ties are broken by it.
    pub name: String,
    /// The agent's Lease is fresh.
    pub ready: bool,
    /// Not cordoned.
    pub schedulable: bool,
    /// nodeSelector and deviceSelector match.
    pub selector_matches: bool,
    /// Assignments that it holds, in spec or status.
    pub assignments: u32,
    /// The model's file lies in its store already.
    pub has_model_file: bool,
    /// Replicas of the same ModelDeployment that it holds, and is to go on holding.
    pub siblings: u32,
    pub devices: NodeDevices,
}

impl Node {
    /// Why it is not considered, where it is not.
    pub fn kept_out(&self) -> Option<Reason> {
        let filters = [
            (!self.selector_matches, Reason::NoMatchingNode),
            (!self.ready, Reason::NodeNotReady),
            (!self.schedulable, Reason::NodeUnschedulable),
            (self.assignments >= MAX_ASSIGNMENTS, Reason::TooManyAssignments),
        ];
        filters.into_iter().find(|(applies, _)| *applies).map(|(_, reason)| reason)
    }
}

/// Where a replica goes, or why it goes nowhere.
#[derive(Clone, Debug, PartialEq)]
pub enum Choice {
    /// `report.plan` is what the assignment carries, `report.request` the resolved request.
    Placed {
        /// Index in the nodes given.
        node: usize,
        report: PlanReport,
    },
    Refused {
        refusal: Refusal,
        /// The node that came nearest, by index, and how near.
        best: Option<(usize, PlanReport)>,
    },
}

/// Chooses a node and plans its devices.
///
/// Wholly on GPU goes before split, split before CPU; then comes what serves the user best (more layers on GPU, fewer of them without
/// their experts, a longer context where that was left open), then the node with the fewest replicas of the same model, so that the loss of one takes
/// few, then the one that has the file already, then the fewest GPUs and the tightest fit, so that large gaps stay for large models. Equal nodes are told
/// apart by name.
pub fn choose(summary: &ModelSummary, asked: &Asked, nodes: &[Node]) -> Choice {
    choose_for(Engine::OURS, summary, asked, nodes)
}

/// Likewise for another engine than ours.
pub fn choose_for(engine: Engine, summary: &ModelSummary, asked: &Asked, nodes: &[Node]) -> Choice {
    let reasons: Vec<Option<Reason>> = nodes.iter().map(Node::kept_out).collect();
    let open: Vec<usize> = (0..nodes.len()).filter(|index| reasons[*index].is_none()).collect();
    let filtered: Vec<Reason> = reasons.into_iter().flatten().collect();
    if open.is_empty() {
        return refuse(nodes, &filtered, &[], None);
    }
    let demand = Demand::of(asked, summary.total_layers().0);
    let choice = demand.and_then(|demand| Search::new(engine, summary, asked, demand, nodes).run(&open, &filtered));
    // Where it can't be planned at all, it would be the same on every node.
    let mut choice = choice.unwrap_or_else(|refusal| Choice::Refused { refusal, best: None });
    if let Some(report) = choice.report_mut() {
        elsewhere::suggest(report, engine, summary, asked, nodes);
    }
    choice
}

impl Choice {
    /// Of the node that is taken, or came nearest.
    fn report_mut(&mut self) -> Option<&mut PlanReport> {
        match self {
            Choice::Placed { report, .. } | Choice::Refused { best: Some((_, report)), .. } => Some(report),
            Choice::Refused { best: None, .. } => None,
        }
    }
}

/// Assignments that a ModelNode's list holds.
pub const MAX_ASSIGNMENTS: u32 = 64;

#[cfg(test)]
mod tests;
