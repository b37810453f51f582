//! The supervisor with real processes, which speak the workers' protocol and load nothing.
#![allow(clippy::unwrap_used)]

mod fake_worker;
mod memory_cgroup;
mod pods;

use std::future::Future;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use stowage_agent::store::{Store, StoreConfig};
use stowage_agent::worker::process::{Process, ProcessId};
use stowage_agent::worker::{LastLines, Refusal, Supervisor, SupervisorConfig, SupervisorError, WorkerLog, WorkerView};
use stowage_crds::model_deployment::{ModelSource, ReplicaState};
use stowage_crds::model_node::{AssignedSource, Assignment};
use stowage_crds::testing;
use stowage_placement::gguf::write::HeaderWriter;
use stowage_placement::{Bytes, DeviceAllocation, DeviceKind, DevicePlan, HOST, Reason};
use stowage_sources::AddressPolicy;
use tempfile::TempDir;

const UID: &str = "uid-1";

fn assignment() -> Assignment {
    let host = DeviceAllocation { id: HOST.into(), kind: DeviceKind::Host, total_bytes: Bytes(9), ..DeviceAllocation::default() };
    let model = ModelSource { path: Some("m.gguf".into()), ..ModelSource::default() };
    Assignment {
        source: AssignedSource { model, ..AssignedSource::default() },
        plan: DevicePlan { processor: "100% CPU".into(), devices: vec![host], ..DevicePlan::default() },
        ..testing::assignment(UID)
    }
}

struct Node {
    directory: TempDir,
    behaviour: &'static str,
}

impl Node {
    /// Workers there behave as [`fake_worker`] says.
    fn new(behaviour: &'static str) -> Node {
        let directory = tempfile::tempdir().unwrap();
        std::fs::write(directory.path().join("m.gguf"), HeaderWriter::architecture("llama").header()).unwrap();
        Node { directory, behaviour }
    }

    fn path(&self) -> &Path {
        self.directory.path()
    }

    fn config(&self) -> SupervisorConfig {
        SupervisorConfig {
            arguments: fake_worker::arguments(self.behaviour),
            advertise_address: "192.0.2.1".into(),
            worker_log: WorkerLog::Directory(self.path().join("logs")),
            restart_delay: Duration::from_millis(20),
            ..SupervisorConfig::new(self.path().join("run"), "/bin/sh", [127, 0, 0, 1].into())
        }
    }

    fn store(&self) -> Arc<Store> {
        Arc::new(Store::new(StoreConfig::new(Some(self.path().to_owned()), self.path().join("cache"), AddressPolicy::public())))
    }

    fn supervise(&self) -> Supervisor {
        self.supervise_as(self.config(), |_| std::future::ready(Ok(())))
    }

    fn supervise_as<G, F>(&self, config: SupervisorConfig, gate: G) -> Supervisor
    where
        G: Fn(Assignment) -> F + Send + Sync + 'static,
        F: Future<Output = Result<(), Refusal>> + Send + 'static,
    {
        Supervisor::new(config, gate, self.store()).unwrap()
    }
}

/// The first view that is as wanted.
async fn view(supervisor: &Supervisor, wanted: impl Fn(&WorkerView) -> bool) -> WorkerView {
    let mut views = supervisor.views();
    let mut seen = Vec::new();
    let found = tokio::time::timeout(Duration::from_secs(30), async {
        loop {
            if let Some(view) = views.borrow_and_update().get(UID) {
                if wanted(view) {
                    return view.clone();
                }
                seen.push(view.status.clone());
            }
            views.changed().await.unwrap();
        }
    });
    found.await.unwrap_or_else(|_| panic!("not seen; but {seen:#?}"))
}

async fn in_state(supervisor: &Supervisor, state: ReplicaState) -> WorkerView {
    view(supervisor, |view| view.status.state == state).await
}

fn lives(pid: u32) -> bool {
    ProcessId::of(pid).is_ok()
}

fn in_millis(millis: i64) -> Option<Timestamp> {
    Some(Timestamp::now() + SignedDuration::from_millis(millis))
}

