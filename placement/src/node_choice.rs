//! Which node a replica goes to.

use std::cmp::Reverse;
use std::collections::BTreeMap;

use crate::device_plan::{DeviceAllocation, DeviceKind, NodeDevices};
use crate::fit_report::{Considered, PlanReport, Refusal, consider};
use crate::model_summary::ModelSummary;
use crate::reason::Reason;
use crate::request::Asked;
use crate::units::Bytes;

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
    pub devices: NodeDevices,
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
/// Wholly on GPU goes before split, split before CPU; then comes what serves the user best (more layers on GPU, a longer context where that was left
/// open), then the node that has the file already, then the tightest fit, so that large gaps stay for large models. Equal nodes are told apart by name.
pub fn choose(summary: &ModelSummary, asked: &Asked, nodes: &[Node]) -> Choice {
    let mut placed: Vec<(usize, Considered<'_>)> = Vec::new();
    let mut refused: Vec<Refused<'_>> = Vec::new();
    for (index, node) in nodes.iter().enumerate() {
        match judge(summary, asked, node) {
            Ok(considered) if considered.outcome.is_placed() => placed.push((index, considered)),
            Ok(considered) => {
                let (reason, shortfall) = (considered.outcome.reason(), considered.shortfall);
                refused.push(Refused { index, reason, shortfall, considered: Some(considered) });
            }
            Err(Judgement::Filtered(reason)) => refused.push(Refused { index, reason, shortfall: Bytes::ZERO, considered: None }),
            // It would be the same on every node.
            Err(Judgement::Impossible(refusal)) => return Choice::Refused { refusal, best: None },
        }
    }
    let best = placed.iter().min_by(|a, b| rank(nodes, a).cmp(&rank(nodes, b)));
    match best.map(|(index, considered)| (*index, considered.decision())) {
        Some((node, Ok(decision))) => Choice::Placed { node, report: decision.report },
        Some((_, Err(refusal))) => Choice::Refused { refusal, best: None },
        None => refuse(nodes, refused),
    }
}

enum Judgement {
    /// The node is not considered.
    Filtered(Reason),
    /// The request itself is at fault.
    Impossible(Refusal),
}

/// Assignments that a ModelNode's list holds.
pub const MAX_ASSIGNMENTS: u32 = 64;

fn judge<'a>(summary: &'a ModelSummary, asked: &'a Asked, node: &'a Node) -> Result<Considered<'a>, Judgement> {
    let filters = [
        (!node.selector_matches, Reason::NoMatchingNode),
        (!node.ready, Reason::NodeNotReady),
        (!node.schedulable, Reason::NodeUnschedulable),
        (node.assignments >= MAX_ASSIGNMENTS, Reason::TooManyAssignments),
    ];
    match filters.into_iter().find(|(applies, _)| *applies) {
        Some((_, reason)) => Err(Judgement::Filtered(reason)),
        None => consider(summary, asked, &node.devices).map_err(Judgement::Impossible),
    }
}

/// What is smaller is better.
fn rank<'a>(
    nodes: &'a [Node],
    (index, considered): &(usize, Considered<'_>),
) -> (Tier, Reverse<u32>, Reverse<u64>, bool, usize, u64, &'a str) {
    let plan = &considered.plan;
    let tier = match plan.gpu_layers.0 {
        0 => Tier::Cpu,
        layers if layers == plan.total_layers.0 => Tier::WhollyOnGpu,
        _ => Tier::Split,
    };
    let gpus = plan.devices.iter().filter(|device| device.kind == DeviceKind::Gpu);
    let left_over = |device: &DeviceAllocation| device.free_bytes.saturating_sub(device.total_bytes);
    let left: Bytes = match tier {
        Tier::Cpu => plan.devices.iter().map(left_over).sum(),
        Tier::WhollyOnGpu | Tier::Split => gpus.clone().map(left_over).sum(),
    };
    let node = &nodes[*index];
    let (layers, num_ctx) = (Reverse(plan.gpu_layers.0), Reverse(considered.request.num_ctx.0));
    (tier, layers, num_ctx, !node.has_model_file, gpus.count(), left.0, &node.name)
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Tier {
    WhollyOnGpu,
    Split,
    Cpu,
}

struct Refused<'a> {
    index: usize,
    reason: Reason,
    shortfall: Bytes,
    considered: Option<Considered<'a>>,
}

/// Counts the refusals by reason, and reports on the node that came nearest.
fn refuse(nodes: &[Node], refused: Vec<Refused<'_>>) -> Choice {
    if refused.is_empty() {
        return Choice::Refused { refusal: Refusal::new(Reason::NoNodes, "no node is known: no agent has reported yet"), best: None };
    }
    let counted = format!("0 of {} nodes: {}", nodes.len(), count(&refused));
    let nearest = refused.iter().filter(|refused| refused.considered.is_some());
    let nearest = nearest.min_by_key(|refused| (refused.shortfall, &nodes[refused.index].name));
    let decision = nearest.and_then(|nearest| Some((nearest.index, nearest.considered.as_ref()?.decision())));
    match decision {
        Some((index, Ok(decision))) => {
            let (reason, message) = (decision.report.fit.reason, &decision.report.fit.message);
            let message = match reason {
                // It is the same on every node.
                Reason::ContextBeyondTrained => message.clone(),
                _ => format!("{counted}. On {}: {message}", nodes[index].name),
            };
            Choice::Refused { refusal: Refusal::new(reason, message), best: Some((index, decision.report)) }
        }
        Some((_, Err(refusal))) => Choice::Refused { refusal, best: None },
        None => {
            let commonest = tally(&refused).into_iter().max_by_key(|(reason, count)| (*count, Reverse(*reason)));
            let reason = commonest.map_or(Reason::NoNodes, |(reason, _)| reason);
            Choice::Refused { refusal: Refusal::new(reason, counted), best: None }
        }
    }
}

/// "2 InsufficientVRAM (best short by 1.34 GiB), 1 NodeNotReady", the most frequent first.
fn count(refused: &[Refused<'_>]) -> String {
    let mut tally: Vec<(Reason, usize)> = tally(refused).into_iter().collect();
    tally.sort_by_key(|(reason, count)| (Reverse(*count), *reason));
    let parts = tally.into_iter().map(|(reason, count)| {
        let short =
            refused.iter().filter(|refused| refused.reason == reason && refused.considered.is_some()).map(|refused| refused.shortfall);
        match short.min().filter(|short| *short > Bytes::ZERO) {
            Some(short) => format!("{count} {reason} (best short by {short})"),
            None => format!("{count} {reason}"),
        }
    });
    parts.collect::<Vec<_>>().join(", ")
}

fn tally(refused: &[Refused<'_>]) -> BTreeMap<Reason, usize> {
    let mut tally = BTreeMap::new();
    for refused in refused {
        *tally.entry(refused.reason).or_default() += 1;
    }
    tally
}

#[cfg(test)]
mod tests;
