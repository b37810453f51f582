//! The supervisor: all workers of this node.

use std::collections::{BTreeMap, HashMap};
use std::ffi::OsString;
use std::future::Future;
use std::io;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use jiff::Timestamp;
use rustix::fs::{FlockOperation, flock};
use stowage_crds::model_node::Assignment;
use tokio::sync::{mpsc, watch};
use tokio::task::AbortHandle;
use tokio_util::task::TaskTracker;

use super::confine::Confine;
use super::launch::{Program, WorkerLog};
use super::listen;
use super::process::Process;
use super::record::{self, Order, Record, Records};
use super::replica::{Command, Replica};
use super::view::{Refusal, Views, WorkerView};
use crate::serve::Keys;
use crate::store::Store;

/// Asked before a worker allocates anything: does the plan hold on the devices as they are now?
pub type Gate = Arc<dyn Fn(Assignment) -> Pin<Box<dyn Future<Output = Result<(), Refusal>> + Send>> + Send + Sync>;

/// Of a Unix socket's path; the kernel takes no more.
const LONGEST_SOCKET_PATH: usize = 107;

/// Who starts workers, and ends those that do not end by themselves.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Mode {
    /// The supervisor: they are child processes.
    #[default]
    Process,
    /// The operator: each is in a Pod of its own.
    Pod,
}

/// How workers are run.
#[derive(Clone, Debug)]
pub struct SupervisorConfig {
    pub mode: Mode,
    /// Holds the socket, and what the next agent needs to know. One agent at a time.
    pub run_dir: PathBuf,
    /// What is run as `EXECUTABLE ARGUMENTS... worker --socket PATH --assignment-file PATH`: the agent's own binary, with no arguments.
    pub executable: PathBuf,
    pub arguments: Vec<OsString>,
    /// Where child processes listen; each picks its port.
    pub worker_bind: IpAddr,
    /// The address under which others reach workers; those in Pods have addresses of their own.
    pub advertise_address: String,
    pub worker_log: WorkerLog,
    /// How much workers insist on being confined.
    pub confine: Confine,
    /// Which API keys workers ask for.
    pub api_keys: watch::Receiver<Keys>,
    /// A worker that says nothing for this long counts as not ready until it goes on.
    pub silent_after: Duration,
    /// A worker that says nothing for this long is ended and started again.
    pub heartbeat_timeout: Duration,
    /// Before the first restart; doubles with each, up to `longest_restart_delay`.
    pub restart_delay: Duration,
    pub longest_restart_delay: Duration,
    /// A worker that was ready for this long and then dies begins again with the first delay.
    pub stable_after: Duration,
    /// For a release without a deadline.
    pub grace: Duration,
    /// From a worker's deadline until SIGKILL.
    pub kill_after_deadline: Duration,
}

impl SupervisorConfig {
    pub fn new(run_dir: impl Into<PathBuf>, executable: impl Into<PathBuf>, worker_bind: IpAddr) -> SupervisorConfig {
        SupervisorConfig {
            mode: Mode::Process,
            run_dir: run_dir.into(),
            executable: executable.into(),
            arguments: Vec::new(),
            worker_bind,
            advertise_address: worker_bind.to_string(),
            worker_log: WorkerLog::Inherited,
            confine: Confine::default(),
            api_keys: watch::channel(None).1,
            silent_after: Duration::from_secs(3),
            heartbeat_timeout: Duration::from_secs(30),
            restart_delay: Duration::from_secs(1),
            longest_restart_delay: Duration::from_secs(60),
            stable_after: Duration::from_secs(120),
            grace: Duration::from_secs(30),
            kill_after_deadline: Duration::from_secs(2),
        }
    }

    pub fn socket(&self) -> PathBuf {
        let directory = match self.mode {
            Mode::Process => self.run_dir.clone(),
            Mode::Pod => record::shared(&self.run_dir),
        };
        directory.join("agent.sock")
    }
}

