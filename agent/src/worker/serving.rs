//! A loaded model behind its HTTP API.

use std::io;
use std::sync::Arc;

use sha2::{Digest, Sha256};
use stowage_crds::model_deployment::Parameters;
use stowage_crds::model_node::Assignment;
use stowage_engine::Engine;
use stowage_placement::layout::Backend;
use stowage_placement::{Bytes, ModelSummary, device_plan};
use tokio::net::TcpListener;
use tokio::sync::{oneshot, watch};
use tokio::task::JoinHandle;

use super::loaded_file::LoadedFile;
use super::record::Order;
use crate::model_header::{self, Data};
use crate::serve::{
    self, DEFAULT_BODY_LIMIT, Keys, LargestContexts, ModelNames, Patience, Phase, PlacementInfo, RequestDefaults, RequestOptions, Settings,
    WorkerConfig, WorkerState,
};

/// The server of one worker. Names and defaults can be replaced under it; requests that run keep what they began with.
pub(super) struct Serving {
    settings: watch::Sender<Settings>,
    phase: watch::Sender<Phase>,
    stop: Option<oneshot::Sender<()>>,
    server: JoinHandle<io::Result<()>>,
}

impl Serving {
    pub fn start(engine: Engine, order: &Order, api_keys: watch::Receiver<Keys>, listener: TcpListener) -> Serving {
        let (phase, phases) = watch::channel(Phase::Starting);
        let (settings, settings_now) = watch::channel(settings(&order.assignment));
        let router = serve::worker_router(WorkerState::new(config(engine, order, settings_now, phases)));
        let router = serve::guarded(router, api_keys);
        let (stop, stopped) = oneshot::channel();
        let stopped = async {
            // Dropped without a word: the worker ends, which stops it too.
            let _ = stopped.await;
        };
        let server = tokio::spawn(serve::serve(listener, router, Patience::default(), stopped));
        Serving { settings, phase, stop: Some(stop), server }
    }

    /// Takes over aliases, defaults and system message.
    pub fn update(&self, assignment: &Assignment) {
        self.settings.send_replace(settings(assignment));
    }

    pub fn ready(&self) {
        self.phase.send_replace(Phase::Ready);
    }

    /// It is to go: `/readyz` says so, while requests that still come are served.
    pub fn leave(&self) {
        self.phase.send_replace(Phase::Leaving);
    }

    /// No new requests from here on; `/readyz` says so.
    pub fn drain(&self) {
        self.phase.send_replace(Phase::Draining);
    }

    /// Takes no new connections either. [`Serving::finished`] is when the last answer has been sent.
    pub fn stop(&mut self) {
        self.drain();
        if let Some(stop) = self.stop.take() {
            // Fails where the server has ended already.
            let _ = stop.send(());
        }
    }

    pub async fn finished(&mut self) -> io::Result<()> {
        (&mut self.server).await.map_err(io::Error::other)?
    }
}

/// What may change while the model stays loaded.
fn settings(assignment: &Assignment) -> Settings {
    let model = &assignment.model_deployment;
    Settings {
        names: ModelNames::new(&model.namespace, &model.name, assignment.aliases.clone()),
        defaults: RequestDefaults { system: assignment.system.clone(), options: options(&assignment.parameters) },
    }
}

fn config(engine: Engine, order: &Order, settings: watch::Receiver<Settings>, phase: watch::Receiver<Phase>) -> WorkerConfig {
    WorkerConfig {
        generator: Arc::new(engine),
        settings,
        request: order.assignment.request.clone(),
        num_thread: order.assignment.parameters.num_thread.unwrap_or(0),
        placement: placement_info(order),
        phase,
        body_limit: DEFAULT_BODY_LIMIT,
    }
}

/// The defaults of requests among a ModelDeployment's parameters; the others decided how the model was loaded.
fn options(parameters: &Parameters) -> RequestOptions {
    let Parameters {
        num_ctx: _,
        num_gpu: _,
        num_batch: _,
        num_thread: _,
        num_predict,
        temperature,
        top_k,
        top_p,
        min_p,
        repeat_penalty,
        repeat_last_n,
        seed,
        stop,
    } = parameters.clone();
    RequestOptions {
        num_predict,
        temperature,
        top_k,
        top_p,
        min_p,
        repeat_penalty,
        repeat_last_n: repeat_last_n.map(|tokens| i32::try_from(tokens).unwrap_or(i32::MAX)),
        seed,
        stop,
        ..RequestOptions::default()
    }
}

fn placement_info(order: &Order) -> PlacementInfo {
    let assignment = &order.assignment;
    let size = model_header::size(&order.model).unwrap_or_default();
    let digest = match assignment.source.digest.strip_prefix("sha256:") {
        Some(digest) => digest.to_owned(),
        None => stand_in(order),
    };
    let on_any_host = on_any_host(order).unwrap_or_default();
    let placement = PlacementInfo::of_plan(&assignment.plan, on_any_host, size, digest);
    PlacementInfo { largest_contexts: largest_contexts(assignment), ..placement }
}

/// `None`: an operator that knew no such fields made the assignment.
fn largest_contexts(assignment: &Assignment) -> Option<LargestContexts> {
    Some(LargestContexts { on_gpu: assignment.max_num_ctx_on_gpu?.0, anywhere: assignment.max_num_ctx?.0 })
}

/// For a file whose digest nobody knows: one of what shows that it changed. Ollama's program prints the first letters of a digest, and fails where there
/// are none.
fn stand_in(order: &Order) -> String {
    let known = LoadedFile::now(&order.model).ok().and_then(|file| serde_json::to_vec(&file).ok()).unwrap_or_default();
    Sha256::digest(known).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The host's bytes that it has wherever the layers are: of the input layer and of the process. For display alone, so a header that can't be read counts none.
fn on_any_host(order: &Order) -> Option<Bytes> {
    let joined = model_header::read(&order.model, Data::Needed).ok()?;
    let summary = ModelSummary::from_header(&joined.header, joined.size()).ok()?;
    device_plan::on_any_host(&summary, &order.assignment.request, Backend::Cpu).ok()
}
