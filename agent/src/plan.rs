//! `agent plan`: what would happen to a model on this machine, or on devices of a given size, without a cluster.
//!
//! It reads a header, asks `placement`, and prints; what it prints is what a ModelDeployment's status would say.

mod bars;
mod cache_types;
mod comparison;
mod curve;
mod gpus;
mod offered;
mod requested;
pub(crate) mod source;
mod svg;
pub(crate) mod table;
pub(crate) mod text;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Args, ValueEnum};
use serde::Serialize;
use stowage_placement::layout::Backend;
use stowage_placement::{Asked, Bytes, KvCacheType, NodeDevices, PlanReport, Refusal, decide};

use stowage_sources::hugging_face;

pub use cache_types::CacheTypes;
pub use curve::Chart;
pub use gpus::Gpus;
pub use offered::DefaultsArgs;
use offered::Offered;
pub use requested::RequestArgs;
pub use source::PlanError;

/// It fits as asked, or with one of the types of cache that are compared.
pub(crate) const FITS: u8 = 0;
/// Bad input: nothing can be said.
pub(crate) const BAD_INPUT: u8 = 2;
/// It does not fit as asked.
pub(crate) const DOES_NOT_FIT: u8 = 3;

/// Say where a model's bytes would go, without a cluster. Exit status: 0 it fits as asked (compared: with one of the types at least), 3 it does not,
/// 2 bad input.
#[derive(Args, Clone, Debug)]
pub struct PlanArgs {
    /// A GGUF file (its header is enough; of a split model, the first part), an http(s) URL of one, or a ModelDeployment's YAML.
    pub source: String,
    #[command(flatten)]
    pub request: RequestArgs,
    /// Compare types of the KV cache, such as f16,q8_0,q4_0: a row for each instead of one plan; JSON and YAML have a list of plans.
    #[arg(long, value_name = "T,T…", value_parser = clap::value_parser!(CacheTypes), conflicts_with_all = ["kv_cache_type", "layers"])]
    pub compare: Option<CacheTypes>,
    /// A ModelNode's YAML: plan for that node as the operator would (`kubectl get modelnode NAME -o yaml`). Where SOURCE is a ModelDeployment whose
    /// status says on which of the node's figures it was decided, those are taken, so that the decision comes out again; else what the agent
    /// published last, with what the ModelDeployment has there already counting as free.
    #[arg(long, value_name = "FILE", conflicts_with_all = ["gpus", "memory"])]
    pub node: Option<PathBuf>,
    /// With --node: take what the agent published last in any case.
    #[arg(long, requires = "node")]
    pub now: bool,
    /// A GPU with this much free, such as 24GiB, or several as 8x15GiB. Once for each kind; none: the machine's own.
    #[arg(long = "gpu", value_name = "FREE", value_parser = clap::value_parser!(Gpus))]
    pub gpus: Vec<Gpus>,
    /// Free host memory. Omitted: the machine's own.
    #[arg(long, value_name = "FREE", value_parser = clap::value_parser!(Bytes))]
    pub memory: Option<Bytes>,
    #[command(flatten)]
    pub defaults: DefaultsArgs,
    #[command(flatten)]
    pub hub: HubArgs,
    /// Show each layer in the table; JSON and YAML have them always.
    #[arg(long)]
    pub layers: bool,
    /// Write the chart of GPU memory against num_ctx to this file too, as SVG.
    #[arg(long, value_name = "FILE")]
    pub svg: Option<PathBuf>,
    #[arg(long, value_enum, default_value_t = Format::Table)]
    pub format: Format,
}

