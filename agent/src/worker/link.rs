//! The worker's side of the socket: says what the worker's state is, for as long as the worker lives, to whichever agent is there.

use std::path::PathBuf;
use std::time::Duration;

use stowage_crds::model_node::Assignment;
use tokio::net::UnixStream;
use tokio::sync::{mpsc, watch};
use tokio::time::MissedTickBehavior;

use super::loaded_file::LoadedFile;
use super::process::ProcessId;
use super::protocol::{Connection, FromAgent, FromWorker, HEARTBEAT, Hello, Phase, VERSION, WorkerState};
use super::record::Order;
use crate::devices::host::OwnMemory;

/// Between attempts to connect; an agent that was restarted is found within this.
pub(super) const RECONNECT: Duration = Duration::from_millis(250);

/// A worker's link to its agent. It connects, and connects again, as long as it is not dropped.
pub(super) struct Link {
    pub state: watch::Sender<WorkerState>,
    pub messages: mpsc::UnboundedReceiver<FromAgent>,
    delivered: watch::Receiver<WorkerState>,
}

struct Speaker {
    socket: PathBuf,
    assignment: Assignment,
    file: Option<LoadedFile>,
    process: ProcessId,
    pod_uid: String,
    /// Of a worker in a Pod, whose process its agent may not see.
    memory: Option<OwnMemory>,
    state: watch::Receiver<WorkerState>,
    heard: mpsc::UnboundedSender<FromAgent>,
    delivered: watch::Sender<WorkerState>,
}

impl Link {
    /// `pod_uid`: of the Pod that the worker is in, empty where it is in none of its own.
    pub fn start(socket: PathBuf, order: &Order, process: ProcessId, pod_uid: String) -> Link {
        let (state, states) = watch::channel(WorkerState::default());
        let (heard, messages) = mpsc::unbounded_channel();
        // Differs from every state that is delivered.
        let never = WorkerState { phase: Phase::Draining, ..WorkerState::default() };
        let (sender, delivered) = watch::channel(never);
        let (assignment, file) = (order.assignment.clone(), order.file.clone());
        let memory = if pod_uid.is_empty() { None } else { OwnMemory::open() };
        let speaker = Speaker { socket, assignment, file, process, pod_uid, memory, state: states, heard, delivered: sender };
        tokio::spawn(speaker.speak());
        Link { state, messages, delivered }
    }

    /// Waits until an agent has been told the present state.
    pub async fn delivered(&mut self) {
        let state = self.state.borrow().clone();
        // Fails where the speaker has ended, which it does when this is dropped.
        let _ = self.delivered.wait_for(|delivered| *delivered == state).await;
    }
}

impl Speaker {
    async fn speak(mut self) {
        while !self.heard.is_closed() {
            match UnixStream::connect(&self.socket).await {
                Ok(stream) => {
                    if let Err(error) = self.converse(Connection::new(stream)).await {
                        tracing::info!(%error, "the agent is gone; serving goes on without it");
                    }
                }
                Err(error) => tracing::debug!(%error, "no agent listens"),
            }
            tokio::time::sleep(RECONNECT).await;
        }
    }

    /// Until the connection, or the worker, ends.
    async fn converse(&mut self, mut connection: Connection) -> std::io::Result<()> {
        let mut said = self.state.borrow_and_update().clone();
        let hello = Hello {
            version: VERSION,
            assignment: self.assignment.clone(),
            process: self.process,
            state: said.clone(),
            file: self.file.clone(),
            pod_uid: self.pod_uid.clone(),
        };
        connection.send(&FromWorker::Hello(Box::new(hello))).await?;
        if said.phase == Phase::Asking {
            connection.send(&FromWorker::MayLoad).await?;
        }
        let mut heartbeat = tokio::time::interval(HEARTBEAT);
        heartbeat.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            self.delivered.send_replace(said.clone());
            tokio::select! {
                changed = self.state.changed() => {
                    if changed.is_err() {
                        return Ok(());
                    }
                    let now = self.state.borrow_and_update().clone();
                    for message in changes(&said, &now) {
                        connection.send(&message).await?;
                    }
                    said = now;
                }
                message = connection.receive::<FromAgent>() => match message? {
                    Some(message) => self.hear(message),
                    None => return Err(std::io::ErrorKind::ConnectionReset.into()),
                },
                _ = heartbeat.tick() => {
                    let resident = self.memory.as_ref().and_then(OwnMemory::read);
                    connection.send(&FromWorker::Heartbeat { resident }).await?;
                }
            }
        }
    }

    fn hear(&mut self, message: FromAgent) {
        if let FromAgent::Update { assignment } = &message {
            self.assignment.clone_from(assignment);
        }
        // Fails where the worker is ending.
        let _ = self.heard.send(message);
    }
}

/// What an agent that knows `before` must hear to know `now`. States in between may have been missed; what they brought may not.
fn changes(before: &WorkerState, now: &WorkerState) -> Vec<FromWorker> {
    let mut messages = Vec::new();
    if let Some(address) = now.address.filter(|_| (&before.measured, before.address) != (&now.measured, now.address)) {
        messages.push(FromWorker::Loaded { measured: now.measured.clone(), address });
    }
    if before.phase != now.phase || before.speed != now.speed {
        messages.extend(match &now.phase {
            Phase::Asking => Some(FromWorker::MayLoad),
            Phase::Loading { loaded, total } => Some(FromWorker::Progress { loaded: *loaded, total: *total }),
            Phase::Testing => None,
            Phase::Ready => Some(FromWorker::Ready { speed: now.speed.clone() }),
            Phase::Draining => Some(FromWorker::Draining),
            Phase::Failed(why) => Some(FromWorker::Failed(why.clone())),
        });
    }
    messages
}

#[cfg(test)]
mod tests {
    use super::*;
    use stowage_crds::model_node::Speed;
    use stowage_placement::Bytes;

    #[test]
    fn an_agent_that_missed_a_state_still_hears_what_it_brought() {
        let before = WorkerState { phase: Phase::Loading { loaded: Bytes(1), total: Bytes(2) }, ..WorkerState::default() };
        let address = "127.0.0.1:1".parse().unwrap();
        let speed = Some(Speed { prefill_tokens_per_second: 12.5, ..Speed::default() });
        let now = WorkerState { phase: Phase::Ready, measured: Vec::new(), address: Some(address), speed: speed.clone() };
        assert_eq!(changes(&before, &now), [FromWorker::Loaded { measured: Vec::new(), address }, FromWorker::Ready { speed }]);
        assert_eq!(changes(&now, &now), []);
        let slower = Some(Speed::default());
        let later = WorkerState { speed: slower.clone(), ..now.clone() };
        assert_eq!(changes(&now, &later), [FromWorker::Ready { speed: slower }]);
    }
}
