//! Starting, reaching and ending one control plane.

use std::fs;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use kube::config::{KubeConfigOptions, Kubeconfig};
use tempfile::TempDir;

use crate::Error;
use crate::binaries::{self, Binaries};
use crate::processes::{Process, free_port, wait_for};

const READY_DEADLINE: Duration = Duration::from_secs(120);
/// For one question.
const ANSWER_DEADLINE: Duration = Duration::from_secs(5);
const STOP_DEADLINE: Duration = Duration::from_secs(15);
/// A port can be taken between being found free and being bound; then everything is started again on others.
const ATTEMPTS: u32 = 3;
const ADMIN_TOKEN: &str = "stowage-local-admin";
const AUDIT_LOG: &str = "audit.log";
/// What the database reserves for its log, and some more.
const NEEDED_DISK: u64 = 256 << 20;
/// Who wrote what of ours, and which Lease, and what became of it. Of a Lease the body too: it says who holds it.
const AUDIT_POLICY: &str = r#"
apiVersion: audit.k8s.io/v1
kind: Policy
omitStages: [RequestReceived]
rules:
  - {level: Request, verbs: [create, update, patch], resources: [{group: coordination.k8s.io, resources: [leases]}]}
  - {level: Metadata, verbs: [create, update, patch, delete], resources: [{group: stowage.dev}, {group: discovery.k8s.io}]}
  - {level: None}
"#;

#[derive(Clone, Debug)]
pub struct Options {
    /// Runs kube-controller-manager too. Without a real node it has no controllers that judge nodes.
    pub controller_manager: bool,
    /// The node whose kubelet and Pods are to reach the API server.
    pub node: Option<ForNode>,
}

/// What a control plane has for a real node.
#[derive(Clone, Debug)]
pub struct ForNode {
    pub name: String,
    /// Where the API server listens, and nowhere else: an address that Pods reach.
    pub address: Ipv4Addr,
    /// By which the kubelet is known as this node's.
    pub token: String,
}

impl Default for Options {
    fn default() -> Options {
        Options { controller_manager: true, node: None }
    }
}

/// A running control plane. Dropping it kills its processes and removes its folder; [`ControlPlane::stop`] ends them in order.
pub struct ControlPlane {
    // Fields are dropped in this order: the API server must not outlive its etcd.
    controller_manager: Option<Process>,
    api_server: Process,
    etcd: Process,
    launches: Launches,
    pub url: String,
    pub client: kube::Client,
    kubeconfig: PathBuf,
    binaries: Binaries,
    directory: TempDir,
}

impl ControlPlane {
    /// Builds what is missing (minutes, once), starts it, and waits until `/readyz` answers.
    pub async fn start(options: Options) -> Result<ControlPlane, Error> {
        let _ = rustls::crypto::ring::default_provider().install_default();
        let binaries = tokio::task::spawn_blocking(binaries::ensure)
            .await
            .map_err(|error| Error::Io { doing: "building the control plane".to_owned(), source: std::io::Error::other(error) })??;
        let mut attempt = 1;
        loop {
            match ControlPlane::try_start(&options, &binaries).await {
                Err(Error::Ended { log, .. }) if attempt < ATTEMPTS && log.contains("address already in use") => attempt += 1,
                result => return result,
            }
        }
    }

    async fn try_start(options: &Options, binaries: &Binaries) -> Result<ControlPlane, Error> {
        let directory =
            tempfile::Builder::new().prefix("stowage-control-plane-").tempdir().map_err(Error::io("making a temporary folder"))?;
        let at = directory.path();
        has_room(at)?;
        let (etcd_launch, etcd_url) = etcd(binaries, at)?;
        let etcd = etcd_launch.start(at)?;
        let (api_server_launch, url) = api_server(binaries, at, &etcd_url, options.node.as_ref())?;
        let mut api_server = api_server_launch.start(at)?;
        let kubeconfig = at.join("kubeconfig");
        write(&kubeconfig, &kubeconfig_text(&url, &at.join("certs/apiserver.crt"), ADMIN_TOKEN))?;
        let client = wait_until_ready(&mut api_server, &kubeconfig).await?;
        let judge_nodes = options.node.is_some();
        let controller_manager =
            if options.controller_manager { Some(start_controller_manager(binaries, at, &kubeconfig, judge_nodes)?) } else { None };
        let (launches, binaries) = (Launches { etcd: etcd_launch, api_server: api_server_launch }, binaries.clone());
        Ok(ControlPlane { controller_manager, api_server, etcd, launches, url, client, kubeconfig, binaries, directory })
    }

    /// A kubeconfig of an administrator.
    pub fn kubeconfig(&self) -> &Path {
        &self.kubeconfig
    }

    /// The kubeconfig of whoever has this token, in a file of this name beside the administrator's.
    pub fn write_kubeconfig(&self, name: &str, token: &str) -> Result<PathBuf, Error> {
        let path = self.directory().join(name);
        write(&path, &kubeconfig_text(&self.url, &self.directory().join("certs/apiserver.crt"), token))?;
        Ok(path)
    }

