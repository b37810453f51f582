//! The agent's command line: flags, each with an environment variable where a Pod would set it.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};
use stowage_crds::names;

use crate::bench::BenchArgs;
use crate::calibrate::CalibrateArgs;
use crate::kubectl::KubectlArgs;
use crate::plan::PlanArgs;
use crate::prepare::PrepareArgs;
use crate::smoke_test::SmokeTestArgs;
use crate::worker::{Confine, WorkerArguments};

/// The node side of Stowage: runs large language models where the operator placed them.
#[derive(Parser, Debug)]
#[command(name = "stowage-agent", version)]
pub struct Cli {
    #[command(subcommand)]
    pub command: Command,
}

#[derive(Subcommand, Debug)]
// One of these exists, once a process.
#[allow(clippy::large_enum_variant)]
pub enum Command {
    /// Run the agent of this node.
    Run(RunArgs),
    /// Load and serve one replica; agents start this.
    #[command(hide = true)]
    Worker(WorkerArguments),
    /// Run every kernel on a GPU to be measured; agents start this.
    #[command(hide = true)]
    Calibrate(CalibrateArgs),
    Plan(PlanArgs),
    Bench(BenchArgs),
    /// What `kubectl stowage` does, where it is not installed as kubectl's plugin.
    Kubectl(KubectlArgs),
    SmokeTest(SmokeTestArgs),
    #[command(hide = true)]
    Prepare(PrepareArgs),
}

/// Flags of `agent run`.
#[derive(Args, Clone, Debug)]
pub struct RunArgs {
    /// The Node that this agent is on. Omitted: the host's name.
    #[arg(long, env = "STOWAGE_NODE_NAME")]
    pub node_name: Option<String>,
    /// Where the agents' Leases are.
    #[arg(long, env = "STOWAGE_SYSTEM_NAMESPACE", default_value = names::SYSTEM_NAMESPACE)]
    pub system_namespace: String,
    /// Omitted: $KUBECONFIG, ~/.kube/config, or the Pod's service account.
    #[arg(long, value_name = "PATH")]
    pub kubeconfig: Option<PathBuf>,
    /// Holds model files; ModelDeployments name them relative to it.
    #[arg(long, env = "STOWAGE_MODEL_DIR", value_name = "PATH", default_value = "/var/lib/stowage/models")]
    pub model_dir: PathBuf,
    /// Where downloads go. Omitted: the model directory.
    #[arg(long, env = "STOWAGE_CACHE_DIR", value_name = "PATH")]
    pub cache_dir: Option<PathBuf>,
    /// Holds the workers' socket and what the next agent needs to know of them. Its path must be short: a socket's may have 107 bytes.
    #[arg(long, env = "STOWAGE_RUN_DIR", value_name = "PATH", default_value = "/run/stowage")]
    pub run_dir: PathBuf,
    /// At which others reach this node's workers and its door. EndpointSlices take no loopback address.
    #[arg(long, env = "STOWAGE_ADVERTISE_ADDRESS", value_name = "ADDRESS")]
    pub advertise_address: IpAddr,
    /// Where the node's door listens: the API of all models on the node. Port 0: any; it is logged.
    #[arg(long, env = "STOWAGE_DOOR_ADDRESS", value_name = "ADDRESS:PORT", default_value = "0.0.0.0:11434")]
    pub door_address: SocketAddr,
    /// Where workers listen; each picks its own port.
    #[arg(long, env = "STOWAGE_WORKER_BIND_ADDRESS", value_name = "ADDRESS", default_value = "0.0.0.0")]
    pub worker_bind_address: IpAddr,
    #[command(flatten)]
    pub devices: DeviceArgs,
    /// Don't measure what the driver takes on a kind of GPU of which nothing is known; the first load there teaches it.
    #[arg(long, env = "STOWAGE_SKIP_CALIBRATION")]
    pub skip_calibration: bool,
    /// A range of addresses, such as 10.0.0.0/8, that models may be read from though it is not public. Once for each.
    #[arg(long = "allow-source-address", env = "STOWAGE_ALLOW_SOURCE_ADDRESS", value_name = "RANGE", value_delimiter = ',')]
    pub allow_source_addresses: Vec<String>,
    /// Who starts workers.
    #[arg(long, env = "STOWAGE_WORKERS", value_enum, value_name = "WHO", default_value_t)]
    pub workers: WorkersArg,
    /// End the workers when the agent is told to end. Without it they serve on, and the next agent takes them over.
    #[arg(long, env = "STOWAGE_STOP_WORKERS_ON_EXIT")]
    pub stop_workers_on_exit: bool,
    /// Where workers' output goes.
    #[arg(long, env = "STOWAGE_WORKER_LOG", value_enum, value_name = "WHERE", default_value_t)]
    pub worker_log: WorkerLogArg,
    /// How much workers, which read model files and requests, insist on being confined to their own files and port (docs/security.md).
    #[arg(long, env = "STOWAGE_CONFINE", value_enum, value_name = "HOW", default_value_t)]
    pub confine: Confine,
    /// A folder with a file for each API key, as Kubernetes mounts a Secret. With it, whoever asks the node's door or its workers needs one of the keys.
    #[arg(long, env = "STOWAGE_API_KEYS_DIR", value_name = "PATH")]
    pub api_keys_dir: Option<PathBuf>,
}

#[derive(ValueEnum, Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum WorkersArg {
    /// The agent: each is a child process of its.
    #[default]
    Process,
    /// The operator: each is in a Pod of its own on the agent's node, with `pods` of the run directory and the models at the same paths.
    Pod,
}

#[derive(ValueEnum, Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum WorkerLogArg {
    /// To a file each in the run directory, also when they outlive this agent.
    #[default]
    Files,
    /// To the agent's own, each line with its replica's name.
    Forward,
}

/// Which devices are looked for.
#[derive(Args, Clone, Debug, Default)]
pub struct DeviceArgs {
    /// Another NVML than the system's.
    #[arg(long, env = NVML_LIBRARY, value_name = "PATH")]
    pub nvml_library: Option<PathBuf>,
    /// Use no GPU, whatever is there.
    #[arg(long, env = "STOWAGE_CPU_ONLY")]
    pub cpu_only: bool,
}

/// Also read by `agent plan`, which looks at the machine's own devices.
pub const NVML_LIBRARY: &str = "STOWAGE_NVML_LIBRARY";

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_sound() {
        Cli::command().debug_assert();
    }

    #[test]
    fn the_door_is_at_ollamas_port_unless_told_otherwise() {
        let cli = Cli::parse_from(["stowage-agent", "run", "--advertise-address", "192.0.2.1"]);
        let Command::Run(run) = cli.command else { panic!("expected `run`") };
        assert_eq!(run.door_address.to_string(), "0.0.0.0:11434");
        assert_eq!(run.cache_dir, None);
        assert!(!run.stop_workers_on_exit);
        assert_eq!(run.worker_log, WorkerLogArg::Files);
    }
}
