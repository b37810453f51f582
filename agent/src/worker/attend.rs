//! One assignment's task while its worker's process lives: hears what it says, tells it what is wanted, and sees its end.

mod worker;

use std::time::Duration;

use jiff::Timestamp;
use rustix::process::Signal;
use stowage_crds::model_deployment::ReplicaState;
use stowage_placement::Reason;
use tokio::time::Instant;

use super::process::Process;
use super::protocol::{Connection, FromAgent, FromWorker, Hello, Phase, VERSION, WorkerState};
use super::record::Record;
use super::replica::{Command, Replica, Step, Wanted};
use super::show::{show_out_of_memory, show_worker, shown, shown_exit};
use super::view::{Refusal, WorkerView};
use crate::devices::host;
pub(super) use worker::{Exit, Worker};
use worker::{answered, ended, heard, looked};

/// From a worker's failure, or the gate's no, until it has ended by itself; and from its end until its connection has.
const LAST_WORDS: Duration = Duration::from_secs(10);
/// Between two looks at the file that a replica was loaded from.
const LOOK_EVERY: Duration = Duration::from_secs(5);

impl Replica {
    /// Until the process has ended, or the supervisor.
    pub(super) async fn attend(&mut self, mut worker: Box<Worker>) -> Step {
        let worker: &mut Worker = &mut worker;
        if worker.connection.is_some() {
            self.welcome(worker).await;
        }
        let (heartbeat_timeout, silent_after) = (self.shared.config.heartbeat_timeout, self.shared.config.silent_after);
        let mut api_keys = self.shared.config.api_keys.clone();
        loop {
            self.report(worker);
            let (due, silent_at) = (worker.due(heartbeat_timeout), worker.silent_at(silent_after));
            // What was heard counts before what is due: an agent that was stopped for a while has both at once when it goes on.
            tokio::select! {
                biased;
                exit = ended(&worker.process, &mut worker.child) => {
                    self.last_words(worker).await;
                    return self.after(worker, exit);
                }
                message = heard(&mut worker.connection) => self.hear(worker, message),
                command = self.commands.recv() => match command {
                    Some(command) => self.command(worker, command).await,
                    None => return Step::Detached,
                },
                answer = answered(&mut worker.gate) => self.answer(worker, answer).await,
                // Fails where nobody changes them any more.
                Ok(()) = api_keys.changed() => {
                    let api_keys = api_keys.borrow_and_update().clone();
                    worker.send(FromAgent::ApiKeys { api_keys }).await;
                }
                change = looked(&mut worker.look) => {
                    (worker.look, worker.file_change) = (None, change);
                    worker.next_look = Instant::now() + LOOK_EVERY;
                }
                () = tokio::time::sleep_until(worker.next_look), if worker.look.is_none() => self.look_at_file(worker),
                () = tokio::time::sleep_until(silent_at.unwrap_or(due)), if silent_at.is_some() => worker.silent = true,
                () = tokio::time::sleep_until(due) => self.due(worker),
            }
        }
    }

    /// Beside everything else: a disk may be slow, or away.
    fn look_at_file(&self, worker: &mut Worker) {
        worker.next_look = Instant::now() + LOOK_EVERY;
        let file = self.shared.view(self.uid()).and_then(|view| view.file);
        worker.look = file.map(|file| tokio::task::spawn_blocking(move || file.change()));
    }

    /// What a worker said just before it ended may not have been read yet.
    async fn last_words(&self, worker: &mut Worker) {
        while worker.connection.is_some() {
            let Ok(message) = tokio::time::timeout(LAST_WORDS, heard(&mut worker.connection)).await else { return };
            self.hear(worker, message);
        }
        worker.gate = None;
        // A process of the worker's own may hold its output open.
        let read = self.shared.program.log.read_to_its_end(self.uid());
        let _ = tokio::time::timeout(LAST_WORDS, read).await;
    }

    async fn welcome(&self, worker: &mut Worker) {
        worker.last_heard = Instant::now();
        let api_keys = self.shared.config.api_keys.borrow().clone();
        worker.send(FromAgent::Welcome { version: VERSION, api_keys }).await;
        // What was asked for may have changed while it had no agent.
        worker.send(FromAgent::Update { assignment: Box::new(self.assignment.clone()) }).await;
        self.tell_wanted(worker).await;
    }

