//! One assignment's task, while it has no process: fetching, pausing before a restart, resting. `attend` goes on where there is one.

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use stowage_crds::model_deployment::ReplicaState;
use stowage_crds::model_node::Assignment;
use stowage_placement::{DeviceKind, Reason};
use tokio::sync::mpsc;

use super::attend::Worker;
use super::control::{Mode, Shared};
use super::lifeline;
use super::loaded_file::LoadedFile;
use super::process::{Process, ProcessId};
use super::protocol::{Connection, Hello};
use super::record::Order;
use super::view::{Refusal, WorkerView};
use crate::store::Progress;

/// What the supervisor tells a replica's task.
pub(super) enum Command {
    Update(Box<Assignment>),
    Drain(Option<Timestamp>),
    Release(Option<Timestamp>),
    /// A worker for this assignment said hello.
    Connected {
        hello: Box<Hello>,
        process: Process,
        connection: Box<Connection>,
    },
}

/// What is to become of the replica.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Wanted {
    Serve,
    Drained(Timestamp),
    Released(Timestamp),
}

/// What the task does next.
pub(super) enum Step {
    BringUp,
    Attend(Box<Worker>),
    /// A worker in a Pod is to join.
    Await(Box<Order>),
    /// Try again after a while.
    Pause(Refusal),
    /// Nothing is left to do until the operator says otherwise.
    Rest,
    Released,
    /// The supervisor is gone. Whatever runs goes on.
    Detached,
}

pub(super) struct Replica {
    pub shared: Arc<Shared>,
    pub assignment: Assignment,
    pub commands: mpsc::UnboundedReceiver<Command>,
    pub wanted: Wanted,
    /// Failures since it last was well; the delay grows with them.
    pub failures: u32,
    pub starts_again: bool,
    /// Workers that no one asked for, on their way out.
    pub strays: Vec<Process>,
}

impl Replica {
    pub fn new(shared: Arc<Shared>, assignment: Assignment, commands: mpsc::UnboundedReceiver<Command>) -> Replica {
        Replica { shared, assignment, commands, wanted: Wanted::Serve, failures: 0, starts_again: false, strays: Vec::new() }
    }

    pub async fn begin(self) {
        self.run(Step::BringUp).await;
    }

    /// Of an earlier agent, found by its record; it has not said hello yet.
    pub async fn adopt(self, process: Process) {
        let worker = Worker::new(process, None);
        self.run(Step::Attend(Box::new(worker))).await;
    }

    /// Of an earlier agent that did not live to write it down.
    pub async fn adopt_connected(mut self, hello: Box<Hello>, process: Process, connection: Box<Connection>) {
        let step = self.take_in(*hello, process, *connection);
        self.run(step).await;
    }

    async fn run(mut self, mut step: Step) {
        loop {
            step = match step {
                Step::BringUp => self.bring_up().await,
                Step::Attend(worker) => self.attend(worker).await,
                Step::Await(order) => self.awaits(*order).await,
                Step::Pause(why) => self.pause(why).await,
                Step::Rest => self.rest().await,
                Step::Released => return self.released().await,
                Step::Detached => return,
            }
        }
    }

    pub fn uid(&self) -> &str {
        &self.assignment.uid
    }

    pub fn show(&self, change: impl FnOnce(&mut WorkerView)) {
        self.shared.show(self.uid(), change);
    }

    /// Takes over an assignment as it is now.
    pub fn told(&mut self, assignment: Assignment) {
        self.show(|view| view.assignment = Some(assignment.clone()));
        self.assignment = assignment;
    }

    /// Gets the model's file, and starts a worker for it.
    async fn bring_up(&mut self) -> Step {
        let (shared, source) = (self.shared.clone(), self.assignment.source.clone());
        let uid = self.uid().to_owned();
        let progress = {
            let shared = shared.clone();
            move |progress: Progress| shared.show(&uid, |view| view.state(ReplicaState::Downloading, progress.percent(), None))
        };
        let fetching = shared.store.ensure(&source, progress);
        tokio::pin!(fetching);
        loop {
            let command = tokio::select! {
                fetched = &mut fetching => return match fetched {
                    Ok(model) => self.launch(model),
                    Err(error) => self.no_file(Refusal::new(error.reason, error.message)),
                },
                command = self.commands.recv() => command,
            };
            if let Some(step) = self.idle(command) {
                return step;
            }
        }
    }

    fn launch(&mut self, model: std::path::PathBuf) -> Step {
        let config = &self.shared.config;
        let file = LoadedFile::now(&model).ok();
        let (assignment, bind) = (self.assignment.clone(), config.worker_bind);
        let order = Order { assignment, model, file: file.clone(), bind, port: 0, pod_address: None };
        if config.mode == Mode::Pod {
            return Step::Await(Box::new(order));
        }
        let (uid, replica) = (self.uid(), self.assignment.replica.as_str());
        let devices = order.assignment.plan.devices.iter().filter(|on| on.kind == DeviceKind::Gpu);
        let gpus: Vec<&str> = devices.map(|on| on.id.as_str()).collect();
        let written = self.shared.records.write_order(&order);
        let started = written.and_then(|path| self.shared.program.start(uid, replica, &config.socket(), &path, &gpus));
        let child = match started {
            Ok(child) => child,
            Err(error) => {
                let message = format!("starting {}: {error}", config.executable.display());
                return Step::Pause(Refusal::new(Reason::WorkerCrashed, message));
            }
        };
        let process = child.id().and_then(|pid| ProcessId::of(pid).ok()).and_then(|id| Process::find(id).ok().flatten());
        let Some(process) = process else {
            return Step::Pause(Refusal::new(Reason::WorkerCrashed, "the worker ended as soon as it was started".to_owned()));
        };
        tracing::info!(uid = self.uid(), replica = self.assignment.replica, pid = process.id.pid, "a worker is started");
        let starts_again = std::mem::take(&mut self.starts_again);
        self.show(|view| {
            view.file = file;
            view.status.restarts = view.status.restarts.saturating_add(starts_again.into());
            view.state(ReplicaState::Loading, None, None);
        });
        Step::Attend(Box::new(Worker::new(process, Some(child))))
    }