/// Where models of Hugging Face are read from.
#[derive(Args, Clone, Debug)]
pub struct HubArgs {
    /// Address of the Hugging Face hub, for a ModelDeployment that names a repository there; HF_ENDPOINT, where it is set.
    #[arg(long, value_name = "URL", default_value_t = hugging_face::endpoint())]
    pub hf_endpoint: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Format {
    Table,
    Json,
    Yaml,
}

/// The machine that `agent plan` runs on.
#[derive(Clone, Debug)]
pub struct Machine {
    /// Its GPUs that the engine can use and its host memory, each with what it offers.
    pub devices: NodeDevices,
    /// What would compute on a GPU that `--gpu` names: what this build has for GPUs, or CUDA where it has nothing.
    pub gpu_backend: Backend,
}

impl PlanArgs {
    /// Whether the machine's own devices count; where they don't, there is no need to look for them.
    pub fn needs_machine(&self) -> bool {
        self.node.is_none() && (self.gpus.is_empty() || self.memory.is_none())
    }
}

/// Plans and prints. What is wrong with the input goes to standard error.
pub async fn run(args: &PlanArgs, machine: &Machine) -> ExitCode {
    match answer(args, machine).await {
        Ok((text, code)) => {
            print!("{text}");
            ExitCode::from(code)
        }
        Err(error) => {
            eprintln!("error: {}", printable(&error.to_string()));
            ExitCode::from(BAD_INPUT)
        }
    }
}

/// What is printed, and the exit status. The chart is written where it is asked for.
async fn answer(args: &PlanArgs, machine: &Machine) -> Result<(String, u8), PlanError> {
    let planned = plan(args, machine).await?;
    let text = print(&planned, args)?;
    if let Some(path) = &args.svg {
        write(path, &svg::draw(planned.answer.reports(), &planned.chart))?;
    }
    let fits = planned.answer.reports().iter().any(|report| report.fit.fits);
    Ok((text, if fits { FITS } else { DOES_NOT_FIT }))
}

/// What is printed.
#[derive(Clone, Debug)]
pub struct Planned {
    pub answer: Answer,
    pub chart: Chart,
    /// Whose devices they are, where that is a node.
    pub whose: Option<String>,
}

/// As JSON and YAML have it: the type that a ModelDeployment's status carries, or a list of it.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(untagged)]
pub enum Answer {
    Plan(Box<PlanReport>),
    /// By type of KV cache, in the order that was asked for.
    Compared(Vec<PlanReport>),
}

impl Answer {
    fn reports(&self) -> &[PlanReport] {
        match self {
            Answer::Plan(report) => std::slice::from_ref(report),
            Answer::Compared(reports) => reports,
        }
    }
}

/// The plan for the devices that the flags name, or the machine's own.
pub async fn plan(args: &PlanArgs, machine: &Machine) -> Result<Planned, PlanError> {
    let node = args.node.as_deref().map(source::model_node).transpose()?;
    let source::Model { summary, asked, deployment } = source::read(&args.source, &args.hub.hf_endpoint, node.as_ref()).await?;
    let Offered { devices, whose } = Offered::of(args, machine, node.as_ref(), deployment.as_ref());
    let asked = args.request.over(asked);
    let report = |asked: &Asked| -> Result<PlanReport, Refusal> { Ok(decide(&summary, asked, &devices)?.report) };
    let answer = match &args.compare {
        None => Answer::Plan(Box::new(report(&asked)?)),
        Some(CacheTypes(types)) => {
            let with = |cache: &KvCacheType| report(&Asked { kv_cache_type: *cache, ..asked.clone() });
            Answer::Compared(types.iter().map(with).collect::<Result<_, _>>()?)
        }
    };
    let chart = Chart::new(&summary, &asked, &devices, answer.reports());
    Ok(Planned { answer, chart, whose })
}

fn print(planned: &Planned, args: &PlanArgs) -> Result<String, PlanError> {
    let Planned { answer, chart, whose } = planned;
    match (args.format, answer) {
        (Format::Table, Answer::Plan(report)) => Ok(table::render(report, chart, whose.as_deref(), args.layers)),
        (Format::Table, Answer::Compared(reports)) => Ok(comparison::render(reports, chart)),
        (Format::Json, _) => Ok(serde_json::to_string_pretty(answer)? + "\n"),
        (Format::Yaml, _) => Ok(stowage_crds::yaml::to_string(answer)?),
    }
}

/// A file that is there keeps its text until all of the new one is written; what is no file, such as a pipe, is written to as it is.
fn write(path: &Path, text: &str) -> Result<(), PlanError> {
    let failed = |source| PlanError::Write { path: path.display().to_string(), source };
    if path.metadata().is_ok_and(|there| !there.is_file()) {
        return std::fs::write(path, text).map_err(failed);
    }
    let mut unfinished = path.as_os_str().to_owned();
    unfinished.push(".new");
    std::fs::write(&unfinished, text).and_then(|()| std::fs::rename(&unfinished, path)).map_err(failed)
}

/// Text in which names may stand that come from a file: nothing in it that a terminal would obey.
pub(crate) fn printable(text: &str) -> String {
    let shown = |c: char| if c.is_control() && !['\n', '\t'].contains(&c) { char::REPLACEMENT_CHARACTER } else { c };
    text.chars().map(shown).collect()
}

#[cfg(test)]
mod tests;
