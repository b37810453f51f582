//! A worker's process as its agent has it, and what can come from it.

use std::future::Future;
use std::pin::Pin;
use std::process::ExitStatus;
use std::time::Duration;

use rustix::process::Signal;
use stowage_placement::Bytes;
use tokio::process::Child;
use tokio::task::JoinHandle;
use tokio::time::Instant;

use crate::devices::host;
use crate::worker::process::Process;
use crate::worker::protocol::{Connection, FromAgent, FromWorker, Hello, Phase, WorkerState};
use crate::worker::record::Record;
use crate::worker::view::Refusal;

/// For a message to a worker. One that does not read for so long is silent too, and ended for that.
const SEND_TIMEOUT: Duration = Duration::from_secs(5);

type FileLook = JoinHandle<Option<String>>;
type GateAnswer = Pin<Box<dyn Future<Output = Result<(), Refusal>> + Send>>;

/// A worker's process as its agent has it.
pub(in crate::worker) struct Worker {
    pub process: Process,
    /// Where this agent started it.
    pub child: Option<Child>,
    pub(super) connection: Option<Connection>,
    /// `None` until it has said hello to this agent: what is shown is what the earlier agent wrote down.
    pub state: Option<WorkerState>,
    pub(super) started: Instant,
    pub(super) last_heard: Instant,
    pub(super) ready_since: Option<Instant>,
    /// The gate said no.
    pub refused: Option<Refusal>,
    /// It has said nothing for so long that it does not count as ready.
    pub silent: bool,
    /// Ended for its silence, which had lasted so long; or to be ended, where that is not for the agent to do.
    pub silent_for: Option<Duration>,
    pub(super) kill_at: Option<Instant>,
    /// What it says that it takes of host memory.
    pub resident: Bytes,
    /// The most host memory that it was seen to hold.
    pub(super) peak_memory: Bytes,
    /// The kernel's count of processes that it ended for want of memory, when this one began.
    out_of_memory_kills: Option<u64>,
    pub(super) gate: Option<GateAnswer>,
    /// A look at the file that it was loaded from.
    pub(super) look: Option<FileLook>,
    pub(super) next_look: Instant,
    /// What became of that file since.
    pub file_change: Option<String>,
    pub(super) written: Option<Record>,
}

/// How a worker ended; the status is not known of a process that an earlier agent started.
pub(in crate::worker) type Exit = Option<ExitStatus>;

impl Worker {
    pub fn new(process: Process, child: Option<Child>) -> Worker {
        let now = Instant::now();
        Worker {
            process,
            child,
            connection: None,
            state: None,
            started: now,
            last_heard: now,
            ready_since: None,
            refused: None,
            silent: false,
            silent_for: None,
            kill_at: None,
            resident: Bytes::ZERO,
            peak_memory: Bytes::ZERO,
            out_of_memory_kills: host::out_of_memory_kills(),
            gate: None,
            look: None,
            next_look: now,
            file_change: None,
            written: None,
        }
    }

    pub fn connected(hello: Hello, process: Process, connection: Connection) -> Worker {
        let state = Some(hello.state);
        Worker { connection: Some(connection), state, ..Worker::new(process, None) }
    }

    pub(super) async fn send(&mut self, message: FromAgent) {
        let Some(connection) = &mut self.connection else { return };
        match tokio::time::timeout(SEND_TIMEOUT, connection.send(&message)).await {
            Ok(Ok(())) => {}
            failed => {
                tracing::warn!(pid = self.process.id.pid, ?failed, "a worker does not take a message; it may connect again");
                self.connection = None;
            }
        }
    }

    pub(super) fn signal(&self, signal: Signal) {
        if let Err(error) = self.process.signal(signal) {
            tracing::error!(pid = self.process.id.pid, ?signal, %error, "a worker can't be signalled");
        }
    }

    pub(super) fn kill_within(&mut self, time: Duration) {
        let at = Instant::now() + time;
        self.kill_at = Some(self.kill_at.map_or(at, |earlier| earlier.min(at)));
    }

    /// Whether the kernel ended it because memory ran out: by SIGKILL, which nobody here sent, while it counts one more such end.
    pub(super) fn ran_out_of_memory(&self, exit: Exit) -> bool {
        use std::os::unix::process::ExitStatusExt;
        // Of one in a Pod the kubelet says how it ended, to the operator.
        if self.process.is_elsewhere() {
            return false;
        }
        let killed_here = self.silent_for.is_some() || self.kill_at.is_some();
        let killed = exit.is_none_or(|status| status.signal() == Some(9));
        killed && !killed_here && self.out_of_memory_kills.zip(host::out_of_memory_kills()).is_some_and(|(before, now)| now > before)
    }

    pub fn phase(&self) -> Option<&Phase> {
        self.state.as_ref().map(|state| &state.phase)
    }

    /// When it no longer counts as ready if nothing is heard before. One that has not said hello to this agent yet is given more time.
    pub(super) fn silent_at(&self, silent_after: Duration) -> Option<Instant> {
        let counts = self.connection.is_some() && !self.silent && matches!(self.phase(), Some(Phase::Ready));
        counts.then(|| self.last_heard + silent_after)
    }

    /// When something is due if nothing is heard.
    pub(super) fn due(&self, heartbeat_timeout: Duration) -> Instant {
        let silence = self.last_heard + heartbeat_timeout;
        match (self.kill_at, self.silent_for) {
            (Some(kill_at), Some(_)) => kill_at,
            (Some(kill_at), None) => kill_at.min(silence),
            // Killed already; looked at again, in case the signal could not be sent.
            (None, Some(_)) => Instant::now() + heartbeat_timeout,
            (None, None) => silence,
        }
    }
}

/// Ready when the process has ended.
pub(super) async fn ended(process: &Process, child: &mut Option<Child>) -> Exit {
    let seen = match child {
        Some(child) => child.wait().await.map(Some),
        None => process.ended().await.map(|()| None),
    };
    match seen {
        Ok(exit) => exit,
        Err(error) => {
            // Never taken for an end: its bytes would be given away.
            tracing::error!(pid = process.id.pid, %error, "a worker's end can't be waited for; it is taken to hold its bytes");
            std::future::pending().await
        }
    }
}

/// The next message; waits for ever where there is no connection. `None`: the connection ended.
pub(super) async fn heard(connection: &mut Option<Connection>) -> Option<FromWorker> {
    match connection {
        Some(connection) => connection.receive().await.unwrap_or_else(|error| {
            tracing::warn!(%error, "a worker's connection broke");
            None
        }),
        None => std::future::pending().await,
    }
}

/// What became of the file, as the look that was begun has seen it.
pub(super) async fn looked(look: &mut Option<FileLook>) -> Option<String> {
    match look {
        // A look that broke has seen nothing.
        Some(look) => look.await.unwrap_or_default(),
        None => std::future::pending().await,
    }
}

pub(super) async fn answered(gate: &mut Option<GateAnswer>) -> Result<(), Refusal> {
    match gate {
        Some(answer) => answer.await,
        None => std::future::pending().await,
    }
}
