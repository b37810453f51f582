//! `kubectl stowage plan`: what would happen to a model on each node of the cluster, and where the operator would put it.

mod text;

use std::process::ExitCode;

use clap::Args;
use serde::Serialize;
use stowage_placement::{Choice, Node, PlanReport, Reason, choose, decide};

use super::Error;
use super::candidates::Seen;
use super::cluster::Cluster;
use super::model::Question;
use super::output::{Format, print};
use crate::plan::{DOES_NOT_FIT, DefaultsArgs, FITS, HubArgs, RequestArgs};

/// Say where a model would go, and on each node why, or why not. Exit status: 0 it fits as asked, 3 it does not, 2 bad input.
#[derive(Args, Clone, Debug)]
pub struct PlanArgs {
    /// A ModelDeployment's YAML, one of the cluster as mdl/NAME, a GGUF file (its header is enough), or an http(s) URL of one.
    pub source: String,
    #[command(flatten)]
    pub request: RequestArgs,
    #[command(flatten)]
    pub defaults: DefaultsArgs,
    #[command(flatten)]
    pub hub: HubArgs,
    #[arg(short, long, value_enum, default_value_t)]
    pub output: Format,
}

pub async fn run(cluster: &Cluster, args: &PlanArgs) -> Result<ExitCode, Error> {
    let seen = Seen::read(cluster).await?;
    let mut question = Question::read(cluster, &seen, &args.source, &args.hub.hf_endpoint).await?;
    question.asked = args.request.over(question.asked);
    let plan = ClusterPlan::new(&question, &seen, args.defaults);
    print(args.output, &plan, text::render)?;
    Ok(ExitCode::from(if plan.fits { FITS } else { DOES_NOT_FIT }))
}

/// What the cluster has for one replica.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ClusterPlan {
    /// Whether it is met as wished.
    pub fits: bool,
    pub reason: Reason,
    pub message: String,
    /// Where it would go; `None`: nowhere.
    pub node: Option<String>,
    /// For that node, or the one that came nearest.
    pub report: Option<PlanReport>,
    pub nodes: Vec<NodePlan>,
    /// What had to be assumed.
    pub notes: Vec<String>,
}

/// What one node has for it.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct NodePlan {
    pub node: String,
    /// Why it is not considered, or why it does not fit there as wished; `Fits` where it does.
    pub reason: Reason,
    /// Whether the operator would consider it at all.
    pub considered: bool,
    pub has_model_file: bool,
    /// As if it were considered; `None` where nothing can be planned.
    pub report: Option<PlanReport>,
}

impl ClusterPlan {
    /// `defaults` is what the operator assumes of devices of which nobody says otherwise.
    pub fn new(question: &Question, seen: &Seen, defaults: DefaultsArgs) -> ClusterPlan {
        let candidates = seen.candidates(question, defaults.defaults());
        let choice = choose(&question.summary, &question.asked, &candidates);
        let nodes = candidates.iter().map(|node| NodePlan::new(question, node));
        let lacking = seen.model_nodes().iter().filter_map(|node| node.metadata.name.as_deref()).filter(|name| !question.can_be_on(name));
        let mut nodes: Vec<NodePlan> = nodes.chain(lacking.map(NodePlan::without_file)).collect();
        nodes.sort_by(|one, other| one.node.cmp(&other.node));
        let notes = seen.notes();
        match choice {
            Choice::Placed { node, report } => ClusterPlan {
                fits: report.fit.fits,
                reason: report.fit.reason,
                message: report.fit.message.clone(),
                node: Some(candidates[node].name.clone()),
                report: Some(report.without_layers()),
                nodes,
                notes,
            },
            Choice::Refused { refusal, best } => ClusterPlan {
                fits: false,
                reason: refusal.reason,
                message: refusal.message,
                node: None,
                report: best.map(|(_, report)| report.without_layers()),
                nodes,
                notes,
            },
        }
    }
}

impl NodePlan {
    fn new(question: &Question, node: &Node) -> NodePlan {
        let kept_out = node.kept_out();
        let planned = decide(&question.summary, &question.asked, &node.devices);
        let reason = match (&planned, kept_out) {
            (_, Some(reason)) => reason,
            (Ok(decision), None) => decision.report.fit.reason,
            (Err(refusal), None) => refusal.reason,
        };
        NodePlan {
            node: node.name.clone(),
            reason,
            considered: kept_out.is_none(),
            has_model_file: node.has_model_file,
            report: planned.ok().map(|decision| decision.report.without_layers()),
        }
    }

    fn without_file(name: &str) -> NodePlan {
        NodePlan { node: name.to_owned(), reason: Reason::ModelNotFound, considered: false, has_model_file: false, report: None }
    }
}

#[cfg(test)]
mod tests;