#[tokio::test]
async fn a_replica_comes_up_is_shown_with_what_it_took_and_goes_when_released() {
    let node = Node::new("serve");
    let supervisor = node.supervise();
    supervisor.start(&assignment());
    let ready = in_state(&supervisor, ReplicaState::Ready).await;
    assert_eq!(ready.status.address, "192.0.2.1:4242");
    assert_eq!(ready.http_address, Some("127.0.0.1:4242".parse().unwrap()));
    assert_eq!(ready.status.devices[0].measured_bytes, Some(Bytes(7)));
    assert_eq!(ready.status.devices[0].predicted_bytes, Bytes(9));
    assert_eq!(ready.status.speed.unwrap().decode_tokens_per_second, Some(45.6));
    assert!(lives(ready.pid.unwrap()));
    supervisor.release(UID, None);
    let gone = in_state(&supervisor, ReplicaState::Gone).await;
    assert!(!lives(ready.pid.unwrap()));
    assert_eq!((gone.pid, gone.held.len(), gone.status.replica.as_str()), (None, 0, "smol-0123456789-0"));
    assert_eq!(gone.status.speed, None);
    assert_eq!(std::fs::read_dir(node.path().join("run/workers")).unwrap().count(), 0);
    supervisor.forget(UID);
    assert!(supervisor.views().borrow().is_empty());
}

#[tokio::test]
async fn a_worker_that_dies_is_started_again_after_growing_pauses_and_its_last_words_are_shown() {
    let node = Node::new("crash");
    for worker_log in [node.config().worker_log, WorkerLog::Forwarded(LastLines::default())] {
        let supervisor = node.supervise_as(SupervisorConfig { worker_log, ..node.config() }, |_| std::future::ready(Ok(())));
        supervisor.start(&assignment());
        for least in [0, 2] {
            let failed = view(&supervisor, |view| view.status.state == ReplicaState::Failed && view.status.restarts >= least).await.status;
            assert_eq!(failed.reason, Some(Reason::WorkerCrashed));
            assert!(failed.message.contains("ended with exit status 7"), "{}", failed.message);
            assert!(failed.message.contains("its log ends with: no more"), "{}", failed.message);
            let delay = Duration::from_millis(20 << failed.restarts);
            assert!(failed.message.ends_with(&format!("tried again after {delay:?}")), "{}", failed.message);
        }
        supervisor.release(UID, None);
        in_state(&supervisor, ReplicaState::Gone).await;
    }
}

#[tokio::test]
async fn a_worker_that_died_once_serves_again_with_another_process() {
    let node = Node::new("serve");
    let config = SupervisorConfig { restart_delay: Duration::from_secs(1), ..node.config() };
    let supervisor = node.supervise_as(config, |_| std::future::ready(Ok(())));
    supervisor.start(&assignment());
    let first = in_state(&supervisor, ReplicaState::Ready).await.pid.unwrap();
    Process::find(ProcessId::of(first).unwrap()).unwrap().unwrap().signal(rustix::process::Signal::KILL).unwrap();
    let failed = in_state(&supervisor, ReplicaState::Failed).await;
    assert!(failed.status.message.contains("SIGKILL"), "{}", failed.status.message);
    assert_eq!((failed.pid, failed.status.address.as_str(), failed.held.len()), (None, "", 0));
    let second = in_state(&supervisor, ReplicaState::Ready).await;
    assert_ne!(second.pid, Some(first));
    assert_eq!(second.status.restarts, 1);
    supervisor.end_all(None).await;
}

#[tokio::test]
async fn a_successor_adopts_a_running_worker_and_can_end_it() {
    let node = Node::new("serve");
    let earlier = node.supervise();
    earlier.start(&assignment());
    let before = in_state(&earlier, ReplicaState::Ready).await;
    earlier.detach().await;
    let asked = Arc::new(std::sync::atomic::AtomicUsize::new(0));
    let counter = asked.clone();
    let later = node.supervise_as(node.config(), move |_| {
        counter.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
        std::future::ready(Ok(()))
    });
    // Known before the worker has said a word to this agent, and so without a moment in which it is not ready.
    assert_eq!(later.views().borrow().get(UID), Some(&before));
    assert_eq!(later.adopted(), [assignment()]);
    // A changed alias reaches it, by which it is seen to be connected; nothing was started or asked again.
    let changed = Assignment { aliases: vec!["another".into()], ..assignment() };
    later.start(&changed);
    let said = node.path().join("run/alias-another");
    tokio::time::timeout(Duration::from_secs(30), fake_worker::appears(&said)).await.unwrap();
    assert_eq!(later.views().borrow().get(UID).unwrap().pid, before.pid);
    assert_eq!(asked.load(std::sync::atomic::Ordering::SeqCst), 0);
    later.release(UID, None);
    in_state(&later, ReplicaState::Gone).await;
    assert!(!lives(before.pid.unwrap()));
}

