//! One real node of a control plane: containerd, kubelet, kube-proxy, and the scheduler that finds it.
//!
//! All of it goes where such programs keep things: `/run`, `/var/lib`, `/var/log`, the network, `/sys/fs/cgroup`. Whoever starts a node on a machine that is to
//! stay as it is gives it a view of its own of those.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use kube::Api;

use crate::Error;
use crate::binaries::{self, NodeBinaries};
use crate::control_plane::{ControlPlane, ForNode, ended, write};
use crate::processes::{Process, free_port, wait_for};

const READY_DEADLINE: Duration = Duration::from_secs(120);
const STOP_DEADLINE: Duration = Duration::from_secs(15);
/// Where containerd keeps what the kubelet asked for.
const CONTAINERD_NAMESPACE: &str = "k8s.io";
/// Of Pods. Not of Services, which are in the control plane's 10.96.0.0/16.
pub const POD_RANGE: &str = "10.244.0.0/24";
/// Where Pods are to look for names. Nobody answers there.
const CLUSTER_DNS: &str = "10.96.0.10";
/// Where Debian puts the plugins of its package.
const CNI_PLUGINS: &str = "/usr/lib/cni";

/// What a node needs of the system, and Debian's package of it.
const SYSTEM_PROGRAMS: [(&str, &str); 7] = [
    ("containerd", "containerd"),
    ("ctr", "containerd"),
    ("runc", "runc"),
    ("iptables", "iptables"),
    ("conntrack", "conntrack"),
    ("ip", "iproute2"),
    ("mount", "mount"),
];
const SYSTEM_PLUGINS: [&str; 4] = ["ptp", "host-local", "portmap", "loopback"];

/// Debian's packages with all of that, but for what every system has.
pub const DEBIAN_PACKAGES: &str = "containerd runc containernetworking-plugins iptables conntrack iproute2 mount";

/// How a node is to be.
#[derive(Clone, Debug)]
pub struct NodeOptions {
    pub node: ForNode,
    /// Image of the container that holds a Pod's network; one of `images`.
    pub sandbox_image: String,
    /// Archives of all images that Pods of this node have: no registry is asked.
    pub images: Vec<PathBuf>,
    /// Of all containers, below each controller's folder in `/sys/fs/cgroup`; begins with a slash.
    pub cgroup: String,
}

/// A running node. Dropping it kills its processes, but not the containers: those end with their Pods.
pub struct Node {
    // Fields are dropped in this order.
    kubelet: Process,
    kube_proxy: Process,
    scheduler: Process,
    containerd: Process,
    binaries: NodeBinaries,
    kubeconfig: PathBuf,
    node: ForNode,
    client: kube::Client,
    folder: PathBuf,
}

/// What this system lacks of what a node needs, in words; empty where it has everything.
pub fn missing() -> Vec<String> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let folders: Vec<PathBuf> = std::env::split_paths(&path).chain(["/usr/sbin".into(), "/sbin".into()]).collect();
    let programs = SYSTEM_PROGRAMS.iter().filter(|(program, _)| !folders.iter().any(|folder| folder.join(program).is_file()));
    let mut lacking: Vec<String> = programs.map(|(program, package)| format!("{program} (Debian's package {package})")).collect();
    let plugins = SYSTEM_PLUGINS.iter().map(|name| Path::new(CNI_PLUGINS).join(name)).filter(|path| !path.is_file());
    lacking.extend(plugins.map(|path| format!("{} (Debian's package containernetworking-plugins)", path.display())));
    lacking
}

impl Node {
    /// Builds what is missing, starts everything, with logs and configuration in `folder`, and waits until the node is ready.
    pub async fn start(control_plane: &ControlPlane, options: &NodeOptions, folder: &Path) -> Result<Node, Error> {
        let binaries = tokio::task::spawn_blocking(binaries::node)
            .await
            .map_err(|error| Error::Io { doing: "building a node's programs".to_owned(), source: std::io::Error::other(error) })??;
        fs::create_dir_all(folder.join("cni")).map_err(Error::io(format!("making {}", folder.display())))?;
        write(&folder.join("cni/10-pods.conflist"), &network())?;
        write(&folder.join("containerd.toml"), &containerd_configuration(folder, &options.sandbox_image))?;
        write(&folder.join("kubelet.yaml"), &kubelet_configuration(folder, options))?;
        write(&folder.join("resolv.conf"), "")?;
        make_control_groups(&options.cgroup)?;
        let mut containerd = start_containerd(folder)?;
        wait_for_containerd(&mut containerd).await?;
        for archive in &options.images {
            ctr(&["images", "import", &archive.display().to_string()])?;
        }
        let kubeconfig = control_plane.write_kubeconfig("kubelet.kubeconfig", &options.node.token)?;
        let mut node = Node {
            kubelet: start_kubelet(&binaries, folder, &kubeconfig, &options.node)?,
            kube_proxy: start_kube_proxy(&binaries, folder, control_plane.kubeconfig(), &options.node.name)?,
            scheduler: start_scheduler(&binaries, folder, control_plane.kubeconfig())?,
            containerd,
            binaries,
            kubeconfig,
            node: options.node.clone(),
            client: control_plane.client.clone(),
            folder: folder.to_owned(),
        };
        node.ready().await?;
        Ok(node)
    }

