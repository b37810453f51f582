//! `agent pack`: packs a model's weights as the CPU's kernels want them, for workers that load it later. It reads the file of a stranger, so it is confined as
//! workers are, and what it writes goes to a file that its agent has opened: its standard output.

use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::path::PathBuf;

use anyhow::{Context, Result};
use clap::Args;
use rustix::process::{Resource, Rlimit, nice, setrlimit};
use serde::{Deserialize, Serialize};
use stowage_engine::packed_file::pack;
use stowage_engine::{BackendChoice, LoadRequest, Start};
use stowage_placement::{Bytes, DevicePlan, Request};

use crate::worker::Confine;
use crate::worker::confine::{Policy, confine};
use crate::worker::memory::go_first;

/// Behind everything else that wants a processor.
const NICENESS: i32 = 19;

/// Pack a model's weights, to standard output.
#[derive(Args, Clone, Debug)]
pub struct PackArgs {
    /// How much to insist on being confined.
    #[arg(long, value_enum, value_name = "HOW", default_value_t)]
    pub confine: Confine,
}

/// What to pack, in JSON on standard input.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PackOrder {
    pub model: PathBuf,
    pub plan: DevicePlan,
    pub request: Request,
    /// More is not written, whatever the model's file is.
    pub most: Bytes,
}

pub fn run(args: &PackArgs) -> Result<()> {
    go_first();
    let _ = nice(NICENESS);
    let order: PackOrder = serde_json::from_reader(io::stdin().lock()).context("reading what to pack, from standard input")?;
    let most = Some(order.most.0);
    setrlimit(Resource::Fsize, Rlimit { current: most, maximum: most }).context("limiting what may be written")?;
    let to = File::from(io::stdout().as_fd().try_clone_to_owned().context("opening standard output")?);
    // Before there is a second thread.
    let _confinement = confine(&Policy::of_packing(&order.model), args.confine)?;
    let PackOrder { model, plan, request, most: _ } = order;
    let request = LoadRequest {
        path: model,
        start: Start::InMemory,
        plan,
        request,
        num_thread: 1,
        template: String::new(),
        backend: BackendChoice::Cpu,
    };
    Ok(pack(&request, to, &mut |_| {})?)
}
