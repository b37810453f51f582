//! The worker: loads one replica and serves it until it is told to end.
//!
//! It asks the agent once, before it allocates anything. After that it needs no agent: when its agent goes away it keeps serving, and tells the next
//! one all it is.
//!
//! [`prepare`] takes what it needs of the machine and gives up the rest, while it is alone in its process; [`Prepared::run`] does the work.

use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use jiff::Timestamp;
use stowage_engine::{BackendChoice, Engine, EngineError, LoadProgress, LoadRequest, Start};
use stowage_placement::Reason;
use tokio::net::TcpSocket;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::{oneshot, watch};

use super::confine::{Confine, Confinement, NotConfined, Policy, confine};
use super::join::{self, PodArguments};
use super::lifeline::Lifeline;
use super::link::Link;
use super::memory;
use super::process::ProcessId;
use super::protocol::{FromAgent, Phase, WorkerState};
use super::record::{self, Order};
use super::serving::Serving;
use super::speed::reported;
use super::view::Refusal;
use crate::serve::Keys;

/// Connections that may wait to be taken.
const BACKLOG: u32 = 1024;
/// For the agent to hear why the worker failed.
const LAST_WORDS: Duration = Duration::from_secs(5);

/// How an agent, or a Pod, starts a worker.
#[derive(Clone, Debug, clap::Args)]
pub struct WorkerArguments {
    /// The agent's Unix socket.
    #[arg(long)]
    pub socket: PathBuf,
    /// What to load, written by the agent whose child the worker is.
    #[arg(long, required_unless_present = "assignment", conflicts_with = "assignment")]
    pub assignment_file: Option<PathBuf>,
    #[command(flatten)]
    pub pod: PodArguments,
    /// How much to insist on being confined.
    #[arg(long, env = "STOWAGE_CONFINE", value_enum, value_name = "HOW", default_value_t)]
    pub confine: Confine,
    /// Names in JSON what to try instead of loading anything: a worker in the hands of somebody else.
    #[cfg(feature = "hostile-worker")]
    #[arg(long)]
    pub attempts: Option<PathBuf>,
}

#[derive(Debug, thiserror::Error)]
pub enum WorkerError {
    #[error("reading the worker's order {}: {source}", path.display())]
    Order { path: PathBuf, source: io::Error },
    #[error("taking hold of {}, by which the agent sees that the worker lives: {source}", path.display())]
    Lifeline { path: PathBuf, source: io::Error },
    #[error("setting up the worker's process: {0}")]
    Setup(io::Error),
    /// The agent was told, where there was one.
    #[error("{0}")]
    Failed(Refusal),
}

/// A worker that has its order, its port, and no more of the machine than it needs. It has not looked at the model's file yet.
pub struct Prepared {
    order: Order,
    socket: PathBuf,
    process: ProcessId,
    /// Empty where it is in no Pod of its own.
    pod_uid: String,
    /// To be kept for as long as the worker lives.
    _lifeline: Option<Lifeline>,
    port: io::Result<TcpSocket>,
    confinement: Result<Confinement, NotConfined>,
    #[cfg(feature = "hostile-worker")]
    attempts: Option<super::confine::attempts::Attempts>,
}

/// Sets the process up; `None` where it is told to end before it is told what to do. To be called before there is a second thread, for threads are confined
/// as the one that starts them.
pub fn prepare(arguments: WorkerArguments) -> Result<Option<Prepared>, WorkerError> {
    // Fails where it is a session's leader already, as in a Pod, which is as good: what ends the agent's session must not end the worker.
    let _ = rustix::process::setsid();
    let process = ProcessId::own().map_err(WorkerError::Setup)?;
    // Told to end before it was told what to do.
    let Some((order, lifeline)) = order(&arguments)? else { return Ok(None) };
    #[cfg(feature = "hostile-worker")]
    let attempts = arguments.attempts.map(|path| record::read(&path).map_err(|source| WorkerError::Order { path, source })).transpose()?;
    // Once it is confined, it can bind none.
    let port = bind(SocketAddr::new(order.bind, order.port));
    let confinement = confine(&Policy::of(&order), arguments.confine);
    Ok(Some(Prepared {
        order,
        socket: arguments.socket,
        process,
        pod_uid: arguments.pod.pod_uid,
        _lifeline: lifeline,
        port,
        confinement,
        #[cfg(feature = "hostile-worker")]
        attempts,
    }))
}

