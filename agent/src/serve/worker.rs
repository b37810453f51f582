//! What a worker's HTTP API stands on: one loaded model, its names, its defaults, and where it was placed.

use std::sync::Arc;

use http::HeaderMap;
use stowage_engine::{Constraint, GenerateRequest, Grammar};
use stowage_placement::{Bytes, DeviceKind, DevicePlan, Request};
use tokio::sync::watch;

use super::account::Account;
use super::defaults::RequestDefaults;
use super::error::{Fault, FaultKind};
use super::generation::{Generation, Reading};
use super::generator::Generator;
use super::metrics::Metrics;
use super::names::ModelNames;
use super::thinking::Ability;

/// Largest body that is read unless said otherwise: many times the longest prompt that a model takes.
pub const DEFAULT_BODY_LIMIT: usize = 16 << 20;

/// Whether a replica takes requests. What runs is finished in any of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// Loaded, its self-test not yet passed.
    Starting,
    Ready,
    /// Takes no new requests.
    /// Takes requests that still come, for whoever sends them has not heard yet that it goes; `/readyz` says so.
    Leaving,
    Draining,
}

/// Where the replica was placed, for `/api/ps` and `/api/show`.
#[derive(Clone, Debug)]
pub struct PlacementInfo {
    /// As a person reads it: `38%/62% CPU/GPU`.
    pub processor: String,
    /// What the model takes on all devices, input embeddings left out, so that `ollama ps` shows the same shares as `processor`.
    pub size: Bytes,
    /// The part of `size` on GPUs.
    pub size_vram: Bytes,
    pub gpu_layers: u32,
    pub total_layers: u32,
    /// The model file's size.
    pub file_size: Bytes,
    /// The model file's sha256 in hexadecimal, or another that changes with the file where that is not known.
    pub digest: String,
    pub modified_at: jiff::Timestamp,
    /// As the planner said; `None` where it did not.
    pub largest_contexts: Option<LargestContexts>,
}

/// The largest contexts that fitted on the replica's node when it was placed, in tokens; 0 where none did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LargestContexts {
    /// With the whole model on GPU.
    pub on_gpu: u64,
    /// With layers on CPU allowed.
    pub anywhere: u64,
}

impl PlacementInfo {
    /// `on_any_host`: what lies in host memory whatever the plan, the embeddings and the process, and is not counted.
    pub fn of_plan(plan: &DevicePlan, on_any_host: Bytes, file_size: Bytes, digest: impl Into<String>) -> PlacementInfo {
        let gpus = plan.devices.iter().filter(|device| device.kind == DeviceKind::Gpu);
        let size_vram: Bytes = gpus.map(|device| device.total_bytes).sum();
        let host = plan.devices.iter().find(|device| device.kind == DeviceKind::Host && !device.layer_ranges.is_empty());
        let on_host = host.map_or(Bytes::ZERO, |host| host.total_bytes.saturating_sub(on_any_host));
        PlacementInfo {
            processor: plan.processor.clone(),
            size: size_vram.saturating_add(on_host),
            size_vram,
            gpu_layers: plan.gpu_layers.0,
            total_layers: plan.total_layers.0,
            file_size,
            digest: digest.into(),
            modified_at: jiff::Timestamp::now(),
            largest_contexts: None,
        }
    }
}

/// What a ModelDeployment may change without its model being loaded again.
#[derive(Clone, Debug, PartialEq)]
pub struct Settings {
    pub names: ModelNames,
    pub defaults: RequestDefaults,
}

/// All that a worker's server is made of.
pub struct WorkerConfig {
    pub generator: Arc<dyn Generator>,
    pub settings: watch::Receiver<Settings>,
    /// The resolved parameters that the replica was loaded with.
    pub request: Request,
    pub num_thread: u32,
    pub placement: PlacementInfo,
    pub phase: watch::Receiver<Phase>,
    pub body_limit: usize,
}

/// Shared by all requests to one worker.
#[derive(Clone)]
pub struct WorkerState(Arc<Worker>);

pub struct Worker {
    pub config: WorkerConfig,
    pub metrics: Arc<Metrics>,
}

impl std::ops::Deref for WorkerState {
    type Target = Worker;

    fn deref(&self) -> &Worker {
        &self.0
    }
}

impl WorkerState {
    pub fn new(config: WorkerConfig) -> WorkerState {
        let metrics = Arc::new(Metrics::new("stowage", Some(config.request.parallel.max(1))));
        WorkerState(Arc::new(Worker { config, metrics }))
    }
}