    /// Ends the kubelet, while containers run on, starts it again, and waits until it has renewed its Lease and says that the node is ready.
    pub async fn restart_kubelet(&mut self) -> Result<(), Error> {
        self.kubelet.stop(STOP_DEADLINE);
        let renewed = self.lease_renewed().await;
        self.kubelet = start_kubelet(&self.binaries, &self.folder, &self.kubeconfig, &self.node)?;
        let anew = wait_for(READY_DEADLINE, async || match ended(&mut self.kubelet) {
            Some(error) => Some(Err(error)),
            None => (lease_renewed(&self.client, &self.node.name).await != renewed).then_some(Ok(())),
        });
        let anew = anew.await;
        anew.unwrap_or_else(|| Err(not_ready(&self.kubelet)))?;
        self.ready().await
    }

    async fn ready(&mut self) -> Result<(), Error> {
        let api: Api<v1::Node> = Api::all(self.client.clone());
        let name = self.node.name.clone();
        let ready = wait_for(READY_DEADLINE, async || match self.processes_mut().into_iter().find_map(ended) {
            Some(error) => Some(Err(error)),
            None => is_ready(&api.get(&name).await.ok()?).then_some(Ok(())),
        });
        let ready = ready.await;
        ready.unwrap_or_else(|| Err(not_ready(&self.kubelet)))
    }

    async fn lease_renewed(&self) -> Option<MicroTime> {
        lease_renewed(&self.client, &self.node.name).await
    }

    /// The containers that there are, running or not.
    pub fn containers(&self) -> Result<Vec<String>, Error> {
        Ok(ctr(&["containers", "ls", "-q"])?.lines().map(str::to_owned).collect())
    }

    pub fn processes(&self) -> [&Process; 4] {
        [&self.kubelet, &self.kube_proxy, &self.scheduler, &self.containerd]
    }

    fn processes_mut(&mut self) -> [&mut Process; 4] {
        [&mut self.kubelet, &mut self.kube_proxy, &mut self.scheduler, &mut self.containerd]
    }

    /// Ends the processes in the order that lets each finish. Containers that are left run on.
    pub fn stop(mut self) {
        for process in self.processes_mut() {
            process.stop(STOP_DEADLINE);
        }
    }
}

/// The kubelet wants its root to be there, below every controller that is mounted; where there is one hierarchy for all, in that.
pub fn make_control_groups(name: &str) -> Result<(), Error> {
    let mount = Path::new("/sys/fs/cgroup");
    let unified = mount.join("cgroup.controllers").is_file();
    let entries = fs::read_dir(mount).map_err(Error::io(format!("listing {}", mount.display())))?.flatten().map(|entry| entry.path());
    let hierarchies = if unified { vec![mount.to_owned()] } else { entries.filter(|path| path.is_dir()).collect() };
    for hierarchy in hierarchies {
        let group = hierarchy.join(name.trim_start_matches('/'));
        fs::create_dir_all(&group).map_err(Error::io(format!("making {}", group.display())))?;
    }
    Ok(())
}

async fn lease_renewed(client: &kube::Client, node: &str) -> Option<MicroTime> {
    let leases: Api<Lease> = Api::namespaced(client.clone(), "kube-node-lease");
    leases.get(node).await.ok()?.spec?.renew_time
}

/// Ready, and free of the taint that a new node has until a controller has seen that.
fn is_ready(node: &v1::Node) -> bool {
    let conditions = node.status.iter().flat_map(|status| status.conditions.iter().flatten());
    let taints = node.spec.iter().flat_map(|spec| spec.taints.iter().flatten());
    conditions.filter(|condition| condition.type_ == "Ready").any(|condition| condition.status == "True") && taints.count() == 0
}

fn not_ready(process: &Process) -> Error {
    Error::NotReady { name: process.name.clone(), seconds: READY_DEADLINE.as_secs(), log: process.log_tail(15) }
}

async fn wait_for_containerd(containerd: &mut Process) -> Result<(), Error> {
    let answer = wait_for(READY_DEADLINE, async || match ended(containerd) {
        Some(error) => Some(Err(error)),
        None => ctr(&["version"]).ok().map(|_| Ok(())),
    });
    let answer = answer.await;
    answer.unwrap_or_else(|| Err(not_ready(containerd)))
}