    /// The folder that holds the logs and everything else; it goes with the control plane.
    pub fn directory(&self) -> &Path {
        self.directory.path()
    }

    /// The kubectl of the same version, as an administrator.
    pub fn kubectl(&self) -> Command {
        let mut command = Command::new(&self.binaries.kubectl);
        command.env("KUBECONFIG", &self.kubeconfig);
        command
    }

    /// What was written, one event of `audit.k8s.io/v1` a line: of Leases, EndpointSlices and our own kinds.
    pub fn audit_log(&self) -> PathBuf {
        self.directory().join(AUDIT_LOG)
    }

    pub fn api_server(&self) -> &Process {
        &self.api_server
    }

    pub fn etcd(&self) -> &Process {
        &self.etcd
    }

    /// As when the machine loses it; [`ControlPlane::restart`] brings it back.
    pub fn kill_etcd(&mut self) {
        self.etcd.kill();
    }

    /// As when the machine loses it; [`ControlPlane::restart`] brings it back.
    pub fn kill_api_server(&mut self) {
        self.api_server.kill();
    }

    /// Starts what has ended of etcd and API server, with the data and on the ports that it had, and waits until `/readyz` answers.
    pub async fn restart(&mut self) -> Result<(), Error> {
        let answer = wait_for(READY_DEADLINE, async || match self.start_what_has_ended() {
            Err(error) => Some(Err(error)),
            Ok(()) => readyz(&self.kubeconfig).await.map(|_| Ok(())),
        });
        let answer = answer.await;
        answer.unwrap_or_else(|| Err(not_ready(&self.api_server)))
    }

    /// Again and again while it is waited for: its port may be in use for a moment by a client of another server.
    fn start_what_has_ended(&mut self) -> Result<(), Error> {
        let at = self.directory.path();
        if has_ended(&mut self.etcd) {
            self.etcd = self.launches.etcd.start(at)?;
        }
        if has_ended(&mut self.api_server) {
            self.api_server = self.launches.api_server.start(at)?;
        }
        Ok(())
    }

    pub fn pids(&self) -> Vec<u32> {
        self.controller_manager.iter().chain([&self.api_server, &self.etcd]).map(Process::pid).collect()
    }

    /// Ends the processes in the order that lets each finish: the API server before its etcd.
    pub fn stop(mut self) {
        if let Some(controller_manager) = &mut self.controller_manager {
            controller_manager.kill();
        }
        self.api_server.stop(STOP_DEADLINE);
        self.etcd.stop(STOP_DEADLINE);
    }
}

pub(crate) fn write(path: &Path, text: &str) -> Result<(), Error> {
    fs::write(path, text).map_err(Error::io(format!("writing {}", path.display())))
}

fn port() -> Result<u16, Error> {
    free_port().map_err(Error::io("looking for a free port"))
}

/// How a program is started, the first time and again.
struct Launch {
    name: &'static str,
    program: PathBuf,
    arguments: Vec<String>,
}

struct Launches {
    etcd: Launch,
    api_server: Launch,
}

impl Launch {
    fn start(&self, directory: &Path) -> Result<Process, Error> {
        let Launch { name, program, arguments } = self;
        let mut command = Command::new(program);
        command.args(arguments);
        Process::start(name, command, &directory.join(format!("{name}.log"))).map_err(Error::io(format!("starting {name}")))
    }
}

fn has_ended(process: &mut Process) -> bool {
    matches!(process.exited(), Ok(Some(_)))
}

fn etcd(binaries: &Binaries, directory: &Path) -> Result<(Launch, String), Error> {
    let (client, peer) = (format!("http://127.0.0.1:{}", port()?), format!("http://127.0.0.1:{}", port()?));
    let data = format!("--data-dir={}", directory.join("etcd").display());
    let mut arguments = vec![data, "--unsafe-no-fsync".to_owned(), "--log-level=warn".to_owned()];
    arguments.extend([format!("--listen-client-urls={client}"), format!("--advertise-client-urls={client}")]);
    arguments.extend([format!("--listen-peer-urls={peer}"), format!("--initial-advertise-peer-urls={peer}")]);
    arguments.push(format!("--initial-cluster=default={peer}"));
    Ok((Launch { name: "etcd", program: binaries.etcd.clone(), arguments }, client))
}

