//! Starts a worker as a child process that does not depend on its parent.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;

use stowage_crds::log_line;
use tokio::io::{AsyncBufReadExt, AsyncRead, BufReader};
use tokio::process::{Child, Command};
use tokio::sync::watch;

use super::confine::Confine;
use super::record::file_stem;
use crate::devices::nvml::CUDA_VISIBLE_DEVICES;

/// Of the agent's environment, what a worker must not have: the way into the cluster, and tokens of model sources.
const WITHHELD: [&str; 5] = ["KUBECONFIG", "KUBERNETES_SERVICE_HOST", "KUBERNETES_SERVICE_PORT", "HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"];

/// Takes that out of what a process of the agent's is started with.
pub fn withhold(command: &mut Command) {
    for name in WITHHELD {
        command.env_remove(name);
    }
}

/// Names to CUDA the devices, by UUID, that a process is to use; where they are none, nothing is said. A process that names none is listed the first part of a
/// divided GPU (MIG), if there is any, and nothing else.
pub fn see_only(command: &mut Command, uuids: &[&str]) {
    if !uuids.is_empty() {
        command.env(CUDA_VISIBLE_DEVICES, uuids.join(","));
    }
}

/// Of a log, what is looked at for the line that says why a worker died.
const LOG_TAIL: u64 = 4096;

/// Where a worker's standard output and error go.
#[derive(Clone, Debug)]
pub enum WorkerLog {
    /// To the agent's own.
    Inherited,
    /// To `UID.log` in this directory, also when the worker outlives its agent.
    Directory(PathBuf),
    /// To the agent's standard error, each line with the replica's name: for where workers end with their agent, and one log is kept for all, as of a container.
    Forwarded(LastLines),
}

/// What each worker wrote last, by uid.
#[derive(Clone, Debug, Default)]
pub struct LastLines(Arc<watch::Sender<BTreeMap<String, Said>>>);

#[derive(Clone, Debug, Default)]
pub struct Said {
    line: String,
    /// Pipes that it may still write to, or of which not all was read.
    open: u32,
}

impl LastLines {
    /// Hands on what comes, line by line, until the worker closes its end.
    fn forward(&self, uid: &str, replica: &str, pipe: impl AsyncRead + Send + Unpin + 'static) {
        let (lines, uid, replica) = (self.0.clone(), uid.to_owned(), replica.to_owned());
        lines.send_modify(|lines| lines.entry(uid.clone()).or_default().open += 1);
        tokio::spawn(async move {
            let mut pieces = BufReader::new(pipe).split(b'\n');
            while let Ok(Some(line)) = pieces.next_segment().await {
                let line = String::from_utf8_lossy(&line);
                eprintln!("{replica}: {line}");
                if !line.trim().is_empty() {
                    lines.send_modify(|lines| lines.entry(uid.clone()).or_default().line = log_line::shown(&line));
                }
            }
            lines.send_modify(|lines| {
                if let Some(said) = lines.get_mut(&uid) {
                    said.open = said.open.saturating_sub(1);
                }
            });
        });
    }
}

impl WorkerLog {
    fn path(&self, uid: &str) -> Option<PathBuf> {
        match self {
            WorkerLog::Inherited | WorkerLog::Forwarded(_) => None,
            WorkerLog::Directory(directory) => Some(directory.join(format!("{}.log", file_stem(uid)))),
        }
    }

    fn output(&self, uid: &str) -> io::Result<(Stdio, Stdio)> {
        if matches!(self, WorkerLog::Forwarded(_)) {
            return Ok((Stdio::piped(), Stdio::piped()));
        }
        let Some(path) = self.path(uid) else { return Ok((Stdio::inherit(), Stdio::inherit())) };
        if let Some(directory) = path.parent() {
            fs::create_dir_all(directory)?;
        }
        let file = OpenOptions::new().create(true).append(true).open(path)?;
        Ok((file.try_clone()?.into(), file.into()))
    }

    /// The last line of the worker's log, where there is one of its own.
    pub fn last_line(&self, uid: &str) -> Option<String> {
        if let WorkerLog::Forwarded(lines) = self {
            return lines.0.borrow().get(uid).map(|said| said.line.clone()).filter(|line| !line.is_empty());
        }
        let mut file = File::open(self.path(uid)?).ok()?;
        let length = file.metadata().ok()?.len();
        file.seek(SeekFrom::Start(length.saturating_sub(LOG_TAIL))).ok()?;
        let mut tail = Vec::new();
        file.read_to_end(&mut tail).ok()?;
        let text = String::from_utf8_lossy(&tail);
        let line = text.lines().rev().find(|line| !line.trim().is_empty())?;
        Some(log_line::shown(line))
    }