    async fn tell_wanted(&self, worker: &mut Worker) {
        match self.wanted {
            Wanted::Serve => {}
            Wanted::Drained(deadline) => worker.send(FromAgent::Drain { deadline }).await,
            Wanted::Released(deadline) => worker.send(FromAgent::End { deadline }).await,
        }
    }

    fn hear(&self, worker: &mut Worker, message: Option<FromWorker>) {
        (worker.last_heard, worker.silent) = (Instant::now(), false);
        worker.peak_memory = worker.peak_memory.max(worker.process.pid().and_then(host::process_memory).unwrap_or_default());
        let Some(message) = message else {
            worker.connection = None;
            return;
        };
        let state = worker.state.get_or_insert_default();
        match message {
            FromWorker::Hello(_) | FromWorker::Join(_) => {}
            FromWorker::Heartbeat { resident } => worker.resident = resident.unwrap_or_default(),
            FromWorker::MayLoad => {
                state.phase = Phase::Asking;
                worker.gate = Some((self.shared.gate)(self.assignment.clone()));
            }
            FromWorker::Progress { loaded, total } => state.phase = Phase::Loading { loaded, total },
            FromWorker::Loaded { measured, address } => {
                *state = WorkerState { phase: Phase::Testing, measured, address: Some(address), speed: None };
            }
            FromWorker::Ready { speed } => (state.phase, state.speed) = (Phase::Ready, speed),
            FromWorker::Draining => state.phase = Phase::Draining,
            FromWorker::Failed(why) => {
                state.phase = Phase::Failed(why);
                worker.kill_within(LAST_WORDS);
            }
        }
    }

    async fn answer(&self, worker: &mut Worker, answer: Result<(), Refusal>) {
        worker.gate = None;
        match answer {
            Ok(()) => worker.send(FromAgent::Go).await,
            // Nobody has decided: the agent is ending. The worker waits, and asks its successor.
            Err(Refusal { reason: Reason::Pending, .. }) => {}
            Err(refusal) => {
                worker.refused = Some(refusal.clone());
                worker.kill_within(LAST_WORDS);
                worker.send(FromAgent::No(refusal)).await;
            }
        }
    }

    async fn command(&mut self, worker: &mut Worker, command: Command) {
        match command {
            Command::Update(assignment) => {
                if self.assignment != *assignment {
                    worker.send(FromAgent::Update { assignment: assignment.clone() }).await;
                    self.told(*assignment);
                }
            }
            Command::Drain(deadline) => {
                if !matches!(self.wanted, Wanted::Released(_)) {
                    self.wanted = Wanted::Drained(self.deadline(deadline));
                    self.wind_down(worker).await;
                }
            }
            Command::Release(deadline) => {
                self.wanted = Wanted::Released(self.deadline(deadline));
                self.wind_down(worker).await;
            }
            Command::Connected { hello, process, connection } => self.connected(worker, *hello, process, *connection).await,
        }
    }

    /// Tells the worker to finish, and sets when it is ended if it does not. What does not serve has nothing to finish.
    async fn wind_down(&mut self, worker: &mut Worker) {
        let serves = matches!(worker.phase(), Some(Phase::Ready | Phase::Draining) | None);
        if !serves {
            let now = Timestamp::now();
            self.wanted = match self.wanted {
                Wanted::Drained(_) => Wanted::Drained(now),
                Wanted::Released(_) | Wanted::Serve => Wanted::Released(now),
            };
        }
        self.tell_wanted(worker).await;
        let (Wanted::Drained(deadline) | Wanted::Released(deadline)) = self.wanted else { return };
        if !serves || matches!(self.wanted, Wanted::Released(_)) {
            worker.signal(Signal::TERM);
        }
        let left = Duration::try_from(deadline.duration_since(Timestamp::now())).unwrap_or(Duration::ZERO);
        // Not the earlier of both: a deadline may be moved either way.
        worker.kill_at = Some(Instant::now() + left + self.shared.config.kill_after_deadline);
    }