#[tokio::test]
async fn a_worker_that_nobody_wrote_down_is_adopted_by_its_hello() {
    let node = Node::new("serve");
    let earlier = node.supervise();
    earlier.start(&assignment());
    let before = in_state(&earlier, ReplicaState::Ready).await;
    earlier.detach().await;
    std::fs::remove_file(node.path().join("run/workers/uid-1.record.json")).unwrap();
    let later = node.supervise();
    let after = in_state(&later, ReplicaState::Ready).await;
    assert_eq!(after, before);
    later.end_all(None).await;
    assert!(!lives(before.pid.unwrap()));
}

#[tokio::test]
async fn a_worker_that_died_while_there_was_no_agent_is_not_adopted() {
    let node = Node::new("serve");
    let earlier = node.supervise();
    earlier.start(&assignment());
    let process = ProcessId::of(in_state(&earlier, ReplicaState::Ready).await.pid.unwrap()).unwrap();
    earlier.detach().await;
    let process = Process::find(process).unwrap().unwrap();
    process.signal(rustix::process::Signal::KILL).unwrap();
    process.ended().await.unwrap();
    let later = node.supervise();
    assert_eq!(later.adopted(), []);
    later.release(UID, None);
    assert!(later.views().borrow().get(UID).unwrap().is_gone());
}

#[tokio::test]
async fn a_worker_that_ignores_its_end_is_held_until_it_is_killed_after_the_deadline() {
    let node = Node::new("stubborn");
    let config = SupervisorConfig { kill_after_deadline: Duration::from_millis(100), ..node.config() };
    let supervisor = node.supervise_as(config, |_| std::future::ready(Ok(())));
    supervisor.start(&assignment());
    let pid = in_state(&supervisor, ReplicaState::Ready).await.pid.unwrap();
    let deadline = in_millis(600);
    supervisor.release(UID, deadline);
    let draining = in_state(&supervisor, ReplicaState::Draining).await;
    assert_eq!((draining.pid, draining.held[0].total()), (Some(pid), Bytes(7)));
    assert!(lives(pid));
    in_state(&supervisor, ReplicaState::Gone).await;
    assert!(Some(Timestamp::now()) >= deadline);
    assert!(!lives(pid));
}

#[tokio::test]
async fn an_assignment_that_the_gate_refuses_is_shown_with_its_reason_and_is_not_tried_again() {
    let node = Node::new("serve");
    let refusal = Refusal::new(Reason::DeviceChanged, "3.00 GiB less");
    let answer = refusal.clone();
    let supervisor = node.supervise_as(node.config(), move |_| std::future::ready(Err(answer.clone())));
    supervisor.start(&assignment());
    let refused = view(&supervisor, |view| view.status.state == ReplicaState::Refused && view.pid.is_none()).await;
    assert_eq!((refused.status.reason, refused.status.message), (Some(refusal.reason), refusal.message));
    assert_eq!(refused.status.restarts, 0);
    supervisor.release(UID, None);
    in_state(&supervisor, ReplicaState::Gone).await;
}

#[tokio::test]
async fn what_a_worker_says_of_its_failure_is_shown() {
    let node = Node::new("fail");
    let supervisor = node.supervise();
    supervisor.start(&assignment());
    let failed = view(&supervisor, |view| view.status.state == ReplicaState::Failed && view.pid.is_none()).await;
    assert_eq!(failed.status.reason, Some(Reason::EngineCannotRun));
    assert_eq!(failed.status.message, "no kernel for it");
    supervisor.end_all(None).await;
}

#[tokio::test]
async fn a_worker_that_falls_silent_is_killed_and_started_again() {
    let node = Node::new("silent");
    let config = SupervisorConfig { heartbeat_timeout: Duration::from_millis(500), ..node.config() };
    let supervisor = node.supervise_as(config, |_| std::future::ready(Ok(())));
    supervisor.start(&assignment());
    let failed = in_state(&supervisor, ReplicaState::Failed).await.status;
    assert_eq!(failed.reason, Some(Reason::WorkerCrashed));
    assert!(failed.message.contains("said nothing for 0 s and was killed"), "{}", failed.message);
    supervisor.end_all(None).await;
}