impl Prepared {
    /// Loads and serves until told to end. The caller should end the process with what this returns: a load that was given up may still be running.
    pub async fn run(self) -> Result<(), WorkerError> {
        #[cfg(feature = "hostile-worker")]
        if let Some(attempts) = self.attempts {
            attempts.try_all(self.port.map_err(WorkerError::Setup)?);
            return Ok(());
        }
        let ends = Ends { terminate: signal(SignalKind::terminate()).map_err(WorkerError::Setup)? };
        let link = Link::start(self.socket, &self.order, self.process, self.pod_uid);
        let mut running = Running { order: self.order, link, ends, api_keys: watch::Sender::new(None) };
        match running.carry_out(self.port, self.confinement).await {
            Ok(()) => Ok(()),
            Err(why) => {
                tracing::error!(reason = %why.reason, message = why.message, "the replica can't be carried out");
                running.phase(Phase::Failed(why.clone()));
                // An agent that is away for longer finds the worker gone, starts another, and hears it from that.
                let _ = tokio::time::timeout(LAST_WORDS, running.link.delivered()).await;
                Err(WorkerError::Failed(why))
            }
        }
    }
}

/// A port of its own, at which nobody is heard yet.
fn bind(address: SocketAddr) -> io::Result<TcpSocket> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    Ok(socket)
}

/// What the worker is to do: written down for it, or asked for. `None` where it is told to end before it is told that.
fn order(arguments: &WorkerArguments) -> Result<Option<(Order, Option<Lifeline>)>, WorkerError> {
    if let Some(path) = &arguments.assignment_file {
        let order = record::read(path).map_err(|source| WorkerError::Order { path: path.clone(), source })?;
        return Ok(Some((order, None)));
    }
    let uid = arguments.pod.assignment.as_deref().unwrap_or_default();
    // On this thread alone, and over before the process is confined.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(WorkerError::Setup)?;
    runtime.block_on(async {
        // A container's first process ends by no signal that it has no handler for.
        let mut terminate = signal(SignalKind::terminate()).map_err(WorkerError::Setup)?;
        tokio::select! {
            joined = join::join(&arguments.socket, uid, &arguments.pod) => joined.map(|(order, lifeline)| Some((order, Some(lifeline)))),
            _ = terminate.recv() => Ok(None),
        }
    })
}

struct Running {
    order: Order,
    link: Link,
    ends: Ends,
    /// Which it asks for; its agent has said so before it says that it may load.
    api_keys: watch::Sender<Keys>,
}

struct Ends {
    terminate: Signal,
}

/// By then everybody has heard that a replica has left its Service.
pub const HEARD_BY: Duration = Duration::from_secs(2);

/// What somebody wants of the worker.
enum Wish {
    Go,
    Drain(Timestamp),
    End(Timestamp),
    /// SIGTERM: as end, with whatever deadline there is.
    Terminate,
    /// The order has changed.
    Updated,
}

impl Running {
    async fn carry_out(&mut self, port: io::Result<TcpSocket>, confinement: Result<Confinement, NotConfined>) -> Result<(), Refusal> {
        let _confinement = confinement.map_err(|error| Refusal::new(Reason::LoadFailed, error.to_string()))?;
        let bind = self.order.bind;
        let no_port = |error| Refusal::new(Reason::LoadFailed, format!("listening on {bind}: {error}"));
        let port = port.map_err(no_port)?;
        if !self.may_load().await {
            return Ok(());
        }
        let Some(engine) = self.load().await? else { return Ok(()) };
        memory::give_back();
        let listening = port.listen(BACKLOG).and_then(|listener| Ok((listener.local_addr()?, listener)));
        let (address, listener) = listening.map_err(no_port)?;
        let address = SocketAddr::new(self.order.pod_address.unwrap_or(address.ip()), address.port());
        let serving = Serving::start(engine.clone(), &self.order, self.api_keys.subscribe(), listener);
        self.link.state.send_replace(WorkerState {
            phase: Phase::Testing,
            measured: engine.measured(),
            address: Some(address),
            speed: None,
        });
        self.serve(engine, serving).await
    }