/// What containerd's own client prints.
fn ctr(arguments: &[&str]) -> Result<String, Error> {
    let mut command = system("ctr");
    command.args(["--namespace", CONTAINERD_NAMESPACE]).args(arguments).stdin(Stdio::null());
    let output = command.output().map_err(Error::io("running ctr"))?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
        return Err(Error::Io { doing: format!("ctr {}", arguments.join(" ")), source: std::io::Error::other(said) });
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// A program of the system, which finds others where only root looks for them.
pub fn system(program: &str) -> Command {
    let path = std::env::var("PATH").unwrap_or_default();
    let mut command = Command::new(program);
    command.env("PATH", format!("{path}:/usr/sbin:/sbin"));
    command
}

fn start(name: &str, folder: &Path, program: &Path, arguments: &[String]) -> Result<Process, Error> {
    let mut command = system(&program.display().to_string());
    command.args(arguments);
    Process::start(name, command, &folder.join(format!("{name}.log"))).map_err(Error::io(format!("starting {name}")))
}

fn start_containerd(folder: &Path) -> Result<Process, Error> {
    start("containerd", folder, Path::new("containerd"), &[format!("--config={}", folder.join("containerd.toml").display())])
}

fn start_kubelet(binaries: &NodeBinaries, folder: &Path, kubeconfig: &Path, node: &ForNode) -> Result<Process, Error> {
    let arguments = [
        format!("--config={}", folder.join("kubelet.yaml").display()),
        format!("--kubeconfig={}", kubeconfig.display()),
        format!("--hostname-override={}", node.name),
        format!("--node-ip={}", node.address),
    ];
    start("kubelet", folder, &binaries.kubelet, &arguments)
}

fn start_kube_proxy(binaries: &NodeBinaries, folder: &Path, kubeconfig: &Path, name: &str) -> Result<Process, Error> {
    let mut arguments = vec![
        format!("--kubeconfig={}", kubeconfig.display()),
        format!("--hostname-override={name}"),
        format!("--cluster-cidr={POD_RANGE}"),
    ];
    // Limits of connections are the machine's, and stay as they are.
    let fixed = [
        "--proxy-mode=iptables",
        "--conntrack-max-per-core=0",
        "--conntrack-min=0",
        "--conntrack-tcp-timeout-established=0",
        "--conntrack-tcp-timeout-close-wait=0",
        "--healthz-bind-address=127.0.0.1:10256",
        "--metrics-bind-address=127.0.0.1:10249",
    ];
    arguments.extend(fixed.map(str::to_owned));
    start("kube-proxy", folder, &binaries.kube_proxy, &arguments)
}

fn start_scheduler(binaries: &NodeBinaries, folder: &Path, kubeconfig: &Path) -> Result<Process, Error> {
    let port = free_port().map_err(Error::io("looking for a free port"))?;
    let arguments = [
        format!("--kubeconfig={}", kubeconfig.display()),
        format!("--secure-port={port}"),
        format!("--cert-dir={}", folder.join("scheduler-certs").display()),
        "--bind-address=127.0.0.1".to_owned(),
        "--leader-elect=false".to_owned(),
    ];
    start("kube-scheduler", folder, &binaries.kube_scheduler, &arguments)
}

/// Each Pod has a line of its own to the node, which routes: with a bridge, whether a Service's rules are seen between two Pods is a setting of the kernel.
fn network() -> String {
    format!(
        r#"{{"cniVersion": "1.0.0", "name": "pods", "plugins": [
  {{"type": "ptp", "ipam": {{"type": "host-local", "ranges": [[{{"subnet": "{POD_RANGE}"}}]], "routes": [{{"dst": "0.0.0.0/0"}}]}}}},
  {{"type": "portmap", "capabilities": {{"portMappings": true}}}}
]}}
"#
    )
}

fn containerd_configuration(folder: &Path, sandbox_image: &str) -> String {
    format!(
        r#"version = 2
# The one writes below /opt, the others want file systems or devices that are not here.
disabled_plugins = [
  "io.containerd.internal.v1.opt", "io.containerd.snapshotter.v1.aufs", "io.containerd.snapshotter.v1.btrfs", "io.containerd.snapshotter.v1.devmapper",
  "io.containerd.snapshotter.v1.zfs",
]
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "{sandbox_image}"
  disable_apparmor = true
  restrict_oom_score_adj = true
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "{CNI_PLUGINS}"
    conf_dir = "{}"
"#,
        folder.join("cni").display()
    )
}

fn kubelet_configuration(folder: &Path, options: &NodeOptions) -> String {
    let NodeOptions { node, cgroup, .. } = options;
    let folder = folder.display();
    // Whoever reaches this address may ask the kubelet anything: the API server, which has no certificate that it would know. The machine's disk is not the
    // node's own: how full it is neither evicts Pods nor removes images, which could not be pulled again.
    format!(
        "apiVersion: kubelet.config.k8s.io/v1beta1
kind: KubeletConfiguration
address: {address}
authentication: {{anonymous: {{enabled: true}}, webhook: {{enabled: false}}}}
authorization: {{mode: AlwaysAllow}}
cgroupDriver: cgroupfs
cgroupRoot: {cgroup}
enforceNodeAllocatable: [pods]
failCgroupV1: false
failSwapOn: false
containerRuntimeEndpoint: unix:///run/containerd/containerd.sock
resolvConf: {folder}/resolv.conf
clusterDNS: [{CLUSTER_DNS}]
clusterDomain: cluster.local
volumePluginDir: {folder}/volume-plugins
evictionHard: {{memory.available: 100Mi, nodefs.available: 1%, nodefs.inodesFree: 1%, imagefs.available: 1%, imagefs.inodesFree: 1%}}
imageGCHighThresholdPercent: 100
imageGCLowThresholdPercent: 99
",
        address = node.address,
    )
}
