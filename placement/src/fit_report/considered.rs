//! One request on one node: the plan and the verdict, before they are put into words.

use std::cell::OnceCell;

use crate::capability::Engine;
use crate::device_plan::{DevicePlan, NodeDevices, Planner, SizedPlanner, Split};
use crate::fit_report::contexts::{Contexts, Goal};
use crate::fit_report::demand::Demand;
use crate::fit_report::runs_on::{RunsOn, lacks};
use crate::fit_report::{Decision, FitReport, PlanReport, Refusal, message, suggestions};
use crate::footprint::Footprint;
use crate::layout::Backend;
use crate::model_summary::ModelSummary;
use crate::reason::Reason;
use crate::request::{Asked, Request};
use crate::units::{Bytes, Tokens};

/// What was found. Making a report of it costs more than finding it, so that is done for the node that counts.
#[derive(Clone, Debug)]
pub(crate) struct Considered<'a> {
    pub engine: Engine,
    pub summary: &'a ModelSummary,
    pub asked: &'a Asked,
    pub devices: &'a NodeDevices,
    pub demand: Demand,
    pub request: Request,
    runs_on: RunsOn,
    /// What to put on GPU: where it is refused, the most that the GPUs can hold.
    pub split: Split,
    plan: OnceCell<DevicePlan>,
    pub outcome: Outcome,
    /// Why the engine can't use the node's GPUs for this model, where it can't.
    pub unusable: Option<String>,
}

/// What comes of the request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// As wished.
    Fits,
    /// Placed, but with layers on CPU, or experts of layers, that were wished on GPU.
    LessOnGpu(Reason),
    Refused(Reason),
    /// The engine has no way to run it; the sentence says what is missing.
    CannotRun(String),
}

impl Outcome {
    pub fn reason(&self) -> Reason {
        match self {
            Outcome::Fits => Reason::Fits,
            Outcome::LessOnGpu(reason) | Outcome::Refused(reason) => *reason,
            Outcome::CannotRun(_) => Reason::EngineCannotRun,
        }
    }

    pub fn is_placed(&self) -> bool {
        matches!(self, Outcome::Fits | Outcome::LessOnGpu(_))
    }
}

/// Settles the context, plans the devices, and gives the verdict.
pub(crate) fn consider<'a>(
    engine: Engine,
    summary: &'a ModelSummary,
    asked: &'a Asked,
    devices: &'a NodeDevices,
) -> Result<Considered<'a>, Refusal> {
    let total_layers = summary.total_layers().0;
    let demand = Demand::of(asked, total_layers)?;
    let runs_on = RunsOn::of(summary, asked);
    let planner = Planner::new(summary, devices, runs_on.usable(devices), engine, asked.max_devices);
    let request = asked.with_num_ctx(Contexts { planner: &planner, asked }.resolve(demand, total_layers)?);
    let sized = planner.sized(&request)?;
    let split = planned_split(&sized, demand);
    let unusable = devices.gpus.iter().find(|gpu| !runs_on.backend(gpu.backend)).and_then(|gpu| lacks(summary, asked, gpu.backend));
    let outcome = match lacks(summary, asked, devices.host.backend) {
        Some(lacking) => Outcome::CannotRun(lacking),
        None => outcome(&planner, &sized, demand, &request, split, unusable.as_deref()),
    };
    Ok(Considered { engine, summary, asked, devices, demand, request, runs_on, split, plan: OnceCell::new(), outcome, unusable })
}

/// The layers to put on GPU: those demanded where they fit, else as many as fit. A demand is for whole layers.
fn planned_split(sized: &SizedPlanner<'_>, demand: Demand) -> Split {
    match demand {
        Demand::AsManyAsFit => sized.fullest(),
        Demand::All | Demand::Exactly(_) | Demand::None => demand.wished(sized.total_layers()).min(sized.most_gpu_layers()).into(),
    }
}