    /// For SIGTERM, which brings no deadline.
    fn grace(&self) -> Duration {
        Duration::from_secs(self.order.assignment.termination_grace_period_seconds.into())
    }

    fn phase(&self, phase: Phase) {
        self.link.state.send_modify(|state| state.phase = phase);
    }

    /// The next wish. What changes the order is done here.
    async fn wish(&mut self) -> Wish {
        loop {
            let message = tokio::select! {
                Some(message) = self.link.messages.recv() => message,
                Some(()) = self.ends.terminate.recv() => return Wish::Terminate,
                else => std::future::pending().await,
            };
            return match message {
                FromAgent::Welcome { version: _, api_keys } | FromAgent::ApiKeys { api_keys } => {
                    self.api_keys.send_replace(api_keys);
                    continue;
                }
                FromAgent::Order(_) => continue,
                FromAgent::Go => Wish::Go,
                FromAgent::No(_) => Wish::End(Timestamp::now()),
                FromAgent::Drain { deadline } => Wish::Drain(deadline),
                FromAgent::End { deadline } => Wish::End(deadline),
                FromAgent::Update { assignment } => {
                    if self.order.assignment == *assignment {
                        continue;
                    }
                    self.order.assignment = *assignment;
                    Wish::Updated
                }
            };
        }
    }

    /// Waits for the agent's answer, however long the agent is away.
    async fn may_load(&mut self) -> bool {
        loop {
            match self.wish().await {
                Wish::Go => return true,
                Wish::Drain(_) | Wish::End(_) | Wish::Terminate => return false,
                Wish::Updated => {}
            }
        }
    }

    /// `None` where it was told to end meanwhile.
    async fn load(&mut self) -> Result<Option<Engine>, Refusal> {
        let state = self.link.state.clone();
        let progress = move |LoadProgress { loaded, total }: LoadProgress| {
            state.send_if_modified(|state| {
                let before = std::mem::replace(&mut state.phase, Phase::Loading { loaded, total });
                // In whole percent, so that a large model does not say more than a small one.
                let is_new =
                    !matches!(before, Phase::Loading { loaded: before, .. } if percent(before.0, total.0) == percent(loaded.0, total.0));
                if !is_new {
                    state.phase = before;
                }
                is_new
            });
        };
        let mut loaded = load(load_request(&self.order), progress)?;
        loop {
            let wish = tokio::select! {
                loaded = &mut loaded => return match loaded {
                    Ok(Ok(engine)) => Ok(Some(engine)),
                    Ok(Err(error)) => Err(refusal(error)),
                    Err(_) => Err(Refusal::new(Reason::LoadFailed, "the thread that loads the model panicked; the worker's log says where")),
                },
                wish = self.wish() => wish,
            };
            if let Wish::Drain(_) | Wish::End(_) | Wish::Terminate = wish {
                return Ok(None);
            }
        }
    }

