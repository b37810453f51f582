//! Operator and agents as processes against a control plane.

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::Node;
use k8s_openapi::jiff::Timestamp;
use kube::api::ObjectMeta;
use kube::runtime::wait::await_condition;
use kube::{Api, Client};
use stowage_control_plane::processes::{Process, free_port};
use stowage_control_plane::{ControlPlane, Options};
use stowage_crds::{ModelDeployment, ModelNode, names};
use stowage_placement::Bytes;
use tempfile::TempDir;

use crate::api;
use crate::installed::{self, Account};
use crate::machine::{SimulatedGpu, SimulatedMachine};
use crate::models;
use crate::observer::Observer;
use crate::prepare::{apply, prepare};
use crate::reasons;
use crate::watch;
use crate::workers::LeftBehind;

/// Workers advertise addresses of a range kept for documentation, since EndpointSlices refuse loopback; clients dial loopback at the same port.
const ADVERTISED: &str = "192.0.2.10";
const AGENT_STOP_DEADLINE: Duration = Duration::from_secs(20);
const LEADER_DEADLINE: Duration = Duration::from_secs(60);

/// Where the cluster comes from, and how talkative its parts are.
#[derive(Clone, Debug, Default)]
pub struct Settings {
    /// A kubeconfig of a cluster that is there already; none: a control plane is started.
    pub kubeconfig: Option<PathBuf>,
    /// More flags for the operator.
    pub operator_flags: Vec<String>,
    /// Leaves out kube-controller-manager, which writes objects of its own now and then.
    pub without_controller_manager: bool,
    /// The chart is applied, and operator and agents act by the accounts that it makes, each with the token of a Pod, instead of as administrators.
    pub installed: bool,
    /// The chart is applied with these arguments of helm, and the operator makes Pods of workers as the chart tells it.
    pub worker_pods: Option<Vec<String>>,
    /// Where the operator serves its metrics; none: at any port, which nobody learns.
    pub metrics_address: Option<SocketAddr>,
}

pub struct Cluster {
    // Dropped in this order: agents, operator, what agents left behind, control plane, folder.
    pub agents: Vec<Agent>,
    pub operators: Vec<Process>,
    /// Each has a name that none had before it.
    operators_started: usize,
    _left_behind: LeftBehind,
    pub client: Client,
    /// Of a cluster that is ours alone.
    pub observer: Option<Observer>,
    kubeconfig: PathBuf,
    pub control_plane: Option<ControlPlane>,
    settings: Settings,
    folder: TempDir,
}

/// How a node's agent is started.
#[derive(Clone, Debug)]
pub struct AgentOptions {
    pub node: String,
    pub model_directory: PathBuf,
    /// Simulated GPUs; none: a CPU node.
    pub gpus: Vec<SimulatedGpu>,
    pub flags: Vec<String>,
    /// It measures GPUs of which nothing is known, before anything is loaded there.
    pub calibrates: bool,
    /// Its downloads go to a disk of their own, of this size, which only the agent and its workers see.
    pub cache_disk: Option<Bytes>,
    /// Workers are in Pods, which somebody else makes and runs, and meet the agent in this folder.
    pub pod_run_directory: Option<PathBuf>,
}

impl AgentOptions {
    /// A CPU node.
    pub fn new(node: &str, model_directory: impl Into<PathBuf>) -> AgentOptions {
        let model_directory = model_directory.into();
        AgentOptions {
            node: node.to_owned(),
            model_directory,
            gpus: Vec::new(),
            flags: Vec::new(),
            calibrates: false,
            cache_disk: None,
            pod_run_directory: None,
        }
    }
}

/// A running agent.
pub struct Agent {
    pub options: AgentOptions,
    pub process: Process,
    pub machine: SimulatedMachine,
    /// Port of the node's door, on the loopback address.
    pub door: u16,
}

/// An agent that is killed leaves its workers running for its successor. When there will be none it is asked to end, and takes them with it.
impl Drop for Agent {
    fn drop(&mut self) {
        if matches!(self.process.exited(), Ok(None)) {
            self.process.stop(AGENT_STOP_DEADLINE);
        }
    }
}

/// An operator that leads.
#[derive(Clone, Debug)]
pub struct Leader {
    pub name: String,
    /// In [`Cluster::operators`].
    pub index: usize,
    /// By its own clock, when it came to lead.
    pub acquired: Timestamp,
}

