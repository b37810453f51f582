//! A worker holds itself to what it needs, before it reads a model file or hears a request: both come from people whom the node has no reason to trust.
//!
//! What it may open is said in [`policy`], and [`landlock`] has the kernel hold it to that; what it may ask of the kernel is said in [`seccomp`]. Both hold
//! for the thread that calls and for those that it starts later, and nothing takes them back.

#[cfg(feature = "hostile-worker")]
pub mod attempts;
mod landlock;
mod policy;
mod seccomp;

use std::io;

use clap::ValueEnum;
use rustix::process::{DumpableBehavior, set_dumpable_behavior};

pub use policy::Policy;

/// How much a worker insists on being confined.
#[derive(ValueEnum, Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Confine {
    /// As far as the node's kernel can; the worker's log says what it can't.
    #[default]
    BestEffort,
    /// Wholly, or nothing is loaded.
    Required,
    /// Not at all.
    Off,
}

impl Confine {
    /// As on the command line.
    pub fn as_str(self) -> &'static str {
        match self {
            Confine::BestEffort => "best-effort",
            Confine::Required => "required",
            Confine::Off => "off",
        }
    }
}

/// The worker can't be confined as is required.
#[derive(Debug, thiserror::Error)]
#[error("the worker must be confined wholly (--confine required), and on this node {}", .0.join("; "))]
pub struct NotConfined(Vec<String>);

/// A confined process. To be kept as long as it lives.
#[derive(Debug, Default)]
pub struct Confinement {
    _files: landlock::Held,
}

/// Confines the thread that calls, and all that it starts. To be called before there is a second thread: what others may do, this does not change.
pub fn confine(policy: &Policy, how: Confine) -> Result<Confinement, NotConfined> {
    if how == Confine::Off {
        tracing::warn!("the worker is not confined, as it was told (--confine off)");
        return Ok(Confinement::default());
    }
    let mut lacking = Vec::new();
    if let Err(error) = hide_memory() {
        lacking.push(format!("its memory can't be hidden from other processes: {error}"));
    }
    let files = landlock::restrict(policy, &mut lacking);
    if let Err(error) = seccomp::restrict() {
        lacking.push(format!("system calls can't be refused (seccomp): {error}"));
    }
    if lacking.is_empty() {
        tracing::info!("the worker is confined to its files and its port (Landlock, seccomp)");
    } else if how == Confine::Required {
        return Err(NotConfined(lacking));
    } else {
        tracing::warn!(lacking = lacking.join("; "), "the worker is confined only as far as this node's kernel can");
    }
    Ok(Confinement { _files: files })
}

/// No core dumps, and no reading of this process's memory by another of the same user. What the agent reads of it (`/proc/PID/stat`, `status`, `comm`)
/// stays readable by all.
fn hide_memory() -> io::Result<()> {
    Ok(set_dumpable_behavior(DumpableBehavior::NotDumpable)?)
}
