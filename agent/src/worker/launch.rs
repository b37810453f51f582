//! Starts a worker as a child process that does not depend on its parent.

use std::ffi::OsString;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::process::Stdio;

use tokio::process::{Child, Command};

use super::record::file_stem;

/// Of the agent's environment, what a worker must not have: the way into the cluster, and tokens of model sources.
const WITHHELD: [&str; 5] = ["KUBECONFIG", "KUBERNETES_SERVICE_HOST", "KUBERNETES_SERVICE_PORT", "HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"];
/// Of a log, what is looked at for the line that says why a worker died.
const LOG_TAIL: u64 = 4096;
/// Of such a line, what fits into a status.
const LONGEST_LINE: usize = 300;

/// Where a worker's standard output and error go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum WorkerLog {
    /// To the agent's own.
    Inherited,
    /// To `UID.log` in this directory.
    Directory(PathBuf),
}

impl WorkerLog {
    fn path(&self, uid: &str) -> Option<PathBuf> {
        match self {
            WorkerLog::Inherited => None,
            WorkerLog::Directory(directory) => Some(directory.join(format!("{}.log", file_stem(uid)))),
        }
    }

    fn output(&self, uid: &str) -> io::Result<(Stdio, Stdio)> {
        let Some(path) = self.path(uid) else { return Ok((Stdio::inherit(), Stdio::inherit())) };
        if let Some(directory) = path.parent() {
            fs::create_dir_all(directory)?;
        }
        let file = OpenOptions::new().create(true).append(true).open(path)?;
        Ok((file.try_clone()?.into(), file.into()))
    }

    /// The last line of the worker's log, where there is one of its own.
    pub fn last_line(&self, uid: &str) -> Option<String> {
        let mut file = File::open(self.path(uid)?).ok()?;
        let length = file.metadata().ok()?.len();
        file.seek(SeekFrom::Start(length.saturating_sub(LOG_TAIL))).ok()?;
        let mut tail = Vec::new();
        file.read_to_end(&mut tail).ok()?;
        let text = String::from_utf8_lossy(&tail);
        let line = text.lines().rev().find(|line| !line.trim().is_empty())?;
        Some(line.trim().chars().filter(|c| !c.is_control()).take(LONGEST_LINE).collect())
    }

    pub fn remove(&self, uid: &str) {
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
    pub log: WorkerLog,
}

impl Program {
    /// Starts a worker. It makes itself a session of its own, so what ends the agent's does not end it; dropping the child does not either.
    pub fn start(&self, uid: &str, socket: &Path, order: &Path) -> io::Result<Child> {
        let (output, error) = self.log.output(uid)?;
        let mut command = Command::new(&self.executable);
        command.args(&self.arguments).arg("worker").arg("--socket").arg(socket).arg("--assignment-file").arg(order);
        command.stdin(Stdio::null()).stdout(output).stderr(error).kill_on_drop(false);
        for name in WITHHELD {
            command.env_remove(name);
        }
        command.spawn()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_worker_has_no_way_into_the_cluster_and_its_last_words_are_kept() {
        let directory = tempfile::tempdir().unwrap();
        let log = WorkerLog::Directory(directory.path().join("logs"));
        let script = "echo first; echo \"[$KUBECONFIG] $4 $5 $6\"; echo";
        let arguments = ["-c".into(), script.into(), "sh".into()].to_vec();
        let program = Program { executable: "/bin/sh".into(), arguments, log: log.clone() };
        let mut child = program.start("uid-1", Path::new("/s"), Path::new("/o")).unwrap();
        assert!(child.wait().await.unwrap().success());
        assert_eq!(log.last_line("uid-1").unwrap(), "[] --assignment-file /o");
        log.remove("uid-1");
        assert_eq!(log.last_line("uid-1"), None);
    }
}