/// A program of this workspace, built beside the one that runs.
pub fn program(name: &str) -> Result<PathBuf> {
    let own = std::env::current_exe().context("finding the running program")?;
    let folders = own.ancestors().skip(1).take(2);
    let found = folders.map(|folder| folder.join(name)).find(|path| path.is_file());
    found.with_context(|| format!("{name} is not beside {}: `make build` builds it", own.display()))
}

impl Cluster {
    /// A cluster that knows Stowage's kinds, with one operator.
    pub async fn start(settings: Settings) -> Result<Cluster> {
        let _ = rustls::crypto::ring::default_provider().install_default();
        let folder = tempfile::Builder::new().prefix("stowage-cluster-").tempdir().context("making a temporary folder")?;
        let (control_plane, client, kubeconfig) = match &settings.kubeconfig {
            Some(path) => (None, client(path).await?, path.clone()),
            None => {
                let control_plane =
                    ControlPlane::start(Options { controller_manager: !settings.without_controller_manager, ..Options::default() }).await?;
                let (client, path) = (control_plane.client.clone(), control_plane.kubeconfig().to_owned());
                (Some(control_plane), client, path)
            }
        };
        match &control_plane {
            Some(control_plane) if settings.installed => {
                let arguments = settings.worker_pods.clone().unwrap_or_default();
                installed::install(control_plane, folder.path(), &arguments).await?;
            }
            _ => prepare(&client).await?,
        }
        let observer = control_plane.as_ref().map(|_| Observer::start(&client, folder.path())).transpose()?;
        let mut cluster = Cluster {
            agents: Vec::new(),
            operators: Vec::new(),
            operators_started: 0,
            _left_behind: LeftBehind(folder.path().to_owned()),
            client,
            observer,
            kubeconfig,
            control_plane,
            settings,
            folder,
        };
        if cluster.settings.installed {
            let token = installed::bound_token(&cluster.client, Account::Operator, None).await?;
            let path = cluster.account_kubeconfig(Account::Operator.name());
            installed::kubeconfig(&cluster.kubeconfig, &token, path)?;
        }
        if cluster.settings.worker_pods.is_some() {
            cluster.settings.operator_flags.extend(installed::worker_flags(&cluster.client).await?);
        }
        cluster.start_operator()?;
        Ok(cluster)
    }

    /// Where the kubeconfig of an account, or of a node's agent, lies if it is not the administrator's.
    fn account_kubeconfig(&self, name: &str) -> PathBuf {
        if self.settings.installed { self.folder.path().join(format!("{name}.kubeconfig")) } else { self.kubeconfig.clone() }
    }

    pub fn kubeconfig(&self) -> &Path {
        &self.kubeconfig
    }

    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// The kubectl of the control plane's version, or the system's where the cluster is not ours.
    pub fn kubectl(&self) -> Command {
        let mut command = self.control_plane.as_ref().map(ControlPlane::kubectl).unwrap_or_else(|| Command::new("kubectl"));
        command.env("KUBECONFIG", &self.kubeconfig);
        command
    }

