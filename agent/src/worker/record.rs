//! What is written down of workers, so that an agent's successor finds them, and so that a worker knows what to do.
//!
//! In the run directory: `workers/UID.order.json`, which a worker reads that is the agent's child, and `workers/UID.record.json`, which the next agent reads.
//! In `pods/`, of which workers in Pods see no more than that: the agent's socket, and `UID.alive`, their lifelines.

use std::fs;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use stowage_crds::model_node::{Assignment, ReplicaStatus};
use stowage_engine::MeasuredDevice;
use stowage_placement::Bytes;

use super::lifeline;
use super::loaded_file::LoadedFile;
use super::process::ProcessId;
use super::view::WorkerView;

/// Extension of a lifeline's name.
const LIFELINE: &str = "alive";

/// What a worker is to do.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Order {
    pub assignment: Assignment,
    /// The model's file; the agent fetched it.
    pub model: PathBuf,
    /// That file as it was when the worker was started.
    #[serde(default)]
    pub file: Option<LoadedFile>,
    /// Where the HTTP API is to listen.
    pub bind: IpAddr,
    /// 0: the worker picks it.
    #[serde(default)]
    pub port: u16,
    /// The address of the worker's own Pod, at which it is reached.
    #[serde(default)]
    pub pod_address: Option<IpAddr>,
}

/// A worker as its agent last saw it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Record {
    pub assignment: Assignment,
    pub process: ProcessId,
    pub status: ReplicaStatus,
    pub held: Vec<MeasuredDevice>,
    #[serde(default)]
    pub file: Option<LoadedFile>,
    pub http_address: Option<SocketAddr>,
}

impl Record {
    pub fn new(view: &WorkerView, assignment: &Assignment, process: ProcessId) -> Record {
        Record {
            assignment: assignment.clone(),
            process,
            status: ReplicaStatus { percent: None, ..view.status.clone() },
            held: view.held.clone(),
            file: view.file.clone(),
            http_address: view.http_address,
        }
    }

    pub fn into_view(self) -> WorkerView {
        WorkerView {
            status: self.status,
            assignment: Some(self.assignment),
            runs: true,
            pid: (self.process.pid != 0).then_some(self.process.pid),
            resident: Bytes::ZERO,
            held: self.held,
            file: self.file,
            http_address: self.http_address,
        }
    }
}

/// The files of the run directory.
#[derive(Clone, Debug)]
pub struct Records {
    directory: PathBuf,
    /// What workers in Pods see of the run directory.
    shared: PathBuf,
}

impl Records {
    pub fn new(run_dir: &Path) -> io::Result<Records> {
        let (directory, shared) = (run_dir.join("workers"), shared(run_dir));
        for directory in [&directory, &shared] {
            fs::create_dir_all(directory)?;
        }
        Ok(Records { directory, shared })
    }

    /// What the worker of an assignment holds as long as it lives, if it is in a Pod.
    pub fn lifeline(&self, uid: &str) -> PathBuf {
        lifeline(&self.shared, uid)
    }

    /// Removes what workers in Pods left that have ended while no agent ran.
    pub fn remove_unheld_lifelines(&self) -> io::Result<()> {
        for entry in fs::read_dir(&self.shared)? {
            let path = entry?.path();
            if path.extension().is_some_and(|extension| extension == LIFELINE) && !lifeline::is_held(&path)? {
                fs::remove_file(path)?;
            }
        }
        Ok(())
    }

    pub fn order_path(&self, uid: &str) -> PathBuf {
        self.directory.join(format!("{}.order.json", file_stem(uid)))
    }

    fn record_path(&self, uid: &str) -> PathBuf {
        self.directory.join(format!("{}.record.json", file_stem(uid)))
    }

    pub fn write_order(&self, order: &Order) -> io::Result<PathBuf> {
        let path = self.order_path(&order.assignment.uid);
        write(&path, order)?;
        Ok(path)
    }

    pub fn write_record(&self, record: &Record) -> io::Result<()> {
        write(&self.record_path(&record.assignment.uid), record)
    }

    pub fn remove(&self, uid: &str) {
        self.remove_files(&[self.order_path(uid), self.record_path(uid)]);
    }

    /// When no worker of the assignment is to come any more.
    pub fn remove_lifeline(&self, uid: &str) {
        self.remove_files(&[self.lifeline(uid)]);
    }

    fn remove_files(&self, paths: &[PathBuf]) {
        for path in paths {
            if let Err(error) = fs::remove_file(path)
                && error.kind() != io::ErrorKind::NotFound
            {
                tracing::warn!(path = %path.display(), %error, "a file of a worker that is gone stays behind");
            }
        }
    }

    /// Those that earlier agents left. What can't be read is of no use and removed.
    pub fn all(&self) -> io::Result<Vec<Record>> {
        let mut records = Vec::new();
        for entry in fs::read_dir(&self.directory)? {
            let path = entry?.path();
            if !path.to_string_lossy().ends_with(".record.json") {
                continue;
            }
            match read::<Record>(&path) {
                Ok(record) => records.push(record),
                Err(error) => {
                    tracing::warn!(path = %path.display(), %error, "the record of a worker can't be read; if the worker lives, it will say hello");
                    fs::remove_file(&path)?;
                }
            }
        }
        records.sort_by(|a, b| a.assignment.uid.cmp(&b.assignment.uid));
        Ok(records)
    }
}

/// The part of the run directory that workers in Pods see: the agent's socket, and their lifelines.
pub fn shared(run_dir: &Path) -> PathBuf {
    run_dir.join("pods")
}

/// In the folder that agent and workers share.
pub fn lifeline(shared: &Path, uid: &str) -> PathBuf {
    shared.join(format!("{}.{LIFELINE}", file_stem(uid)))
}

/// Uids are letters, digits and `-`; whatever else comes must not leave the directory.
pub(super) fn file_stem(uid: &str) -> String {
    uid.chars().map(|c| if c.is_ascii_alphanumeric() || c == '-' { c } else { '_' }).collect()
}

pub fn read<T: DeserializeOwned>(path: &Path) -> io::Result<T> {
    serde_json::from_slice(&fs::read(path)?).map_err(io::Error::other)
}

/// Whole or not at all, whenever the machine stops.
fn write<T: Serialize>(path: &Path, value: &T) -> io::Result<()> {
    let unfinished = path.with_extension("json.new");
    fs::write(&unfinished, serde_json::to_vec(value).map_err(io::Error::other)?)?;
    fs::rename(&unfinished, path)
}
