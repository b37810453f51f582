//! `kubectl drain` of a node whose replicas have no other place yet.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result};
use stowage_control_plane::processes::Process;
use stowage_crds::names;

use crate::watch;

/// What kubectl says of a Pod that it may not evict, and will try again.
const REFUSED: &str = "would violate the pod's disruption budget";

/// Has kubectl drain a node of workers, and returns when the eviction of one was refused. It goes on trying; what it says is in `log`.
pub async fn begin(mut kubectl: Command, node: &str, log: &Path) -> Result<Process> {
    kubectl.args(["drain", node, "--ignore-daemonsets", "--pod-selector", names::ASSIGNMENT_LABEL]);
    let drain = Process::start("drain", kubectl, log).context("kubectl drain")?;
    watch::until("the eviction is refused", || fs::read_to_string(log).is_ok_and(|said| said.contains(REFUSED))).await?;
    Ok(drain)
}