#[derive(Debug, thiserror::Error)]
pub enum SupervisorError {
    #[error("the run directory {} is used by another agent that is alive", _0.display())]
    InUse(PathBuf),
    #[error("the path of the workers' socket, {}, has {} bytes; the kernel takes at most {LONGEST_SOCKET_PATH}: choose a shorter run directory", _0.display(), _0.as_os_str().len())]
    SocketPathTooLong(PathBuf),
    #[error("{what} {}: {source}", path.display())]
    Io { what: &'static str, path: PathBuf, source: io::Error },
}

/// Gets model files, starts workers, starts them anew when they die, and adopts those of an earlier agent. Clones are the same supervisor.
///
/// Whatever becomes of it, the workers run on, until they are released.
#[derive(Clone)]
pub struct Supervisor {
    shared: Arc<Shared>,
    listening: AbortHandle,
}

/// What all replicas' tasks share.
pub(super) struct Shared {
    pub config: SupervisorConfig,
    pub program: Program,
    pub gate: Gate,
    pub store: Arc<Store>,
    pub records: Records,
    /// What workers in Pods that are awaited are to do, by assignment.
    pub orders: watch::Sender<BTreeMap<String, Order>>,
    views: watch::Sender<Views>,
    replicas: Mutex<HashMap<String, mpsc::UnboundedSender<Command>>>,
    tasks: TaskTracker,
    /// Held as long as this agent lives; the kernel lets go of it when it dies.
    lock: Mutex<Option<std::fs::File>>,
}

impl Supervisor {
    /// Takes over the run directory: listens where workers connect, and adopts those that live. Must be called within a Tokio runtime.
    pub fn new<G, F>(config: SupervisorConfig, gate: G, store: Arc<Store>) -> Result<Supervisor, SupervisorError>
    where
        G: Fn(Assignment) -> F + Send + Sync + 'static,
        F: Future<Output = Result<(), Refusal>> + Send + 'static,
    {
        let socket = config.socket();
        if socket.as_os_str().len() > LONGEST_SOCKET_PATH {
            return Err(SupervisorError::SocketPathTooLong(socket));
        }
        let lock = lock(&config.run_dir)?;
        let records = Records::new(&config.run_dir).map_err(failed("creating", &config.run_dir))?;
        let listener = listen::bind(&socket).map_err(failed("listening on", &socket))?;
        let program = Program {
            executable: config.executable.clone(),
            arguments: config.arguments.clone(),
            confine: config.confine,
            log: config.worker_log.clone(),
        };
        let shared = Arc::new(Shared {
            program,
            gate: Arc::new(move |assignment| Box::pin(gate(assignment))),
            store,
            records,
            orders: watch::Sender::new(BTreeMap::new()),
            views: watch::Sender::new(Views::new()),
            replicas: Mutex::default(),
            config,
            tasks: TaskTracker::new(),
            lock: Mutex::new(Some(lock)),
        });
        adopt(&shared)?;
        let listening = tokio::spawn(listen::accept(listener, Arc::downgrade(&shared))).abort_handle();
        Ok(Supervisor { shared, listening })
    }

    /// Fetches the file and has a worker load and serve it. For an assignment that is carried out already, [`Supervisor::update`].
    pub fn start(&self, assignment: &Assignment) {
        if !self.shared.send(&assignment.uid, Command::Update(Box::new(assignment.clone()))) {
            spawn(&self.shared, assignment.clone(), |replica| replica.begin());
        }
    }

    /// New aliases, defaults, system message: the worker takes them over, and reloads nothing.
    pub fn update(&self, assignment: &Assignment) {
        self.shared.send(&assignment.uid, Command::Update(Box::new(assignment.clone())));
    }

    /// No new requests; those that run are finished until the deadline. What is not ready yet ends at once.
    pub fn drain(&self, uid: &str, deadline: Option<Timestamp>) {
        self.shared.send(uid, Command::Drain(deadline));
    }