fn outcome(
    planner: &Planner<'_>,
    sized: &SizedPlanner<'_>,
    demand: Demand,
    request: &Request,
    split: Split,
    unusable: Option<&str>,
) -> Outcome {
    if request.num_ctx > planner.summary.trained_context {
        return Outcome::Refused(Reason::ContextBeyondTrained);
    }
    let wished = demand.wished(sized.total_layers());
    let gpu_reason = if planner.gpus.is_empty() { Reason::NoUsableGPU } else { Reason::InsufficientVRAM };
    let less = split != Split::from(wished);
    if less && demand != Demand::AsManyAsFit {
        return match unusable {
            Some(lacking) if planner.gpus.is_empty() => Outcome::CannotRun(lacking.into()),
            _ => Outcome::Refused(gpu_reason),
        };
    }
    if !sized.host_fits(split) {
        return Outcome::Refused(Reason::InsufficientMemory);
    }
    if less { Outcome::LessOnGpu(gpu_reason) } else { Outcome::Fits }
}

impl<'a> Considered<'a> {
    /// The GPUs that can be used for this model.
    pub fn planner(&self) -> Planner<'a> {
        Planner::new(self.summary, self.devices, self.runs_on.usable(self.devices), self.engine, self.asked.max_devices)
    }

    /// Which layers go where. It is made when it is first asked for, which of a change that does not help it never is.
    pub fn plan(&self) -> &DevicePlan {
        let planned = || self.planner().sized(&self.request).ok()?.plan(self.split);
        // It was sized before, and the layers are as many as the GPUs hold.
        self.plan.get_or_init(|| planned().unwrap_or_default())
    }

    /// Bytes missing on GPU for the layers wished there; where those fit or none is, bytes missing on the host.
    pub fn shortfall(&self) -> Result<Bytes, Refusal> {
        let planner = self.planner();
        let sized = planner.sized(&self.request)?;
        Ok(self.either_shortfall(&sized, self.gpu_shortfall(&sized)))
    }

    fn gpu_shortfall(&self, sized: &SizedPlanner<'_>) -> Bytes {
        match self.demand.wished(sized.total_layers()) {
            0 => Bytes::ZERO,
            wished => sized.shortfall(wished),
        }
    }

    fn either_shortfall(&self, sized: &SizedPlanner<'_>, on_gpu: Bytes) -> Bytes {
        let on_host = || sized.host_needs(self.demand.wished(sized.total_layers())).saturating_sub(self.devices.host.offered);
        if on_gpu > Bytes::ZERO { on_gpu } else { on_host() }
    }

    /// The report on it.
    pub fn decision(&self) -> Result<Decision, Refusal> {
        let planner = self.planner();
        let contexts = Contexts { planner: &planner, asked: self.asked };
        let total_layers = self.summary.total_layers().0;
        let limits = Limits {
            on_gpu: if planner.gpus.is_empty() { Tokens(0) } else { contexts.largest_trained(Goal::OnGpu(total_layers))? },
            anywhere: contexts.largest_trained(Goal::Anywhere)?,
        };
        let sized = planner.sized(&self.request)?;
        let missing = self.gpu_shortfall(&sized);
        let message = message::of(self, &planner, &sized, limits, missing);
        let fit = FitReport {
            fits: self.outcome == Outcome::Fits,
            reason: self.outcome.reason(),
            message: message.clone(),
            shortfall_bytes: self.either_shortfall(&sized, missing),
            max_num_ctx_on_gpu: limits.on_gpu,
            max_num_ctx: limits.anywhere,
            suggestions: suggestions::of(self, limits),
        };
        let report = PlanReport {
            model: self.summary.describe(),
            request: self.request.clone(),
            footprint: self.footprint()?,
            plan: self.plan().clone(),
            defaults: self.devices.defaults,
            fit,
        };
        let verdict = if self.outcome.is_placed() { Ok(()) } else { Err(Refusal::new(self.outcome.reason(), message)) };
        Ok(Decision { report, verdict })
    }

    /// All layers on one GPU.
    fn footprint(&self) -> Result<Footprint, Refusal> {
        let (backend, overhead) = self.gpu_kind();
        Ok(Footprint::new(self.summary, &self.request, backend, overhead, self.devices.host.backend)?)
    }

    /// Backend and overhead of the GPUs that the node has for this model, else of those that a node can have.
    pub fn gpu_kind(&self) -> (Backend, Bytes) {
        self.planner().gpus.first().map_or((Backend::Cuda, self.devices.defaults.overhead_bytes), |gpu| (gpu.backend, gpu.overhead))
    }
}

/// The largest contexts, 0 where there is none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Limits {
    /// With the whole model on GPU.
    pub on_gpu: Tokens,
    /// With layers on CPU allowed.
    pub anywhere: Tokens,
}
