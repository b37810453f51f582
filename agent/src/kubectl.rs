//! `kubectl stowage`: what the cluster has for a model, why a model is where it is, who holds the VRAM, and a chat with it.
//!
//! It acts as whoever calls it, by their kubeconfig, and changes nothing. kubectl runs the program `kubectl-stowage` of the `PATH`: this binary under that name.

mod candidates;
mod chat;
mod cluster;
mod difference;
mod explain;
mod forward;
mod model;
mod output;
mod plan;
mod top;

use std::ffi::OsString;
use std::path::Path;
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};

pub use cluster::ClusterError;
use cluster::{Cluster, ConnectionArgs};

/// The name under which kubectl finds it.
pub const PROGRAM: &str = "kubectl-stowage";

/// See why models are where they are, and what would change it.
#[derive(Parser, Debug)]
#[command(name = PROGRAM, bin_name = "kubectl stowage", version)]
pub struct Cli {
    #[command(flatten)]
    pub args: KubectlArgs,
}

/// What `kubectl stowage` does: see why models are where they are, and what would change it.
#[derive(Args, Debug)]
pub struct KubectlArgs {
    #[command(flatten)]
    connection: ConnectionArgs,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand, Debug)]
enum Command {
    Plan(plan::PlanArgs),
    Explain(explain::ExplainArgs),
    Top(top::TopArgs),
    Chat(chat::ChatArgs),
}

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("{0}")]
    Cluster(#[from] ClusterError),
    #[error("{0}")]
    Source(#[from] crate::plan::PlanError),
    #[error("{0}")]
    Model(String),
    #[error("{0}")]
    Chat(#[from] chat::ChatError),
    #[error("{0}")]
    Forward(#[from] forward::ForwardError),
    #[error("writing the answer: {0}")]
    Output(#[from] std::io::Error),
    #[error("writing the answer as JSON: {0}")]
    Json(#[from] serde_json::Error),
    #[error("writing the answer as YAML: {0}")]
    Yaml(#[from] stowage_crds::yaml::Error),
}

/// Whether the program was started as kubectl starts its plugins.
pub fn is_called(program: Option<OsString>) -> bool {
    program.as_deref().and_then(|program| Path::new(program).file_name()).is_some_and(|name| name == PROGRAM)
}

/// Exit status: 0; of `plan` 3 where it does not fit as asked; 2 where there is no answer.
pub async fn run(args: KubectlArgs) -> ExitCode {
    match answer(args).await {
        Ok(code) => code,
        // Whoever reads has enough.
        Err(Error::Output(error)) if error.kind() == std::io::ErrorKind::BrokenPipe => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {}", crate::plan::printable(&error.to_string()));
            ExitCode::from(crate::plan::BAD_INPUT)
        }
    }
}

async fn answer(args: KubectlArgs) -> Result<ExitCode, Error> {
    let cluster = Cluster::connect(&args.connection).await?;
    match args.command {
        Command::Plan(args) => plan::run(&cluster, &args).await,
        Command::Explain(args) => explain::run(&cluster, &args).await.map(|()| ExitCode::SUCCESS),
        Command::Top(args) => top::run(&cluster, &args).await.map(|()| ExitCode::SUCCESS),
        Command::Chat(args) => chat::run(&cluster, args).await.map(|()| ExitCode::SUCCESS),
    }
}

#[cfg(test)]
mod testing;

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_sound() {
        Cli::command().debug_assert();
    }

    #[test]
    fn it_is_called_by_the_name_under_which_kubectl_finds_it() {
        assert!(is_called(Some("/usr/local/bin/kubectl-stowage".into())) && is_called(Some("kubectl-stowage".into())));
        assert!(!is_called(Some("/usr/local/bin/stowage-agent".into())) && !is_called(None));
    }

    #[test]
    fn the_namespace_may_stand_before_or_after_the_command() {
        for line in ["kubectl-stowage -n a explain mdl/b", "kubectl-stowage explain mdl/b --namespace a"] {
            let cli = Cli::parse_from(line.split(' '));
            assert_eq!(cli.args.connection.namespace.as_deref(), Some("a"));
        }
    }
}
