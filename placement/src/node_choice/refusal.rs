//! Why no node could take a replica: counted by reason, and in detail for the node that came nearest.

use std::cmp::Reverse;
use std::collections::BTreeMap;

use crate::fit_report::{PlanReport, Refusal};
use crate::node_choice::{Choice, Node};
use crate::reason::Reason;
use crate::units::Bytes;

/// The nodes that were refused for one reason.
pub(super) struct Nearest {
    pub reason: Reason,
    pub count: usize,
    /// The one that came nearest.
    pub index: usize,
    pub shortfall: Bytes,
}

/// Says no: `filtered` are the reasons of the nodes that were not considered, `nearest` those of the others, and `best` is the one of all that came
/// nearest, with its report.
pub(super) fn refuse(nodes: &[Node], filtered: &[Reason], nearest: &[Nearest], best: Option<(usize, PlanReport)>) -> Choice {
    if nodes.is_empty() {
        return Choice::Refused { refusal: Refusal::new(Reason::NoNodes, "no node is known: no agent has reported yet"), best: None };
    }
    let counts = counts(filtered, nearest);
    let counted = format!("0 of {} nodes: {}", nodes.len(), listed(&counts));
    let Some((index, report)) = best else {
        let reason = counts.first().map_or(Reason::NoNodes, |(reason, ..)| *reason);
        return Choice::Refused { refusal: Refusal::new(reason, counted), best: None };
    };
    let message = match report.fit.reason {
        // It is the same on every node.
        Reason::ContextBeyondTrained => report.fit.message.clone(),
        _ => format!("{counted}. On {}: {}", nodes[index].name, report.fit.message),
    };
    Choice::Refused { refusal: Refusal::new(report.fit.reason, message), best: Some((index, report)) }
}

/// Each reason, how many nodes have it, and what the nearest of them is short by; the most frequent first.
fn counts(filtered: &[Reason], nearest: &[Nearest]) -> Vec<(Reason, usize, Bytes)> {
    let mut tally: BTreeMap<Reason, usize> = BTreeMap::new();
    for reason in filtered {
        *tally.entry(*reason).or_default() += 1;
    }
    let filtered = tally.into_iter().map(|(reason, count)| (reason, count, Bytes::ZERO));
    let mut counts: Vec<_> = filtered.chain(nearest.iter().map(|nearest| (nearest.reason, nearest.count, nearest.shortfall))).collect();
    counts.sort_by_key(|(reason, count, _)| (Reverse(*count), *reason));
    counts
}

/// "2 InsufficientVRAM (best short by 1.34 GiB), 1 NodeNotReady".
fn listed(counts: &[(Reason, usize, Bytes)]) -> String {
    let parts = counts.iter().map(|(reason, count, short)| match *short {
        Bytes::ZERO => format!("{count} {reason}"),
        short => format!("{count} {reason} (best short by {short})"),
    });
    parts.collect::<Vec<_>>().join(", ")
}
