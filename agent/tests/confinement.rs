//! A real worker in the hands of somebody else: it tries to get at what is not its own, and gets nothing.
#![cfg(feature = "hostile-worker")]
#![allow(clippy::unwrap_used)]

use std::fs;
use std::net::{SocketAddr, TcpListener, UdpSocket};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use stowage_agent::worker::Confine;
use stowage_agent::worker::confine::attempts::{Attempt, Attempts, Outcome};
use stowage_agent::worker::record::Order;
use stowage_crds::model_node::{Assignment, ModelDeploymentReference};
use stowage_crds::testing;
use tempfile::TempDir;

const REFUSED_FILE: i32 = libc::EACCES;
const REFUSED_CALL: i32 = libc::EPERM;

/// A node with two tenants' models, a token, and an agent that listens.
struct Node {
    directory: TempDir,
    _agent: UnixListener,
    api_server: TcpListener,
    name_server: UdpSocket,
}

impl Node {
    fn new() -> Node {
        let directory = tempfile::tempdir().unwrap();
        let path = |name: &str| directory.path().join(name);
        for folder in ["models", "run/workers", "var/run/secrets/kubernetes.io/serviceaccount"] {
            fs::create_dir_all(path(folder)).unwrap();
        }
        for file in
            ["models/own-00001-of-00002.gguf", "models/own-00002-of-00002.gguf", "models/other.gguf", TOKEN, "run/workers/other.order.json"]
        {
            fs::write(path(file), "content").unwrap();
        }
        let agent = UnixListener::bind(path("run/agent.sock")).unwrap();
        let node = Node {
            _agent: agent,
            api_server: TcpListener::bind("127.0.0.1:0").unwrap(),
            name_server: UdpSocket::bind("127.0.0.1:0").unwrap(),
            directory,
        };
        fs::write(node.path("run/workers/own.order.json"), serde_json::to_vec(&node.order()).unwrap()).unwrap();
        node
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn order(&self) -> Order {
        let assignment = Assignment {
            replica: "own-0123456789-0".into(),
            model_deployment: ModelDeploymentReference { namespace: "default".into(), name: "own".into(), uid: "m".into() },
            ..testing::assignment("own")
        };
        Order {
            assignment,
            model: self.path("models/own-00001-of-00002.gguf"),
            file: None,
            bind: [127, 0, 0, 1].into(),
            port: 0,
            pod_address: None,
        }
    }

    /// What a worker that tries these says of each.
    fn tried(&self, confine: Confine, attempts: &[Attempt]) -> Vec<Outcome> {
        let asked = self.path("attempts.json");
        fs::write(&asked, serde_json::to_vec(&Attempts(attempts.to_vec())).unwrap()).unwrap();
        let worker = Command::new(env!("CARGO_BIN_EXE_stowage-agent"))
            .args(["worker", "--confine", confine.as_str(), "--socket"])
            .arg(self.path("run/agent.sock"))
            .arg("--assignment-file")
            .arg(self.path("run/workers/own.order.json"))
            .arg("--attempts")
            .arg(asked)
            .stderr(Stdio::inherit())
            .output()
            .unwrap();
        assert!(worker.status.success(), "{}", worker.status);
        let lines = String::from_utf8(worker.stdout).unwrap();
        let outcomes: Vec<Outcome> =
            lines.lines().filter(|line| !line.starts_with('#')).map(|line| serde_json::from_str(line).unwrap()).collect();
        assert_eq!(outcomes.iter().map(|outcome| &outcome.attempt).collect::<Vec<_>>(), attempts.iter().collect::<Vec<_>>(), "{lines}");
        outcomes
    }

    /// Each is refused with its error, and is possible for a worker that is not confined: so it is the confinement that refuses.
    fn refuses(&self, attempts: &[(Attempt, i32)]) {
        let (tried, errors): (Vec<_>, Vec<_>) = attempts.iter().cloned().unzip();
        for outcome in self.tried(Confine::Off, &tried) {
            assert_eq!(outcome.errno, None, "not possible without confinement either: {outcome:?}");
        }
        for (outcome, error) in self.tried(Confine::BestEffort, &tried).iter().zip(errors) {
            assert_eq!(outcome.errno, Some(error), "{outcome:?}");
        }
    }

    fn grants(&self, attempts: &[Attempt]) {
        for outcome in self.tried(Confine::BestEffort, attempts) {
            assert_eq!(outcome.errno, None, "{outcome:?}");
        }
    }

    fn api_server(&self) -> SocketAddr {
        self.api_server.local_addr().unwrap()
    }
}

const TOKEN: &str = "var/run/secrets/kubernetes.io/serviceaccount/token";

fn on_this_machine(path: &str) -> PathBuf {
    Path::new(path).to_owned()
}

#[test]
fn a_worker_reads_its_models_files_and_reaches_its_agent() {
    let node = Node::new();
    node.grants(&[
        Attempt::Read(node.path("models/own-00001-of-00002.gguf")),
        Attempt::Read(node.path("models/own-00002-of-00002.gguf")),
        Attempt::Read(on_this_machine("/proc/self/statm")),
        Attempt::ConnectUnix(node.path("run/agent.sock")),
    ]);
}

#[test]
fn a_worker_gets_at_no_token_no_other_model_and_nothing_else_of_the_node() {
    let node = Node::new();
    let files = [
        Attempt::Read(node.path(TOKEN)),
        Attempt::Read(node.path("models/other.gguf")),
        Attempt::List(node.path("models")),
        Attempt::Write(node.path("models/own-00001-of-00002.gguf")),
        Attempt::Read(node.path("run/workers/other.order.json")),
        Attempt::List(node.path("run")),
        Attempt::Read(on_this_machine("/etc/passwd")),
        Attempt::Read(on_this_machine(&format!("/proc/{}/environ", std::process::id()))),
        Attempt::List(on_this_machine("/proc")),
        Attempt::List(on_this_machine("/")),
        Attempt::Write(node.path("models/own-00001-of-00002.gguf")),
        Attempt::Make(node.path("models/beside.gguf")),
        Attempt::Make(node.path("run/workers/made.order.json")),
        Attempt::Make(std::env::temp_dir().join(format!("stowage-made-by-a-worker-{}", std::process::id()))),
    ];
    node.refuses(&files.map(|attempt| (attempt, REFUSED_FILE)));
}

#[test]
fn a_worker_has_no_way_to_the_network() {
    let node = Node::new();
    node.refuses(&[
        (Attempt::ConnectTcp(node.api_server()), REFUSED_CALL),
        (Attempt::SendUdp(node.name_server.local_addr().unwrap()), REFUSED_CALL),
        (Attempt::BindTcp("127.0.0.1:0".parse().unwrap()), REFUSED_CALL),
        (Attempt::Netlink, REFUSED_CALL),
        // Landlock's: the one socket that it has can't be turned outward.
        (Attempt::ConnectOwnPort(node.api_server()), REFUSED_FILE),
    ]);
    node.refuses(&[(Attempt::SendFromOwnPort(node.api_server()), REFUSED_CALL)]);
}

#[test]
fn a_worker_runs_no_program_and_does_nothing_to_other_processes_or_the_machine() {
    let node = Node::new();
    let own = i32::try_from(std::process::id()).unwrap();
    // Where Yama guards processes (it may not be there), so that it is the confinement that refuses.
    let _ = rustix::process::set_ptracer(rustix::process::PTracer::Any);
    let calls = [
        Attempt::Run(on_this_machine("/bin/sh")),
        Attempt::Fork,
        Attempt::Signal(own),
        Attempt::ReadMemory,
        Attempt::Unshare,
        Attempt::SystemCalls,
        Attempt::Trace(own),
    ];
    node.refuses(&calls.map(|attempt| (attempt, REFUSED_CALL)));
}
