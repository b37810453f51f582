//! Starting, reaching and ending one control plane.

use std::fs;
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

#[derive(Clone, Debug)]
pub struct Options {
    /// Runs kube-controller-manager too, without the controllers that judge nodes: nothing here has a kubelet.
    pub controller_manager: bool,
}

impl Default for Options {
    fn default() -> Options {
        Options { controller_manager: true }
    }
}

/// A running control plane. Dropping it kills its processes and removes its folder; [`ControlPlane::stop`] ends them in order.
pub struct ControlPlane {
    // Fields are dropped in this order: the API server must not outlive its etcd.
    controller_manager: Option<Process>,
    api_server: Process,
    etcd: Process,
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
        let (etcd, etcd_url) = start_etcd(binaries, at)?;
        let (mut api_server, url) = start_api_server(binaries, at, &etcd_url)?;
        let kubeconfig = at.join("kubeconfig");
        write(&kubeconfig, &kubeconfig_text(&url, &at.join("certs/apiserver.crt")))?;
        let client = wait_until_ready(&mut api_server, &kubeconfig).await?;
        let controller_manager = if options.controller_manager { Some(start_controller_manager(binaries, at, &kubeconfig)?) } else { None };
        Ok(ControlPlane { controller_manager, api_server, etcd, url, client, kubeconfig, binaries: binaries.clone(), directory })
    }

    /// A kubeconfig of an administrator.
    pub fn kubeconfig(&self) -> &Path {
        &self.kubeconfig
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

    pub fn api_server(&self) -> &Process {
        &self.api_server
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

fn write(path: &Path, text: &str) -> Result<(), Error> {
    fs::write(path, text).map_err(Error::io(format!("writing {}", path.display())))
}

fn port() -> Result<u16, Error> {
    free_port().map_err(Error::io("looking for a free port"))
}

fn start(name: &str, command: Command, directory: &Path) -> Result<Process, Error> {
    Process::start(name, command, &directory.join(format!("{name}.log"))).map_err(Error::io(format!("starting {name}")))
}

fn start_etcd(binaries: &Binaries, directory: &Path) -> Result<(Process, String), Error> {
    let (client, peer) = (format!("http://127.0.0.1:{}", port()?), format!("http://127.0.0.1:{}", port()?));
    let mut command = Command::new(&binaries.etcd);
    command.arg("--data-dir").arg(directory.join("etcd")).args(["--unsafe-no-fsync", "--log-level=warn"]);
    command.args(["--listen-client-urls", &client, "--advertise-client-urls", &client]);
    command.args(["--listen-peer-urls", &peer, "--initial-advertise-peer-urls", &peer, "--initial-cluster", &format!("default={peer}")]);
    Ok((start("etcd", command, directory)?, client))
}

fn start_api_server(binaries: &Binaries, directory: &Path, etcd: &str) -> Result<(Process, String), Error> {
    write(&directory.join("tokens.csv"), &format!("{ADMIN_TOKEN},admin,admin,system:masters\n"))?;
    let key = rcgen::KeyPair::generate()?;
    write(&directory.join("service-accounts.key"), &key.serialize_pem())?;
    write(&directory.join("service-accounts.pub"), &key.public_key_pem())?;
    let port = port()?;
    let mut command = Command::new(&binaries.kube_apiserver);
    let file = |flag: &str, name: &str| format!("--{flag}={}", directory.join(name).display());
    command.args([
        format!("--etcd-servers={etcd}"),
        format!("--secure-port={port}"),
        file("cert-dir", "certs"),
        file("token-auth-file", "tokens.csv"),
        file("service-account-key-file", "service-accounts.pub"),
        file("service-account-signing-key-file", "service-accounts.key"),
    ]);
    command.args([
        "--bind-address=127.0.0.1",
        // Of a range kept for documentation: the `kubernetes` Service's EndpointSlice may not hold a loopback address.
        "--advertise-address=192.0.2.1",
        "--service-account-issuer=https://kubernetes.default.svc",
        "--service-cluster-ip-range=10.96.0.0/16",
        "--authorization-mode=Node,RBAC",
        "--enable-admission-plugins=NodeRestriction",
    ]);
    Ok((start("kube-apiserver", command, directory)?, format!("https://127.0.0.1:{port}")))
}

fn start_controller_manager(binaries: &Binaries, directory: &Path, kubeconfig: &Path) -> Result<Process, Error> {
    let mut command = Command::new(&binaries.kube_controller_manager);
    command.args([
        format!("--kubeconfig={}", kubeconfig.display()),
        format!("--root-ca-file={}", directory.join("certs/apiserver.crt").display()),
        format!("--service-account-private-key-file={}", directory.join("service-accounts.key").display()),
        format!("--cert-dir={}", directory.join("controller-manager-certs").display()),
        format!("--secure-port={}", port()?),
    ]);
    command.args([
        "--bind-address=127.0.0.1",
        "--use-service-account-credentials",
        "--leader-elect=false",
        // Of 15 s otherwise, which nobody wants to wait for.
        "--horizontal-pod-autoscaler-sync-period=2s",
        // Nodes here have no kubelet that renews their Leases: these two would taint them and evict what runs there.
        "--controllers=*,-node-lifecycle-controller,-taint-eviction-controller",
    ]);
    start("kube-controller-manager", command, directory)
}

fn kubeconfig_text(url: &str, certificate: &Path) -> String {
    format!(
        "apiVersion: v1\nkind: Config\ncurrent-context: stowage\n\
         clusters: [{{name: stowage, cluster: {{server: '{url}', certificate-authority: '{}'}}}}]\n\
         users: [{{name: admin, user: {{token: {ADMIN_TOKEN}}}}}]\n\
         contexts: [{{name: stowage, context: {{cluster: stowage, user: admin}}}}]\n",
        certificate.display()
    )
}

async fn client(kubeconfig: &Path) -> Result<kube::Client, Error> {
    let config = kube::Config::from_custom_kubeconfig(Kubeconfig::read_from(kubeconfig)?, &KubeConfigOptions::default()).await?;
    Ok(kube::Client::try_from(config)?)
}

fn ended(process: &mut Process) -> Option<Error> {
    let status = process.exited().ok()??;
    Some(Error::Ended { name: process.name.clone(), status: status.to_string(), log: process.log_tail(15) })
}

/// Each question is asked by a new client: the API server's certificate may have been half written when the one before read it.
async fn wait_until_ready(api_server: &mut Process, kubeconfig: &Path) -> Result<kube::Client, Error> {
    let answer = wait_for(READY_DEADLINE, async || {
        if let Some(error) = ended(api_server) {
            return Some(Err(error));
        }
        let client = client(kubeconfig).await.ok()?;
        let request = http::Request::get("/readyz").body(Vec::new()).ok()?;
        let answered = tokio::time::timeout(ANSWER_DEADLINE, client.request_text(request)).await;
        answered.ok()?.ok().map(|_| Ok(client))
    });
    let answer = answer.await;
    answer.unwrap_or_else(|| {
        Err(Error::NotReady { name: api_server.name.clone(), seconds: READY_DEADLINE.as_secs(), log: api_server.log_tail(15) })
    })
}