#[tokio::test]
async fn a_worker_that_stops_answering_is_not_ready_until_it_goes_on() {
    let node = Node::new("serve");
    let config = SupervisorConfig { silent_after: Duration::from_millis(500), ..node.config() };
    let supervisor = node.supervise_as(config, |_| std::future::ready(Ok(())));
    supervisor.start(&assignment());
    let pid = in_state(&supervisor, ReplicaState::Ready).await.pid.unwrap();
    let worker = Process::find(ProcessId::of(pid).unwrap()).unwrap().unwrap();
    worker.signal(rustix::process::Signal::STOP).unwrap();
    assert_eq!(in_state(&supervisor, ReplicaState::Failed).await.status.reason, Some(Reason::WorkerSilent));
    worker.signal(rustix::process::Signal::CONT).unwrap();
    let again = in_state(&supervisor, ReplicaState::Ready).await;
    assert_eq!((again.pid, again.status.restarts), (Some(pid), 0));
    supervisor.end_all(None).await;
}

#[tokio::test]
async fn a_worker_that_memory_ran_out_for_is_refused_with_what_it_held() {
    let Some(cgroup) = memory_cgroup::MemoryCgroup::new(Bytes::mib(64)) else {
        eprintln!("NOT TESTED: no memory cgroup can be made here (it needs root), so memory can't be made to run out");
        return;
    };
    let node = Node::new("greedy");
    let supervisor = node.supervise();
    supervisor.start(&assignment());
    let pid = in_state(&supervisor, ReplicaState::Ready).await.pid.unwrap();
    cgroup.take_in(pid);
    supervisor.update(&Assignment { aliases: vec!["more".into()], ..assignment() });
    let refused = in_state(&supervisor, ReplicaState::Refused).await.status;
    assert_eq!(refused.reason, Some(Reason::OutOfMemory));
    let held = refused.devices.iter().find(|on| on.id == HOST).and_then(|on| on.measured_bytes).unwrap();
    assert!(held > Bytes::ZERO && refused.message.contains(&held.to_string()), "{held}: {}", refused.message);
    supervisor.end_all(None).await;
}

#[tokio::test]
async fn a_drained_worker_says_so_and_stays_until_it_is_released() {
    let node = Node::new("serve");
    let supervisor = node.supervise();
    supervisor.start(&assignment());
    let pid = in_state(&supervisor, ReplicaState::Ready).await.pid;
    supervisor.drain(UID, None);
    assert_eq!(in_state(&supervisor, ReplicaState::Draining).await.pid, pid);
    supervisor.release(UID, None);
    in_state(&supervisor, ReplicaState::Gone).await;
}

#[tokio::test]
async fn a_model_that_is_missing_or_another_than_was_planned_with_is_refused_and_not_tried_again() {
    let node = Node::new("serve");
    let mut planned = assignment();
    planned.source.size_bytes = Bytes(1);
    let supervisor = node.supervise();
    supervisor.start(&planned);
    let refused = in_state(&supervisor, ReplicaState::Refused).await.status;
    assert_eq!(refused.reason, Some(Reason::ModelFileChanged));
    assert!(refused.message.contains("and had 1 when its place was planned"), "{}", refused.message);
    supervisor.release(UID, None);
    in_state(&supervisor, ReplicaState::Gone).await;
    std::fs::remove_file(node.path().join("m.gguf")).unwrap();
    supervisor.forget(UID);
    supervisor.start(&planned);
    let refused = in_state(&supervisor, ReplicaState::Refused).await.status;
    assert_eq!((refused.reason, refused.restarts), (Some(Reason::ModelNotFound), 0));
    supervisor.end_all(None).await;
}

#[tokio::test]
async fn a_replica_whose_file_is_changed_says_so_and_serves_on() {
    let node = Node::new("serve");
    let supervisor = node.supervise();
    supervisor.start(&assignment());
    let pid = in_state(&supervisor, ReplicaState::Ready).await.pid;
    std::fs::write(node.path().join("m.gguf"), "another").unwrap();
    let changed = view(&supervisor, |view| view.status.reason == Some(Reason::ModelFileChanged)).await;
    assert_eq!((changed.status.state, changed.pid), (ReplicaState::Ready, pid));
    assert!(changed.status.message.contains("and has 7 B now"), "{}", changed.status.message);
    supervisor.end_all(None).await;
}

#[tokio::test]
async fn one_run_directory_has_one_agent() {
    let node = Node::new("serve");
    let supervisor = node.supervise();
    let second = Supervisor::new(node.config(), |_| std::future::ready(Ok(())), node.store());
    assert!(matches!(second, Err(SupervisorError::InUse(_))));
    supervisor.detach().await;
    node.supervise();
}