fn api_server(binaries: &Binaries, directory: &Path, etcd: &str, node: Option<&ForNode>) -> Result<(Launch, String), Error> {
    let mut tokens = format!("{ADMIN_TOKEN},admin,admin,system:masters\n");
    if let Some(ForNode { name, token, .. }) = node {
        tokens += &format!("{token},system:node:{name},node,system:nodes\n");
    }
    write(&directory.join("tokens.csv"), &tokens)?;
    let key = rcgen::KeyPair::generate()?;
    write(&directory.join("service-accounts.key"), &key.serialize_pem())?;
    write(&directory.join("service-accounts.pub"), &key.public_key_pem())?;
    write(&directory.join("audit-policy.yaml"), AUDIT_POLICY)?;
    let port = port()?;
    let file = |flag: &str, name: &str| format!("--{flag}={}", directory.join(name).display());
    let mut arguments = vec![
        format!("--etcd-servers={etcd}"),
        format!("--secure-port={port}"),
        file("cert-dir", "certs"),
        file("token-auth-file", "tokens.csv"),
        file("service-account-key-file", "service-accounts.pub"),
        file("service-account-signing-key-file", "service-accounts.key"),
        file("audit-policy-file", "audit-policy.yaml"),
        file("audit-log-path", AUDIT_LOG),
    ];
    // Without a node the one that is advertised is of a range kept for documentation: the `kubernetes` Service's EndpointSlice may not hold a loopback address.
    let (listen, advertise) = match node {
        Some(node) => (node.address, node.address),
        None => (Ipv4Addr::LOCALHOST, Ipv4Addr::new(192, 0, 2, 1)),
    };
    arguments.extend([format!("--bind-address={listen}"), format!("--advertise-address={advertise}")]);
    let fixed = [
        "--kubelet-preferred-address-types=InternalIP",
        "--service-account-issuer=https://kubernetes.default.svc",
        "--service-cluster-ip-range=10.96.0.0/16",
        "--authorization-mode=Node,RBAC",
        "--enable-admission-plugins=NodeRestriction",
    ];
    arguments.extend(fixed.map(str::to_owned));
    Ok((Launch { name: "kube-apiserver", program: binaries.kube_apiserver.clone(), arguments }, format!("https://{listen}:{port}")))
}

fn start_controller_manager(binaries: &Binaries, directory: &Path, kubeconfig: &Path, judge_nodes: bool) -> Result<Process, Error> {
    let mut arguments = vec![
        format!("--kubeconfig={}", kubeconfig.display()),
        format!("--root-ca-file={}", directory.join("certs/apiserver.crt").display()),
        format!("--service-account-private-key-file={}", directory.join("service-accounts.key").display()),
        format!("--cert-dir={}", directory.join("controller-manager-certs").display()),
        format!("--secure-port={}", port()?),
    ];
    let fixed = [
        "--bind-address=127.0.0.1",
        "--use-service-account-credentials",
        "--leader-elect=false",
        // Of 15 s otherwise, which nobody wants to wait for.
        "--horizontal-pod-autoscaler-sync-period=2s",
    ];
    arguments.extend(fixed.map(str::to_owned));
    if !judge_nodes {
        // Nodes made by hand have no kubelet that renews their Leases: these two would taint them and evict what runs there.
        arguments.push("--controllers=*,-node-lifecycle-controller,-taint-eviction-controller".to_owned());
    }
    Launch { name: "kube-controller-manager", program: binaries.kube_controller_manager.clone(), arguments }.start(directory)
}

fn kubeconfig_text(url: &str, certificate: &Path, token: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Config\ncurrent-context: stowage\n\
         clusters: [{{name: stowage, cluster: {{server: '{url}', certificate-authority: '{}'}}}}]\n\
         users: [{{name: admin, user: {{token: {token}}}}}]\n\
         contexts: [{{name: stowage, context: {{cluster: stowage, user: admin}}}}]\n",
        certificate.display()
    )
}

async fn client(kubeconfig: &Path) -> Result<kube::Client, Error> {
    let config = kube::Config::from_custom_kubeconfig(Kubeconfig::read_from(kubeconfig)?, &KubeConfigOptions::default()).await?;
    Ok(kube::Client::try_from(config)?)
}

/// A full disk ends etcd and the API server before they can say so: their logs lie on it too.
fn has_room(directory: &Path) -> Result<(), Error> {
    let disk = rustix::fs::statvfs(directory).map_err(|error| Error::io("asking for free disk")(error.into()))?;
    let free = disk.f_bavail.saturating_mul(disk.f_frsize);
    match free >= NEEDED_DISK {
        true => Ok(()),
        false => Err(Error::Disk { directory: directory.to_owned(), free: free >> 20, needed: NEEDED_DISK >> 20 }),
    }
}

pub(crate) fn ended(process: &mut Process) -> Option<Error> {
    let status = process.exited().ok()??;
    Some(Error::Ended { name: process.name.clone(), status: status.to_string(), log: process.log_tail(15) })
}

/// Asked by a new client each time: the API server's certificate may have been half written when the one before read it.
async fn readyz(kubeconfig: &Path) -> Option<kube::Client> {
    let client = client(kubeconfig).await.ok()?;
    let request = http::Request::get("/readyz").body(Vec::new()).ok()?;
    let answered = tokio::time::timeout(ANSWER_DEADLINE, client.request_text(request)).await;
    answered.ok()?.ok().map(|_| client)
}

async fn wait_until_ready(api_server: &mut Process, kubeconfig: &Path) -> Result<kube::Client, Error> {
    let answer = wait_for(READY_DEADLINE, async || match ended(api_server) {
        Some(error) => Some(Err(error)),
        None => readyz(kubeconfig).await.map(Ok),
    });
    let answer = answer.await;
    answer.unwrap_or_else(|| Err(not_ready(api_server)))
}

fn not_ready(api_server: &Process) -> Error {
    Error::NotReady { name: api_server.name.clone(), seconds: READY_DEADLINE.as_secs(), log: api_server.log_tail(15) }
}
