//! A worker that speaks the protocol and loads nothing. It is this test program itself, started again by a shell that hands it its arguments.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::time::Duration;

use stowage_agent::worker::Refusal;
use stowage_agent::worker::process::ProcessId;
use stowage_agent::worker::protocol::{Connection, FromAgent, FromWorker, Hello, Phase, VERSION, WorkerState};
use stowage_agent::worker::record::{self, Order};
use stowage_crds::model_node::Speed;
use stowage_engine::MeasuredDevice;
use stowage_placement::{Bytes, HOST, Reason};
use tokio::net::UnixStream;

const BEHAVIOUR: &str = "STOWAGE_TEST_WORKER";
const ARGUMENTS: &str = "STOWAGE_TEST_WORKER_ARGUMENTS";

/// For `/bin/sh`, before `worker --socket SOCKET --assignment-file FILE`.
pub fn arguments(behaviour: &str) -> Vec<OsString> {
    let program = std::env::current_exe().unwrap();
    let script = format!(
        "{ARGUMENTS}=\"$2\n$4\" {BEHAVIOUR}={behaviour} exec '{}' --exact fake_worker::fake_worker --ignored --nocapture",
        program.display()
    );
    ["-c".into(), script.into()].to_vec()
}

/// Waits for a file that a worker writes.
pub async fn appears(path: &Path) {
    while !path.exists() {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[test]
#[ignore = "the worker of the other tests"]
fn fake_worker() {
    let Ok(behaviour) = std::env::var(BEHAVIOUR) else { return };
    let arguments = std::env::var(ARGUMENTS).unwrap();
    let (socket, order) = arguments.split_once('\n').unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(FakeWorker::new(&behaviour, socket.into(), order.as_ref()).live());
}

struct FakeWorker {
    behaviour: String,
    socket: PathBuf,
    order: Order,
    state: WorkerState,
}

impl FakeWorker {
    fn new(behaviour: &str, socket: PathBuf, order: &Path) -> FakeWorker {
        FakeWorker { behaviour: behaviour.into(), socket, order: record::read(order).unwrap(), state: WorkerState::default() }
    }

    fn is(&self, behaviour: &str) -> bool {
        self.behaviour == behaviour
    }

    async fn live(mut self) {
        let mut terminate = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate()).unwrap();
        loop {
            tokio::select! {
                () = self.converse() => {}
                _ = terminate.recv() => if !self.is("stubborn") { std::process::exit(0) },
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    async fn converse(&mut self) {
        let Ok(stream) = UnixStream::connect(&self.socket).await else {
            if !self.socket.parent().unwrap().exists() {
                // The test has ended.
                std::process::exit(1);
            }
            return;
        };
        let mut connection = Connection::new(stream);
        let process = ProcessId::own().unwrap();
        let (assignment, file) = (self.order.assignment.clone(), self.order.file.clone());
        let hello = Hello { version: VERSION, assignment, process, state: self.state.clone(), file, pod_uid: String::new() };
        let mut say = vec![FromWorker::Hello(Box::new(hello))];
        if self.state.phase == Phase::Asking {
            say.push(FromWorker::MayLoad);
        }
        let mut heartbeat = tokio::time::interval(Duration::from_millis(50));
        loop {
            for message in say.drain(..) {
                if connection.send(&message).await.is_err() {
                    return;
                }
                if matches!(message, FromWorker::Failed(_)) {
                    std::process::exit(1);
                }
            }
            tokio::select! {
                message = connection.receive::<FromAgent>() => match message {
                    Ok(Some(message)) => say = self.hear(message),
                    _ => return,
                },
                _ = heartbeat.tick(), if !self.is("silent") => say.push(FromWorker::Heartbeat { resident: None }),
            }
        }
    }

    fn hear(&mut self, message: FromAgent) -> Vec<FromWorker> {
        match message {
            FromAgent::Welcome { .. } | FromAgent::ApiKeys { .. } | FromAgent::Order(_) => Vec::new(),
            FromAgent::Go => self.load(),
            FromAgent::Update { assignment } => {
                for alias in &assignment.aliases {
                    std::fs::write(self.socket.with_file_name(format!("alias-{alias}")), "").unwrap();
                }
                if self.is("greedy") && !assignment.aliases.is_empty() {
                    let taken = vec![1u8; 1 << 30];
                    assert!(taken.iter().all(|byte| *byte == 1), "there was room for a GiB");
                }
                Vec::new()
            }
            FromAgent::Drain { .. } => {
                self.state.phase = Phase::Draining;
                vec![FromWorker::Draining]
            }
            FromAgent::End { .. } if self.is("stubborn") => Vec::new(),
            FromAgent::No(_) | FromAgent::End { .. } => std::process::exit(0),
        }
    }

    fn load(&mut self) -> Vec<FromWorker> {
        match self.behaviour.as_str() {
            "crash" => {
                eprintln!("no more");
                std::process::exit(7);
            }
            "silent" => Vec::new(),
            "fail" => vec![FromWorker::Failed(Refusal::new(Reason::EngineCannotRun, "no kernel for it"))],
            _ => {
                let measured = vec![MeasuredDevice { id: HOST.into(), weights: Bytes(7), ..MeasuredDevice::default() }];
                let address = "127.0.0.1:4242".parse().unwrap();
                let speed = Some(Speed { prefill_tokens_per_second: 1230.0, decode_tokens_per_second: Some(45.6), ..Speed::default() });
                self.state = WorkerState { phase: Phase::Ready, measured: measured.clone(), address: Some(address), speed: speed.clone() };
                vec![
                    FromWorker::Progress { loaded: Bytes(1), total: Bytes(2) },
                    FromWorker::Loaded { measured, address },
                    FromWorker::Ready { speed },
                ]
            }
        }
    }
}