    /// Returns when all that a worker wrote before it ended was read.
    pub async fn read_to_its_end(&self, uid: &str) {
        if let WorkerLog::Forwarded(lines) = self {
            // The sender is ours, so there is no error.
            let _ = lines.0.subscribe().wait_for(|lines| lines.get(uid).is_none_or(|said| said.open == 0)).await;
        }
    }

    pub fn remove(&self, uid: &str) {
        if let WorkerLog::Forwarded(lines) = self {
            lines.0.send_modify(|lines| drop(lines.remove(uid)));
        }
        if let Some(path) = self.path(uid) {
            // Left behind, it is overwritten by nobody and harms nobody.
            let _ = fs::remove_file(path);
        }
    }
}

/// What is run as a worker.
#[derive(Clone, Debug)]
pub struct Program {
    pub executable: PathBuf,
    /// Before `worker --socket ... --assignment-file ...`; empty where the executable is the agent's own.
    pub arguments: Vec<OsString>,
    pub confine: Confine,
    pub log: WorkerLog,
}

impl Program {
    /// Starts a worker, which CUDA lists these GPUs. It makes itself a session of its own, so what ends the agent's does not end it; dropping the child does not either.
    pub fn start(&self, uid: &str, replica: &str, socket: &Path, order: &Path, gpus: &[&str]) -> io::Result<Child> {
        let (output, error) = self.log.output(uid)?;
        let mut command = Command::new(&self.executable);
        command.args(&self.arguments).arg("worker").arg("--socket").arg(socket).arg("--assignment-file").arg(order);
        command.arg("--confine").arg(self.confine.as_str());
        command.stdin(Stdio::null()).stdout(output).stderr(error).kill_on_drop(false);
        withhold(&mut command);
        see_only(&mut command, gpus);
        let mut child = command.spawn()?;
        if let WorkerLog::Forwarded(lines) = &self.log {
            child.stdout.take().into_iter().for_each(|pipe| lines.forward(uid, replica, pipe));
            child.stderr.take().into_iter().for_each(|pipe| lines.forward(uid, replica, pipe));
        }
        Ok(child)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_worker_has_no_way_into_the_cluster_sees_its_own_gpus_and_its_last_words_are_kept() {
        let directory = tempfile::tempdir().unwrap();
        let log = WorkerLog::Directory(directory.path().join("logs"));
        let script = "echo first; echo \"[$KUBECONFIG] $CUDA_VISIBLE_DEVICES $4 $5 $6 $7\"; echo";
        let arguments = ["-c".into(), script.into(), "sh".into()].to_vec();
        let program = Program { executable: "/bin/sh".into(), arguments, confine: Confine::Required, log: log.clone() };
        let mut child = program.start("uid-1", "m-0", Path::new("/s"), Path::new("/o"), &["GPU-a", "GPU-b"]).unwrap();
        assert!(child.wait().await.unwrap().success());
        assert_eq!(log.last_line("uid-1").unwrap(), "[] GPU-a,GPU-b --assignment-file /o --confine required");
        log.remove("uid-1");
        assert_eq!(log.last_line("uid-1"), None);
    }

    #[tokio::test]
    async fn the_last_words_of_a_worker_whose_output_is_handed_on_are_kept_too() {
        let log = WorkerLog::Forwarded(LastLines::default());
        let arguments = ["-c".into(), "echo first >&2; printf last >&2; echo >&2".into(), "sh".into()].to_vec();
        let program = Program { executable: "/bin/sh".into(), arguments, confine: Confine::Off, log: log.clone() };
        let mut child = program.start("uid-1", "m-0", Path::new("/s"), Path::new("/o"), &[]).unwrap();
        assert!(child.wait().await.unwrap().success());
        log.read_to_its_end("uid-1").await;
        assert_eq!(log.last_line("uid-1").unwrap(), "last");
        log.remove("uid-1");
        assert_eq!(log.last_line("uid-1"), None);
    }
}