impl Worker {
    pub fn generator(&self) -> &dyn Generator {
        self.config.generator.as_ref()
    }

    pub fn num_ctx(&self) -> u64 {
        self.config.request.num_ctx.0
    }

    pub fn phase(&self) -> Phase {
        *self.config.phase.borrow()
    }

    pub fn account(&self, api: &'static str, headers: &HeaderMap) -> Account {
        Account::open(self.metrics.clone(), api, headers)
    }

    /// As they are now: they may change between two requests.
    pub fn settings(&self) -> Settings {
        self.config.settings.borrow().clone()
    }

    pub fn names(&self) -> ModelNames {
        self.settings().names
    }

    /// How an error calls this model's ModelDeployment.
    pub fn deployment(&self) -> String {
        format!("ModelDeployment {}", self.names().full())
    }

    /// Is it this model that is asked for?
    pub fn known(&self, model: &str) -> Result<(), Fault> {
        if self.names().matches(model) {
            return Ok(());
        }
        let mut there = vec![self.names().full()];
        there.extend(self.names().short().into_iter().map(str::to_owned));
        let message = format!("model {model:?} not found; this worker serves one model, by the names {}", there.join(", "));
        Err(Fault { field: Some("model".into()), ..Fault::new(FaultKind::ModelNotFound, message) })
    }

    /// May a request for this model begin now?
    pub fn admit(&self, model: &str, account: &Account) -> Result<(), Fault> {
        self.known(model)?;
        account.model(self.names().full());
        match self.phase() {
            Phase::Ready | Phase::Leaving => Ok(()),
            Phase::Starting => Err(Fault::busy(format!("{model} is loaded and still being tested; try again in a moment"))),
            Phase::Draining => Err(Fault::busy(format!("this replica of {model} is draining and takes no new requests; try again"))),
        }
    }

    /// Compiles what `field` asks answers to be held to.
    pub async fn constrain(&self, field: &str, constraint: Option<Constraint>) -> Result<Option<Grammar>, Fault> {
        let Some(constraint) = constraint else { return Ok(None) };
        let named = |fault: Fault| match fault.kind {
            FaultKind::InvalidRequest => Fault::field(field, format!("`{field}` can't be honoured: {}", fault.message)),
            _ => fault,
        };
        self.generator().constrain(constraint).await.map(Some).map_err(|error| named(error.into()))
    }

    /// How this model thinks before it answers, if it does.
    pub fn thinks(&self) -> Option<Ability> {
        Ability::of(&self.generator().info().chat_template)
    }

    /// Whether the model is told of tools where a request has some.
    pub fn takes_tools(&self) -> bool {
        let info = self.generator().info();
        info.has_chat_template && info.chat_template.contains("tools")
    }

    pub fn start(&self, request: GenerateRequest, account: &Account, reading: &Reading) -> Result<Generation, Fault> {
        let events = self.generator().generate(request)?;
        Ok(Generation::new(events, account.clone(), self.metrics.clone(), reading))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use stowage_placement::{DeviceAllocation, LayerCount};

    fn device(kind: DeviceKind, layers: &[[u32; 2]], total: u64) -> DeviceAllocation {
        DeviceAllocation { kind, layer_ranges: layers.to_vec(), total_bytes: Bytes(total), ..Default::default() }
    }

    fn sizes(devices: Vec<DeviceAllocation>) -> (u64, u64) {
        let plan = DevicePlan { processor: String::new(), gpu_layers: LayerCount(0), total_layers: LayerCount(31), devices };
        let info = PlacementInfo::of_plan(&plan, Bytes(100), Bytes(0), "");
        (info.size.0, info.size_vram.0)
    }

    #[test]
    fn a_model_wholly_on_gpu_is_as_large_in_vram_as_in_all_though_its_embeddings_are_on_the_host() {
        assert_eq!(sizes(vec![device(DeviceKind::Gpu, &[[0, 30]], 900), device(DeviceKind::Host, &[], 110)]), (900, 900));
        assert_eq!(sizes(vec![device(DeviceKind::Gpu, &[[10, 30]], 620), device(DeviceKind::Host, &[[0, 9]], 480)]), (1000, 620));
        assert_eq!(sizes(vec![device(DeviceKind::Host, &[[0, 30]], 1100)]), (1000, 0));
    }
}