    /// What kubectl prints on standard output; an error holds what it prints on standard error.
    pub fn kubectl_output(&self, arguments: &[&str]) -> Result<String> {
        let output = self.kubectl().args(arguments).output().context("running kubectl")?;
        if !output.status.success() {
            bail!("kubectl {}: {}", arguments.join(" "), String::from_utf8_lossy(&output.stderr).trim());
        }
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// `kubectl apply` of a manifest; an error holds what the API server said.
    pub fn apply(&self, manifest: &str) -> Result<String> {
        let path = self.folder.path().join("manifest.yaml");
        fs::write(&path, manifest).context("writing a manifest")?;
        self.kubectl_output(&["apply", "-f", &path.display().to_string()])
    }

    pub fn start_operator(&mut self) -> Result<()> {
        let operator = self.launch_operator()?;
        self.operators.push(operator);
        Ok(())
    }

    /// Another one in place of an operator that was killed.
    pub fn succeed_operator(&mut self, index: usize) -> Result<()> {
        self.operators[index] = self.launch_operator()?;
        Ok(())
    }

    fn launch_operator(&mut self) -> Result<Process> {
        let name = format!("operator-{}", self.operators_started);
        self.operators_started += 1;
        let mut command = Command::new(program("stowage-operator")?);
        let metrics = self.settings.metrics_address.unwrap_or_else(|| ([127, 0, 0, 1], 0).into()).to_string();
        command.arg("--kubeconfig").arg(self.account_kubeconfig(Account::Operator.name()));
        command.args(["--identity", &name, "--metrics-address", &metrics, "--replica-host", "127.0.0.1"]);
        command.args(&self.settings.operator_flags);
        let log = self.folder.path().join(format!("{name}.log"));
        Process::start(&name, command, &log).context("starting the operator")
    }

    /// Makes the Node object that a kubelet would have made, and starts its agent.
    pub async fn start_agent(&mut self, options: AgentOptions) -> Result<&Agent> {
        let node = Node { metadata: ObjectMeta { name: Some(options.node.clone()), ..Default::default() }, ..Default::default() };
        apply(&Api::all(self.client.clone()), &options.node, &node).await.with_context(|| format!("making Node {}", options.node))?;
        if self.settings.installed {
            let token = installed::bound_token(&self.client, Account::Agent, Some(&options.node)).await?;
            installed::kubeconfig(&self.kubeconfig, &token, self.account_kubeconfig(&options.node))?;
        }
        let folder = self.node_folder(&options.node);
        let machine = SimulatedMachine::create(&folder, &options.gpus)?;
        self.observer.iter().for_each(|observer| observer.look_at(&machine));
        let agent = self.launch_agent(options, machine, free_port()?)?;
        self.agents.push(agent);
        self.agents.last().context("the agent that was just started")
    }

    /// Starts the agents of nodes with one simulated GPU each, and waits until they have reported what they have.
    pub async fn start_gpu_nodes(&mut self, nodes: &[(&str, Bytes)]) -> Result<()> {
        for (node, vram) in nodes {
            let gpus = vec![SimulatedGpu::new(node, 0, *vram)];
            self.start_agent(AgentOptions { gpus, ..AgentOptions::new(node, models::directory()?) }).await?;
        }
        for (node, _) in nodes {
            self.until_node(node, api::reports).await?;
        }
        Ok(())
    }

    /// Where the agent of `node` keeps its socket, its downloads and its log.
    pub fn node_folder(&self, node: &str) -> PathBuf {
        self.folder.path().join(node)
    }

    /// The successor of an agent that was killed, and whose workers may live on.
    pub fn succeed_agent(&mut self, index: usize) -> Result<()> {
        let old = self.agents.remove(index);
        let agent = self.launch_agent(old.options.clone(), old.machine.clone(), old.door)?;
        self.agents.insert(index, agent);
        Ok(())
    }

    /// The operator that holds the leader's Lease, once one does other than `not`.
    pub async fn leader(&self, not: Option<&str>) -> Result<Leader> {
        let leases: Api<Lease> = Api::namespaced(self.client.clone(), names::SYSTEM_NAMESPACE);
        let holder = |lease: &Lease| lease.spec.as_ref()?.holder_identity.clone().filter(|holder| Some(holder.as_str()) != not);
        let held = await_condition(leases, names::OPERATOR_MANAGER, |lease: Option<&Lease>| lease.is_some_and(|l| holder(l).is_some()));
        let lease = tokio::time::timeout(LEADER_DEADLINE, held).await.context("waiting for a leader")??;
        let spec = lease.context("the leader's Lease is gone")?.spec.unwrap_or_default();
        let (name, acquired) = (spec.holder_identity.unwrap_or_default(), spec.acquire_time.context("a Lease says since when it is held")?);
        let index = self.operators.iter().position(|operator| operator.name == name);
        Ok(Leader { index: index.with_context(|| format!("{name}, which leads, is none of ours"))?, name, acquired: acquired.0 })
    }

    fn launch_agent(&self, options: AgentOptions, machine: SimulatedMachine, door: u16) -> Result<Agent> {
        let folder = self.node_folder(&options.node);
        let cache = folder.join("cache");
        let mut command = match options.cache_disk {
            Some(size) => with_disk(&program("stowage-agent")?, &cache, size)?,
            None => Command::new(program("stowage-agent")?),
        };
        command.args(["run", "--node-name", &options.node, "--advertise-address", ADVERTISED, "--worker-bind-address", "127.0.0.1"]);
        command.arg(if options.pod_run_directory.is_some() { "--workers=pod" } else { "--stop-workers-on-exit" });
        command.args(["--door-address", &format!("127.0.0.1:{door}")]).arg("--kubeconfig").arg(self.account_kubeconfig(&options.node));
        command.arg("--model-dir").arg(&options.model_directory);
        command.arg("--cache-dir").arg(cache).arg("--run-dir").arg(options.pod_run_directory.clone().unwrap_or(folder.join("run")));
        if !options.gpus.is_empty() {
            command.arg("--nvml-library").arg(program("libstowage_fake_nvml.so")?);
            command.env("STOWAGE_FAKE_NVML_CONFIG", &machine.config).env("STOWAGE_SIMULATED_GPU_DIR", &machine.charges);
        }
        if !options.calibrates {
            command.arg("--skip-calibration");
        }
        command.args(&options.flags);
        let process = Process::start(&options.node, command, &folder.join("agent.log")).context("starting the agent")?;
        Ok(Agent { options, process, machine, door })
    }

    /// Ends agents with their workers, operators, then the control plane. What is not ended in time is killed.
    ///
    /// An error: the observer saw, while the cluster lived, what must never be; or it did not see the reasons that the test is there to produce.
    pub fn stop(mut self) -> Result<()> {
        self.agents.clear();
        for operator in &mut self.operators {
            operator.stop(AGENT_STOP_DEADLINE);
        }
        let control_plane = self.control_plane.take();
        let observed = self.observer.take().zip(control_plane.as_ref());
        let seen = observed.map(|(observer, control_plane)| observer.finish(&control_plane.audit_log())).transpose();
        if let Some(control_plane) = control_plane {
            control_plane.stop();
        }
        match seen {
            Ok(Some(seen)) if seen.model_nodes == 0 || seen.deployments == 0 || seen.writes == 0 => {
                bail!("the observer looked away: {seen:?}")
            }
            Ok(seen) => seen.map_or(Ok(()), |seen| reasons::check(&seen.reasons)),
            Err(error) => Err(error.context(self.logs())),
        }
    }

    /// The ModelDeployment `name` of namespace `default` as soon as `holds` says yes of it; an error shows it, and the logs.
    pub async fn until(&self, name: &str, holds: impl Fn(&ModelDeployment) -> bool + Send) -> Result<ModelDeployment> {
        watch::model_deployment(&self.client, "default", name, holds).await.with_context(|| self.logs())
    }

    /// The ModelNode `name` as soon as `holds` says yes of it; an error shows it, and the logs.
    pub async fn until_node(&self, name: &str, holds: impl Fn(&ModelNode) -> bool + Send) -> Result<ModelNode> {
        watch::model_node(&self.client, name, holds).await.with_context(|| self.logs())
    }

    /// The last lines of every log, for a failure's report.
    pub fn logs(&self) -> String {
        let agents = self.agents.iter().map(|agent| &agent.process);
        let tails = self.operators.iter().chain(agents).map(|process| format!("--- {}\n{}", process.name, process.log_tail(25)));
        tails.collect::<Vec<_>>().join("\n")
    }
}

/// Runs the program in a mount namespace of its own, in which `folder` is a disk of this size.
fn with_disk(program: &Path, folder: &Path, size: Bytes) -> Result<Command> {
    fs::create_dir_all(folder).with_context(|| format!("making {}", folder.display()))?;
    let mut command = Command::new("unshare");
    command.args(["--mount", "--propagation", "private"]);
    if !rustix::process::geteuid().is_root() {
        command.args(["--user", "--map-root-user"]);
    }
    let mount = format!("mount -t tmpfs -o size={} small-disk \"$0\" && exec \"$@\"", size.0);
    command.args(["sh", "-c", &mount]).arg(folder).arg(program);
    Ok(command)
}

async fn client(kubeconfig: &Path) -> Result<Client> {
    let config = kube::config::Kubeconfig::read_from(kubeconfig).with_context(|| format!("reading {}", kubeconfig.display()))?;
    Ok(Client::try_from(kube::Config::from_custom_kubeconfig(config, &Default::default()).await?)?)
}
