//! What is tried on the node, one step after another.

mod changes;
mod client;
mod commands;
mod earlier_chart;
mod install;
mod losses;
mod memory;
mod model;

use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::Result;
use clap::Args;
use stowage_control_plane::node::NodeOptions;
use stowage_control_plane::{ControlPlane, ForNode, Node, Options};
use stowage_crds::names;
use stowage_end_to_end::watch;

pub use memory::touch;

/// The interface with the node's address, and its other end.
pub const LINK: &str = "stowage0";
pub const OTHER_END: &str = "stowage1";
pub const ADDRESS: Ipv4Addr = Ipv4Addr::new(10, 245, 0, 1);

const NODE: &str = "this-machine";
const NAMESPACE: &str = names::SYSTEM_NAMESPACE;
const MODEL: &str = "smollm2";
const IN_POD: &str = "ghcr.io/stowage-dev/in-pod:e2e";
const ARCHIVES: [&str; 3] = ["stowage-operator.tar", "stowage-agent.tar", "in-pod.tar"];
const DEADLINE: Duration = watch::DEADLINE;

/// What is made before.
#[derive(Args, Clone, Debug)]
pub struct Inputs {
    /// The GGUF file of SmolLM2-135M-Instruct.
    #[arg(long)]
    model: PathBuf,
    /// The folder with the archives of the images.
    #[arg(long)]
    images: PathBuf,
}

impl Inputs {
    /// The flags that say the same.
    pub fn arguments(&self) -> [PathBuf; 4] {
        ["--model".into(), self.model.clone(), "--images".into(), self.images.clone()]
    }
}

/// Of all containers of the node whose folder this is.
pub fn control_group(folder: &Path) -> String {
    format!("/{}", folder.file_name().unwrap_or_default().to_string_lossy())
}

/// Raises the node, tries everything, and ends the node.
pub async fn run(folder: &Path, inputs: &Inputs) -> Result<()> {
    let _ = rustls::crypto::ring::default_provider().install_default();
    let mut clock = Clock { started: Instant::now(), last: Instant::now() };
    let for_node = ForNode { name: NODE.to_owned(), address: ADDRESS, token: "stowage-e2e-kubelet".to_owned() };
    let control_plane = ControlPlane::start(Options { node: Some(for_node.clone()), ..Options::default() }).await?;
    clock.step("the control plane answers");
    let images = ARCHIVES.map(|name| inputs.images.join(name)).to_vec();
    let options = NodeOptions { node: for_node, sandbox_image: IN_POD.to_owned(), images, cgroup: control_group(folder) };
    let node = Node::start(&control_plane, &options, &folder.join("node")).await?;
    clock.step("the node is ready: containerd with the images, kubelet, kube-proxy, scheduler");
    let mut everything = Everything { control_plane, node, folder: folder.to_owned(), clock };
    if let Err(error) = everything.try_all(inputs).await {
        everything.tell();
        return Err(error);
    }
    everything.stop()
}

struct Clock {
    started: Instant,
    last: Instant,
}

impl Clock {
    fn step(&mut self, what: &str) {
        eprintln!("[{:5.1} s, {:+5.1} s] {what}", self.started.elapsed().as_secs_f64(), self.last.elapsed().as_secs_f64());
        self.last = Instant::now();
    }
}

struct Everything {
    control_plane: ControlPlane,
    node: Node,
    folder: PathBuf,
    clock: Clock,
}

impl Everything {
    async fn try_all(&mut self, inputs: &Inputs) -> Result<()> {
        self.copy_model(&inputs.model)?;
        self.install(&inputs.model).await?;
        self.deploy().await?;
        self.plugin()?;
        self.smoke_test()?;

        self.upgrade_operator().await?;
        self.restart_kubelet().await?;
        self.upgrade_agent().await?;
        self.delete_agent().await?;
        self.drain().await?;
        self.roll_out(&inputs.model).await?;
        self.lose_workers().await?;
        self.nothing_was_restarted()?;
        self.kill_leader().await?;
        self.workers_as_processes().await?;
        self.uninstall().await?;

        self.upgrade_from_an_earlier_chart().await?;
        self.uninstall().await?;
        self.nothing_is_left().await
    }

    fn stop(self) -> Result<()> {
        let Everything { control_plane, node, mut clock, .. } = self;
        node.stop();
        control_plane.stop();
        clock.step("kubelet, kube-proxy, scheduler, containerd and the control plane are ended");
        Ok(())
    }
}
