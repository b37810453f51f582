//! `agent run`: makes the parts of the agent, connects them, and ends them in order.

use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result};
use axum::Router;
use jiff::{SignedDuration, Timestamp};
use kube::config::{KubeConfigOptions, Kubeconfig};
use stowage_sources::AddressPolicy;
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{mpsc, oneshot, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::config::{RunArgs, WorkerLogArg, WorkersArg};
use crate::devices::{Devices, Memory};
use crate::node::calibrator::{self, Calibrator};
use crate::node::controller::{Controller, Parts, ReadDevices};
use crate::node::figures::{NodeCollector, NodeFigures};
use crate::node::lease;
use crate::node::workers::GateRequest;
use crate::serve::{self, DEFAULT_BODY_LIMIT, DoorState, Keys, Patience, door_router};
use crate::store::{Store, StoreConfig};
use crate::worker::{HEARD_BY, LastLines, Mode, Refusal, Supervisor, SupervisorConfig, WorkerLog};
use stowage_placement::Reason;

/// How often the model directory is looked at.
const SCAN_EVERY: Duration = Duration::from_secs(5);
/// How often the API keys are read. The kubelet takes about a minute to bring a Secret's change to a node.
const READ_KEYS_EVERY: Duration = Duration::from_secs(5);
/// Questions at the gate that may wait for the controller.
const GATE_QUEUE: usize = 16;
/// For requests at the door that still run when the agent ends.
const DOOR_GRACE: Duration = Duration::from_secs(2);
/// For the workers to end, with `--stop-workers-on-exit`.
const WORKERS_GRACE: SignedDuration = SignedDuration::from_secs(5);

/// Runs until SIGTERM or SIGINT. A second one ends it at once.
pub async fn run(args: RunArgs) -> Result<()> {
    let node = node_name(&args)?;
    anyhow::ensure!(
        args.workers == WorkersArg::Process || !args.stop_workers_on_exit,
        "--stop-workers-on-exit is for workers that are the agent's children; those of --workers=pod end when their Pods do"
    );
    let client = client(&args).await?;
    let (stop, leaving) = (CancellationToken::new(), CancellationToken::new());
    let tasks = TaskTracker::new();

    let listener =
        TcpListener::bind(args.door_address).await.with_context(|| format!("opening the node's door at {}", args.door_address))?;
    let (routes_sender, routes) = watch::channel(Vec::new());
    let (figures_sender, figures) = watch::channel(NodeFigures::default());
    let store = Arc::new(store(&args)?);
    let (gate_sender, gate) = mpsc::channel(GATE_QUEUE);
    let api_keys = api_keys(&args)?;
    let supervisor = supervisor(&args, gate_sender, store.clone(), api_keys.clone())?;

    let door = door_router(DoorState::with_figures(routes, DEFAULT_BODY_LIMIT, NodeCollector(figures)));
    tasks.spawn(open_door(listener, serve::guarded(door, api_keys), stop.clone()));
    tasks.spawn(lease::keep(client.clone(), args.system_namespace.clone(), node.clone(), stop.clone()));
    let controller = Controller::new(Parts {
        client,
        node: node.clone(),
        address: args.advertise_address.to_string(),
        workers: supervisor.clone(),
        devices: devices(&args),
        models: store.models(),
        gate,
        routes: routes_sender,
        figures: figures_sender,
        calibration: cache_dir(&args).join("calibration.json"),
        calibrator: calibrator(&args)?,
        leaving: leaving.clone(),
    });
    tasks.spawn(controller.run(stop.clone()));
    tokio::spawn(async move { store.watch(SCAN_EVERY).await });
    tracing::info!(node, address = %args.advertise_address, version = env!("CARGO_PKG_VERSION"), "the agent runs");

    told_to_end().await?;
    tracing::info!(node, "ending");
    if args.stop_workers_on_exit {
        leave(&supervisor, &leaving).await;
    }
    stop.cancel();
    tasks.close();
    tasks.wait().await;
    end_workers(&args, &supervisor).await;
    Ok(())
}

fn node_name(args: &RunArgs) -> Result<String> {
    if let Some(name) = &args.node_name {
        return Ok(name.clone());
    }
    let host = rustix::system::uname().nodename().to_str().context("reading the host's name")?.to_lowercase();
    anyhow::ensure!(!host.is_empty(), "the host has no name: say which Node this is with --node-name");
    Ok(host)
}

async fn client(args: &RunArgs) -> Result<kube::Client> {
    // A second call finds the provider there, which is as good.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let config = match &args.kubeconfig {
        Some(path) => {
            let kubeconfig = Kubeconfig::read_from(path).with_context(|| format!("reading the kubeconfig {}", path.display()))?;
            kube::Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await.context("using the kubeconfig")?
        }
        None => kube::Config::infer().await.context("finding the cluster: there is no kubeconfig and no service account")?,
    };
    kube::Client::try_from(config).context("connecting to the cluster")
}

/// Where downloads are kept, and what the agent learns.
fn cache_dir(args: &RunArgs) -> PathBuf {
    args.cache_dir.clone().unwrap_or_else(|| args.model_dir.clone())
}

fn store(args: &RunArgs) -> Result<Store> {
    let addresses = AddressPolicy::parse(&args.allow_source_addresses).context("reading --allow-source-address")?;
    let cache_dir = cache_dir(args);
    for directory in [&args.model_dir, &cache_dir] {
        std::fs::create_dir_all(directory).with_context(|| format!("creating {}", directory.display()))?;
    }
    Ok(Store::new(StoreConfig::new(Some(args.model_dir.clone()), cache_dir, addresses)))
}