    /// A hello: of this worker once more, or of one that should not be.
    async fn connected(&mut self, worker: &mut Worker, hello: Hello, process: Process, connection: Connection) {
        if !process.is(&worker.process) {
            tracing::warn!(
                uid = self.uid(),
                pid = process.id.pid,
                kept = worker.process.id.pid,
                "a second worker for one assignment is killed"
            );
            if let Err(error) = process.signal(Signal::KILL) {
                tracing::error!(pid = process.id.pid, %error, "it can't be signalled");
            }
            self.strays.push(process);
            return;
        }
        worker.connection = Some(connection);
        worker.state = Some(hello.state);
        self.welcome(worker).await;
    }

    /// Silence has lasted too long, or a deadline has passed.
    fn due(&self, worker: &mut Worker) {
        let silence = worker.last_heard.elapsed();
        let elsewhere = worker.process.is_elsewhere();
        if worker.silent_for.is_none() && (silence >= self.shared.config.heartbeat_timeout || elsewhere) {
            worker.silent_for = Some(silence);
        }
        let what = if elsewhere { "a worker's Pod is to be ended" } else { "a worker is killed" };
        tracing::warn!(uid = self.uid(), pid = worker.process.id.pid, ?silence, "{what}");
        worker.signal(Signal::KILL);
        // Asked again as long as it lives, though once should do.
        worker.kill_at = Some(Instant::now() + self.shared.config.heartbeat_timeout);
    }

    /// Shows the worker as it is, and writes it down for the next agent where that changed.
    fn report(&self, worker: &mut Worker) {
        if matches!(worker.phase(), Some(Phase::Ready)) && worker.ready_since.is_none() {
            worker.ready_since = Some(Instant::now());
        }
        let advertised = &self.shared.config.advertise_address;
        self.show(|view| show_worker(view, worker, self.wanted, advertised));
        let Some(view) = self.shared.view(self.uid()) else { return };
        let record = Record::new(&view, &self.assignment, worker.process.id);
        if worker.written.as_ref() == Some(&record) {
            return;
        }
        match self.shared.records.write_record(&record) {
            Ok(()) => worker.written = Some(record),
            Err(error) => {
                tracing::warn!(uid = self.uid(), %error, "a worker can't be written down; the next agent will know it by its hello alone");
            }
        }
    }

    /// What comes after a worker's end.
    fn after(&mut self, worker: &mut Worker, exit: Exit) -> Step {
        let (pid, who) = (worker.process.id.pid, shown(&worker.process));
        tracing::info!(uid = self.uid(), pid, exit = %shown_exit(exit), "a worker has ended");
        if worker.ready_since.is_some_and(|since| since.elapsed() >= self.shared.config.stable_after) {
            self.failures = 0;
        }
        self.show(WorkerView::ended);
        self.shared.records.remove(&self.assignment.uid);
        match self.wanted {
            Wanted::Released(_) => return Step::Released,
            Wanted::Drained(_) => return Step::Rest,
            Wanted::Serve => {}
        }
        if let Some(refusal) = worker.refused.take() {
            self.show(|view| view.state(ReplicaState::Refused, None, Some(refusal)));
            return Step::Rest;
        }
        if let Some(WorkerState { phase: Phase::Failed(why), .. }) = worker.state.take() {
            return self.not_yet(why);
        }
        let lived = worker.started.elapsed().as_secs();
        if worker.ran_out_of_memory(exit) {
            self.show(|view| show_out_of_memory(view, pid, worker.peak_memory));
            return Step::Rest;
        }
        let mut message = match worker.silent_for {
            Some(silence) => format!("{who} said nothing for {} s and was killed", silence.as_secs()),
            None if worker.process.is_elsewhere() => format!("{who} ended after {lived} s"),
            None => format!("{who} {} after {lived} s", shown_exit(exit)),
        };
        if let Some(line) = self.shared.program.log.last_line(self.uid()) {
            message.push_str("; its log ends with: ");
            message.push_str(&line);
        }
        Step::Pause(Refusal::new(Reason::WorkerCrashed, message))
    }
}