    /// From the self-test to the end.
    async fn serve(&mut self, engine: Engine, mut serving: Serving) -> Result<(), Refusal> {
        let (tested, measured) = (engine.self_test(), engine.measure_speed());
        tokio::pin!(tested, measured);
        let (mut is_tested, mut is_measured) = (false, false);
        let mut deadline = None;
        loop {
            tokio::select! {
                result = &mut tested, if !is_tested => {
                    result.map_err(refusal)?;
                    is_tested = true;
                    if deadline.is_none() {
                        serving.ready();
                        self.phase(Phase::Ready);
                        tracing::info!(replica = self.order.assignment.replica, "the replica serves");
                    }
                }
                result = &mut measured, if is_tested && !is_measured => {
                    is_measured = true;
                    match result {
                        Ok(speed) => self.link.state.send_modify(|state| state.speed = Some(reported(speed, Timestamp::now()))),
                        Err(why) => tracing::warn!(%why, "how fast the replica is was not measured"),
                    }
                }
                wish = self.wish() => match wish {
                    Wish::Go => {}
                    Wish::Updated => serving.update(&self.order.assignment),
                    Wish::Drain(at) => {
                        serving.drain();
                        self.phase(Phase::Draining);
                        deadline = Some(at);
                    }
                    Wish::End(at) => return self.end(serving, at).await,
                    Wish::Terminate => return self.end(serving, deadline.unwrap_or_else(|| after(self.grace()))).await,
                },
                () = until(deadline), if deadline.is_some() => return Ok(()),
                result = serving.finished() => {
                    let why = result.err().map_or_else(|| "it stopped".to_owned(), |error| error.to_string());
                    return Err(Refusal::new(Reason::LoadFailed, format!("the worker's HTTP server ended: {why}")));
                }
            }
        }
    }

    /// Finishes the answers that run, until the deadline. It stands in no Service any more, but who sends requests there hears that a little later.
    async fn end(&mut self, mut serving: Serving, mut deadline: Timestamp) -> Result<(), Refusal> {
        serving.leave();
        self.phase(Phase::Draining);
        let heard = until(Some(after(HEARD_BY)));
        tokio::pin!(heard);
        let mut leaves = true;
        loop {
            tokio::select! {
                () = &mut heard, if leaves => {
                    leaves = false;
                    serving.stop();
                }
                _ = serving.finished() => return Ok(()),
                () = until(Some(deadline)) => {
                    tracing::warn!("the deadline has come; answers that still run are cut off");
                    return Ok(());
                }
                // SIGTERM comes along with an end, and changes nothing.
                wish = self.wish() => if let Wish::Drain(at) | Wish::End(at) = wish {
                    deadline = at;
                }
            }
        }
    }
}

fn load_request(order: &Order) -> LoadRequest {
    let assignment = &order.assignment;
    LoadRequest {
        path: order.model.clone(),
        start: Start::InFiles { packed: order.packed.clone() },
        plan: assignment.plan.clone(),
        request: assignment.request.clone(),
        num_thread: assignment.parameters.num_thread.unwrap_or(0),
        template: assignment.template.clone(),
        backend: BackendChoice::Cpu,
    }
}

type Loaded = oneshot::Receiver<Result<Engine, EngineError>>;

/// On a thread of its own, which nobody waits for: a worker that is told to end while it loads ends at once.
fn load(request: LoadRequest, progress: impl FnMut(LoadProgress) + Send + 'static) -> Result<Loaded, Refusal> {
    let (sender, loaded) = oneshot::channel();
    let path = request.path.clone();
    let thread = std::thread::Builder::new().name("load".to_owned());
    // The receiver is dropped where nobody waits any more.
    let started = thread.spawn(move || drop(sender.send(Engine::load(request, progress))));
    started.map_err(|error| Refusal::new(Reason::LoadFailed, format!("starting a thread to load {}: {error}", shown(&path))))?;
    Ok(loaded)
}

fn shown(path: &Path) -> String {
    path.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

fn refusal(error: EngineError) -> Refusal {
    Refusal::new(error.reason, error.message)
}

fn percent(part: u64, whole: u64) -> u128 {
    u128::from(part) * 100 / u128::from(whole.max(1))
}

fn after(time: Duration) -> Timestamp {
    Timestamp::now().checked_add(time).unwrap_or(Timestamp::MAX)
}

async fn until(deadline: Option<Timestamp>) {
    let left = deadline.map(|deadline| deadline.duration_since(Timestamp::now()));
    tokio::time::sleep(left.and_then(|left| Duration::try_from(left).ok()).unwrap_or_default()).await;
}
