//! The processes in which replicas run, as the machine shows them.

use std::fs;
use std::path::{Path, PathBuf};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

/// A worker that lives.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Worker {
    pub pid: u32,
    pub assignment_uid: String,
    pub deployment_uid: String,
    pub replica: String,
}

impl Worker {
    pub fn signal(&self, signal: Signal) {
        if let Some(pid) = Pid::from_raw(self.pid as i32) {
            // It may have ended in between, which is as good.
            let _ = kill_process(pid, signal);
        }
    }

    /// Whether its process is still there; one that only waits for its parent to notice its end is not.
    pub fn lives(&self) -> bool {
        order(self.pid).is_some()
    }
}

/// Workers whose nodes' folders are in this folder.
pub fn running(folder: &Path) -> Vec<Worker> {
    let Ok(processes) = fs::read_dir("/proc") else { return Vec::new() };
    let pids = processes.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
    let orders = pids.filter_map(|pid: u32| Some((pid, order(pid)?)));
    orders.filter(|(_, order)| order.starts_with(folder)).filter_map(|(pid, order)| worker(pid, &order)).collect()
}

/// The file that a worker was told to carry out; a process that has ended has no command line.
fn order(pid: u32) -> Option<PathBuf> {
    let line = fs::read(format!("/proc/{pid}/cmdline")).ok()?;
    let mut arguments = line.split(|byte| *byte == 0).map(String::from_utf8_lossy);
    arguments.find(|argument| argument == "--assignment-file")?;
    Some(PathBuf::from(arguments.next()?.into_owned()))
}

fn worker(pid: u32, order: &Path) -> Option<Worker> {
    let order: Value = serde_json::from_slice(&fs::read(order).ok()?).ok()?;
    let assignment = &order["assignment"];
    let text = |value: &Value| value.as_str().map(str::to_owned);
    Some(Worker {
        pid,
        assignment_uid: text(&assignment["uid"])?,
        deployment_uid: text(&assignment["modelDeployment"]["uid"])?,
        replica: text(&assignment["replica"])?,
    })
}

/// Workers are made to outlive their agent; when a cluster is dropped in the middle of a test, this takes them along.
pub(crate) struct LeftBehind(pub PathBuf);

impl Drop for LeftBehind {
    fn drop(&mut self) {
        running(&self.0).iter().for_each(|worker| worker.signal(Signal::KILL));
    }
}
