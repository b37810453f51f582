//! A node that is not considered, though the request would be met there as wished.

use crate::capability::Engine;
use crate::fit_report::{Demand, PlanReport, Refusal, Suggestion};
use crate::model_summary::ModelSummary;
use crate::node_choice::search::Search;
use crate::node_choice::{MAX_ASSIGNMENTS, Node};
use crate::request::Asked;

/// Adds the best such node to what is suggested where the request is not met as wished. It stands before what others would have to give up.
pub(super) fn suggest(report: &mut PlanReport, engine: Engine, summary: &ModelSummary, asked: &Asked, nodes: &[Node]) {
    if report.fit.fits {
        return;
    }
    let kept_out: Vec<usize> = (0..nodes.len()).filter(|index| nodes[*index].ready && nodes[*index].kept_out().is_some()).collect();
    if kept_out.is_empty() {
        return;
    }
    let asked = asked.resolved(report.request.num_ctx);
    // What can't be planned at all was not planned before either.
    if let Ok(Some(suggestion)) = best(engine, summary, &asked, nodes, &kept_out) {
        let suggestions = &mut report.fit.suggestions;
        let others = suggestions.iter().position(|suggestion| ["release", "device"].contains(&suggestion.change.as_str()));
        suggestions.insert(others.unwrap_or(suggestions.len()), suggestion);
    }
}

fn best(engine: Engine, summary: &ModelSummary, asked: &Asked, nodes: &[Node], kept_out: &[usize]) -> Result<Option<Suggestion>, Refusal> {
    let demand = Demand::of(asked, summary.total_layers().0)?;
    let found = Search::new(engine, summary, asked, demand, nodes).meeting(kept_out)?;
    let suggestion = |(index, processor): (usize, String)| {
        let message = format!("this node has room for it as it is asked, but {}", keeping_out(&nodes[index]).join(" and "));
        Suggestion { change: "node".into(), value: nodes[index].name.clone(), processor, message }
    };
    Ok(found.map(suggestion))
}

/// What would have to be changed for the node to be considered. One that is not ready can't be changed into one that is.
fn keeping_out(node: &Node) -> Vec<String> {
    let reasons = [
        (!node.selector_matches, "the nodeSelector or the deviceSelector does not match it".to_owned()),
        (!node.schedulable, "it is cordoned".to_owned()),
        (node.assignments >= MAX_ASSIGNMENTS, format!("it holds {} assignments, as many as a node may", node.assignments)),
    ];
    reasons.into_iter().filter(|(applies, _)| *applies).map(|(_, reason)| reason).collect()
}