/// The API keys that count, now and later; `None` where everybody may ask.
fn api_keys(args: &RunArgs) -> Result<watch::Receiver<Keys>> {
    let Some(folder) = &args.api_keys_dir else { return Ok(watch::channel(None).1) };
    let keys = serve::read_keys(folder)?;
    match keys.len() {
        0 => tracing::warn!(folder = %folder.display(), "there is no API key yet, so nobody may ask"),
        count => tracing::info!(count, "whoever asks needs an API key"),
    }
    let (sender, keys) = watch::channel(Some(keys));
    tokio::spawn(serve::follow_keys(folder.clone(), READ_KEYS_EVERY, sender));
    Ok(keys)
}

/// The supervisor, whose gate is the controller.
fn supervisor(args: &RunArgs, gate: mpsc::Sender<GateRequest>, store: Arc<Store>, api_keys: watch::Receiver<Keys>) -> Result<Supervisor> {
    let executable = std::env::current_exe().context("finding the agent's own binary, which workers are started from")?;
    let run_dir: PathBuf = std::path::absolute(&args.run_dir).with_context(|| format!("finding {}", args.run_dir.display()))?;
    let config = SupervisorConfig {
        mode: match args.workers {
            WorkersArg::Process => Mode::Process,
            WorkersArg::Pod => Mode::Pod,
        },
        advertise_address: args.advertise_address.to_string(),
        worker_log: match args.worker_log {
            WorkerLogArg::Files => WorkerLog::Directory(run_dir.join("logs")),
            WorkerLogArg::Forward => WorkerLog::Forwarded(LastLines::default()),
        },
        confine: args.confine,
        api_keys,
        ..SupervisorConfig::new(run_dir, executable, args.worker_bind_address)
    };
    let ask = move |assignment: stowage_crds::model_node::Assignment| {
        let gate = gate.clone();
        async move {
            let ending = || Refusal::new(Reason::Pending, "the agent is ending; its successor answers");
            let (answer, answered) = oneshot::channel();
            gate.send(GateRequest { uid: assignment.uid, answer }).await.map_err(|_| ending())?;
            answered.await.map_err(|_| ending())?
        }
    };
    Supervisor::new(config, ask, store).context("starting the supervisor of the workers")
}

/// What measures GPUs of which nothing is known.
fn calibrator(args: &RunArgs) -> Result<Calibrator> {
    let settings = calibrator::Settings {
        executable: std::env::current_exe().context("finding the agent's own binary, by which GPUs are calibrated")?,
        folder: args.run_dir.join("calibration"),
        unfinished: cache_dir(args).join("calibration.unfinished.json"),
        confine: args.confine,
    };
    Ok(Calibrator::new((!args.skip_calibration).then_some(settings)))
}

fn devices(args: &RunArgs) -> ReadDevices {
    // Workers in Pods of their own have limits of their own: what the agent may take says nothing of them.
    let memory = if args.workers == WorkersArg::Pod { Memory::Machine } else { Memory::Limit };
    let devices = Mutex::new(Devices::new(args.devices.nvml_library.clone(), args.devices.cpu_only, memory));
    Arc::new(move || devices.lock().unwrap_or_else(PoisonError::into_inner).read())
}

/// Serves the node's door until `stop`. Where it really listens goes to standard output, for whoever asked for any port.
async fn open_door(listener: TcpListener, door: Router, stop: CancellationToken) {
    match listener.local_addr() {
        Ok(address) => {
            println!("door: {address}");
            tracing::info!(%address, "the node's door is open");
        }
        Err(error) => tracing::warn!(%error, "the node's door is open at an address that can't be told"),
    }
    let stopped = stop.clone();
    let serving = serve::serve(listener, door, Patience::default(), async move { stopped.cancelled().await });
    let grace = async {
        stop.cancelled().await;
        tokio::time::sleep(DOOR_GRACE).await;
    };
    tokio::select! {
        served = serving => if let Err(error) = served {
            tracing::error!(%error, "the node's door closed");
        },
        () = grace => tracing::info!("requests at the door are cut off"),
    }
}

/// Returns at the first SIGTERM or SIGINT; the next one ends the process.
async fn told_to_end() -> Result<()> {
    let mut terminate = signal(SignalKind::terminate()).context("listening for SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("listening for SIGINT")?;
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    tokio::spawn(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        std::process::exit(1);
    });
    Ok(())
}

/// Workers leave their Services before they end: the operator hears of it from the controller, which goes on as long as they serve.
async fn leave(supervisor: &Supervisor, leaving: &CancellationToken) {
    leaving.cancel();
    if supervisor.leave(Some(Timestamp::now() + SignedDuration::try_from(HEARD_BY).unwrap_or_default() + WORKERS_GRACE)) {
        tokio::time::sleep(HEARD_BY).await;
    }
}

async fn end_workers(args: &RunArgs, supervisor: &Supervisor) {
    if args.stop_workers_on_exit {
        supervisor.end_all(Some(Timestamp::now() + WORKERS_GRACE)).await;
    } else if supervisor.views().borrow().values().any(|view| view.runs) {
        tracing::info!("workers serve on; the next agent takes them over");
    }
}