    /// Ends it, at the deadline whatever runs. Its view says `Gone` when its process is gone; at once where there is none.
    pub fn release(&self, uid: &str, deadline: Option<Timestamp>) {
        if !self.shared.send(uid, Command::Release(deadline)) {
            self.shared.show(uid, |_| {});
            self.shared.gone(uid);
        }
    }

    /// Drops the view of what is gone.
    pub fn forget(&self, uid: &str) {
        self.shared.views.send_if_modified(|views| match views.get(uid) {
            Some(view) if view.is_gone() => views.remove(uid).is_some(),
            _ => false,
        });
    }

    /// All replicas, those of an earlier agent included from the start.
    pub fn views(&self) -> watch::Receiver<Views> {
        self.shared.views.subscribe()
    }

    /// What this agent found running.
    pub fn adopted(&self) -> Vec<Assignment> {
        self.shared.views.borrow().values().filter(|view| view.runs).filter_map(|view| view.assignment.clone()).collect()
    }

    /// Has those that serve leave: they show that they drain, serve on until everybody has heard of that, and end then, at the deadline whatever runs.
    /// Says whether there are any.
    pub fn leave(&self, deadline: Option<Timestamp>) -> bool {
        let views = self.shared.views.borrow();
        let serving: Vec<String> = views.iter().filter(|(_, view)| view.is_ready()).map(|(uid, _)| uid.clone()).collect();
        drop(views);
        serving.iter().for_each(|uid| self.release(uid, deadline));
        !serving.is_empty()
    }

    /// Releases all, and returns when they are gone.
    pub async fn end_all(&self, deadline: Option<Timestamp>) {
        let mut views = self.views();
        let uids: Vec<String> = self.shared.replicas().keys().cloned().collect();
        for uid in &uids {
            self.release(uid, deadline);
        }
        // Fails where the supervisor is gone, which holds it itself.
        let _ = views.wait_for(|views| views.values().all(WorkerView::is_gone)).await;
    }

    /// Lets go of the workers, which run on, and of the run directory, which another supervisor may take over when this returns.
    pub async fn detach(&self) {
        self.listening.abort();
        self.shared.replicas().clear();
        self.shared.tasks.close();
        self.shared.tasks.wait().await;
        let lock = self.shared.lock.lock().unwrap_or_else(PoisonError::into_inner).take();
        // Not left to closing the file: a process that is being started has it open too, for a moment.
        if let Some(error) = lock.and_then(|lock| flock(&lock, FlockOperation::Unlock).err()) {
            tracing::warn!(%error, "the run directory can't be unlocked");
        }
    }
}

fn failed(what: &'static str, path: &Path) -> impl FnOnce(io::Error) -> SupervisorError {
    let path = path.to_owned();
    move |source| SupervisorError::Io { what, path, source }
}

fn lock(run_dir: &Path) -> Result<std::fs::File, SupervisorError> {
    std::fs::create_dir_all(run_dir).map_err(failed("creating", run_dir))?;
    let path = run_dir.join("agent.lock");
    let file = std::fs::File::create(&path).map_err(failed("creating", &path))?;
    match flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(file),
        Err(rustix::io::Errno::WOULDBLOCK) => Err(SupervisorError::InUse(run_dir.to_owned())),
        Err(error) => Err(failed("locking", &path)(error.into())),
    }
}

/// Takes over what an earlier agent left running. Who has ended meanwhile leaves nothing but its record, which is removed.
fn adopt(shared: &Arc<Shared>) -> Result<(), SupervisorError> {
    for record in shared.records.all().map_err(failed("reading", &shared.config.run_dir))? {
        let uid = record.assignment.uid.clone();
        match shared.process_of(&record).map_err(failed("looking for the workers of", &shared.config.run_dir))? {
            Some(process) => {
                tracing::info!(uid, pid = process.id.pid, replica = record.assignment.replica, "a worker of an earlier agent is adopted");
                let assignment = record.assignment.clone();
                shared.views.send_modify(|views| drop(views.insert(uid, record.into_view())));
                spawn(shared, assignment, |replica| replica.adopt(process));
            }
            None => shared.records.remove(&uid),
        }
    }
    shared.records.remove_unheld_lifelines().map_err(failed("looking for the workers of", &shared.config.run_dir))
}

