//! `kubectl stowage top`: who holds the GPUs' memory, by node, device and replica, drawn.

mod draw;
mod live;
mod snapshot;

use clap::Args;
use console::Term;
use kube::Api;

use super::Error;
use super::cluster::{Cluster, all};
use super::output::{Format, print};
use crate::plan::DefaultsArgs;
use snapshot::Snapshot;

/// Show who holds GPU memory, by node, device and replica. On a terminal it goes on, and is drawn anew whenever something changes, until Ctrl-C.
#[derive(Args, Clone, Debug)]
pub struct TopArgs {
    /// Of these nodes alone.
    pub nodes: Vec<String>,
    /// Show it once, also on a terminal.
    #[arg(long)]
    pub once: bool,
    #[command(flatten)]
    pub defaults: DefaultsArgs,
    /// For machines: once.
    #[arg(short, long, value_enum, default_value_t)]
    pub output: Format,
}

impl TopArgs {
    fn goes_on(&self, terminal: &Term) -> bool {
        terminal.is_term() && !self.once && self.output == Format::Table
    }
}

pub async fn run(cluster: &Cluster, args: &TopArgs) -> Result<(), Error> {
    let api = Api::all(cluster.client.clone());
    let model_nodes = all(&api, "list ModelNodes").await?;
    let terminal = Term::stdout();
    if args.goes_on(&terminal) {
        return live::run(api, args, &terminal).await;
    }
    let snapshot = Snapshot::new(&model_nodes, &args.nodes, args.defaults.defaults());
    print(args.output, &snapshot, draw::render)
}

#[cfg(test)]
mod tests;