    /// Until a worker in a Pod has come and has its order.
    async fn awaits(&mut self, mut order: Order) -> Step {
        let path = self.shared.records.lifeline(self.uid());
        if let Err(error) = lifeline::make(&path) {
            return Step::Pause(Refusal::new(Reason::WorkerCrashed, format!("making {}: {error}", path.display())));
        }
        self.show(|view| view.state(ReplicaState::Loading, None, Some(Refusal::new(Reason::WorkerStarting, ""))));
        let shared = self.shared.clone();
        loop {
            order.assignment.clone_from(&self.assignment);
            shared.orders.send_modify(|orders| drop(orders.insert(order.assignment.uid.clone(), order.clone())));
            let command = self.commands.recv().await;
            if let Some(step) = self.idle(command) {
                shared.orders.send_modify(|orders| drop(orders.remove(&order.assignment.uid)));
                return step;
            }
        }
    }

    /// A worker that this agent has not started, or not with its own hands.
    fn take_in(&mut self, hello: Hello, process: Process, connection: Connection) -> Step {
        let starts_again = std::mem::take(&mut self.starts_again);
        self.show(|view| {
            view.file.clone_from(&hello.file);
            view.status.pod_uid.clone_from(&hello.pod_uid);
            view.status.restarts = view.status.restarts.saturating_add(starts_again.into());
        });
        Step::Attend(Box::new(Worker::connected(hello, process, connection)))
    }

    /// A file of the model directory that is not, or not as, it was planned with: the plan does not hold here. What can be downloaded is tried again.
    fn no_file(&mut self, why: Refusal) -> Step {
        let is_local = self.assignment.source.model.path.is_some();
        if is_local && matches!(why.reason, Reason::ModelNotFound | Reason::ModelFileChanged) {
            tracing::warn!(uid = self.uid(), replica = self.assignment.replica, refusal = %why, "refused");
            self.show(|view| view.state(ReplicaState::Refused, None, Some(why)));
            return Step::Rest;
        }
        self.not_yet(why)
    }

    /// After a failure: again in a while, where that may help.
    pub fn not_yet(&mut self, why: Refusal) -> Step {
        if !helps_to_try_again(why.reason) {
            self.show(|view| view.state(ReplicaState::Failed, None, Some(why)));
            return Step::Rest;
        }
        Step::Pause(why)
    }

    async fn pause(&mut self, why: Refusal) -> Step {
        let delay = self.delay();
        self.failures = self.failures.saturating_add(1);
        tracing::warn!(uid = self.uid(), replica = self.assignment.replica, reason = %why.reason, message = why.message, ?delay, "a replica is brought up again after a pause");
        let message = format!("{}; tried again after {delay:?}", why.message);
        self.show(|view| view.state(ReplicaState::Failed, None, Some(Refusal::new(why.reason, message))));
        let pause = tokio::time::sleep(delay);
        tokio::pin!(pause);
        loop {
            let command = tokio::select! {
                () = &mut pause => {
                    self.starts_again = true;
                    return Step::BringUp;
                }
                command = self.commands.recv() => command,
            };
            if let Some(step) = self.idle(command) {
                return step;
            }
        }
    }

    fn delay(&self) -> Duration {
        let config = &self.shared.config;
        let factor = 1u32.checked_shl(self.failures).unwrap_or(u32::MAX).max(1);
        config.restart_delay.saturating_mul(factor).min(config.longest_restart_delay)
    }

    async fn rest(&mut self) -> Step {
        loop {
            let command = self.commands.recv().await;
            if let Some(step) = self.idle(command) {
                return step;
            }
        }
    }

    /// A command while there is no process; `None` where what is being done goes on.
    fn idle(&mut self, command: Option<Command>) -> Option<Step> {
        match command {
            None => Some(Step::Detached),
            Some(Command::Update(assignment)) => {
                self.told(*assignment);
                None
            }
            Some(Command::Drain(deadline)) => {
                self.wanted = Wanted::Drained(self.deadline(deadline));
                self.show(|view| view.state(ReplicaState::Draining, None, None));
                Some(Step::Rest)
            }
            Some(Command::Release(_)) => Some(Step::Released),
            Some(Command::Connected { hello, process, connection }) => Some(self.take_in(*hello, process, *connection)),
        }
    }

    pub fn deadline(&self, deadline: Option<Timestamp>) -> Timestamp {
        deadline.unwrap_or_else(|| Timestamp::now().checked_add(self.shared.config.grace).unwrap_or(Timestamp::MAX))
    }

    async fn released(mut self) {
        for stray in std::mem::take(&mut self.strays) {
            if let Err(error) = stray.ended().await {
                tracing::warn!(%error, pid = stray.id.pid, "a process can't be watched");
            }
        }
        self.shared.gone(&self.assignment.uid);
    }
}

/// Whether the same assignment may succeed a while later. What is in the file, and what the engine is, does not change by waiting.
fn helps_to_try_again(reason: Reason) -> bool {
    !matches!(
        reason,
        Reason::EngineCannotRun
            | Reason::UnsupportedArchitecture
            | Reason::InvalidRequest
            | Reason::ContextBeyondTrained
            | Reason::SourceForbidden
    )
}