/// Gives an assignment its task.
pub(super) fn spawn<F>(shared: &Arc<Shared>, assignment: Assignment, run: impl FnOnce(Replica) -> F)
where
    F: Future<Output = ()> + Send + 'static,
{
    let (sender, commands) = mpsc::unbounded_channel();
    shared.replicas().insert(assignment.uid.clone(), sender);
    shared.views.send_modify(|views| {
        views.entry(assignment.uid.clone()).or_insert_with(|| WorkerView::pending(&assignment));
    });
    shared.tasks.spawn(run(Replica::new(shared.clone(), assignment, commands)));
}

impl Shared {
    fn replicas(&self) -> MutexGuard<'_, HashMap<String, mpsc::UnboundedSender<Command>>> {
        self.replicas.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A worker of an earlier agent, where it lives.
    fn process_of(&self, record: &Record) -> io::Result<Option<Process>> {
        match self.config.mode {
            Mode::Process => Process::find(record.process),
            Mode::Pod => Process::behind(&self.records.lifeline(&record.assignment.uid), record.process),
        }
    }

    /// Whether a task has this assignment.
    pub fn has(&self, uid: &str) -> bool {
        self.replicas().contains_key(uid)
    }

    /// To the replica's task; false where there is none.
    pub fn send(&self, uid: &str, command: Command) -> bool {
        self.replicas().get(uid).is_some_and(|replica| replica.send(command).is_ok())
    }

    /// Hands a worker's connection to its replica's task; gives it back where there is none.
    // What comes back is the connection itself.
    #[allow(clippy::result_large_err)]
    pub fn connect(&self, uid: &str, command: Command) -> Result<(), Command> {
        match self.replicas().get(uid) {
            Some(replica) => replica.send(command).map_err(|unsent| unsent.0),
            None => Err(command),
        }
    }

    /// Changes what is seen of a replica. Nobody is woken where nothing changed.
    pub fn show(&self, uid: &str, change: impl FnOnce(&mut WorkerView)) {
        self.views.send_if_modified(|views| {
            let view = views.entry(uid.to_owned()).or_insert_with(|| WorkerView::gone(uid));
            let before = view.clone();
            change(view);
            *view != before
        });
    }

    pub fn view(&self, uid: &str) -> Option<WorkerView> {
        self.views.borrow().get(uid).cloned()
    }

    /// Nothing of it is left.
    pub fn gone(&self, uid: &str) {
        self.records.remove(uid);
        self.records.remove_lifeline(uid);
        self.program.log.remove(uid);
        self.replicas().remove(uid);
        self.show(uid, |view| {
            view.ended();
            view.state(stowage_crds::model_deployment::ReplicaState::Gone, None, None);
        });
    }
}

impl crate::node::workers::Workers for Supervisor {
    fn start(&self, assignment: &Assignment) {
        Supervisor::start(self, assignment);
    }

    fn update(&self, assignment: &Assignment) {
        Supervisor::update(self, assignment);
    }

    fn drain(&self, assignment: &Assignment) {
        Supervisor::drain(self, &assignment.uid, assignment.deadline.as_ref().map(|deadline| deadline.0));
    }

    fn release(&self, uid: &str, deadline: Option<k8s_openapi::apimachinery::pkg::apis::meta::v1::Time>) {
        Supervisor::release(self, uid, deadline.map(|deadline| deadline.0));
    }

    fn forget(&self, uid: &str) {
        Supervisor::forget(self, uid);
    }

    fn views(&self) -> watch::Receiver<Views> {
        Supervisor::views(self)
    }
}
