//! Stowage on one real node, the way that people install it: behind `make e2e`. Needs root; `steps.rs` is what is tried, `view.rs` what keeps the machine as it was.

mod steps;
mod view;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use stowage_control_plane::node;

/// Exit status where a node can't be raised on this machine, so that nothing was tried.
const CANNOT: u8 = 77;

/// Raises a real Kubernetes node, installs Stowage on it with the chart, uses it as people do, and removes everything again.
#[derive(Parser)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Say whether it can be tried on this machine; exit status 77 where it can't.
    Check,
    /// Try it.
    Run(steps::Inputs),
    /// The same, in a view of the machine of its own: `run` starts this.
    #[command(hide = true)]
    Inside {
        #[arg(long)]
        folder: PathBuf,
        #[command(flatten)]
        inputs: steps::Inputs,
    },
    /// Touches memory until it is ended, once its standard input has a line: `inside` has it use up what a container may have.
    #[command(hide = true)]
    Touch,
    /// The first process in that view, which waits for those whose parents are gone.
    #[command(hide = true)]
    Init {
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        command: Vec<String>,
    },
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let result = match arguments.command {
        Command::Check | Command::Run(_) if !can_run() => return ExitCode::from(CANNOT),
        Command::Check => Ok(ExitCode::SUCCESS),
        Command::Run(inputs) => view::run(&inputs),
        Command::Inside { folder, inputs } => view::inside(&folder, &inputs),
        Command::Touch => steps::touch(),
        Command::Init { command } => view::init(&command),
    };
    result.unwrap_or_else(|error| {
        eprintln!("e2e: {error:#}");
        ExitCode::FAILURE
    })
}

/// Says, loudly, where it can't.
fn can_run() -> bool {
    let lacking = lacking();
    if !lacking.is_empty() {
        eprintln!("e2e: CANNOT RUN HERE: a real node can't be raised on this machine, so nothing was tried. What is missing:");
        lacking.iter().for_each(|line| eprintln!("  - {line}"));
    }
    lacking.is_empty()
}

/// What this machine lacks, in words.
fn lacking() -> Vec<String> {
    if !rustix::process::geteuid().is_root() {
        return vec!["root: containers, mounts and networks are made".to_owned()];
    }
    let mut lacking = node::missing();
    if !lacking.is_empty() {
        lacking.push(format!("on Debian, all of them come with: apt-get install {}", node::DEBIAN_PACKAGES));
    }
    lacking.extend(view::lacking());
    lacking
}
