//! Child processes that end with the process that started them, whatever happens to it.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io;
use std::net::TcpListener;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc;
use std::sync::{Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process, set_parent_process_death_signal};

/// How often a condition is looked at that nothing announces.
const POLL: Duration = Duration::from_millis(20);

/// A child whose output goes to a file. It is killed when this is dropped, and by the kernel when this process ends.
#[derive(Debug)]
pub struct Process {
    pub name: String,
    child: Child,
    log: PathBuf,
}

type Spawn = (Command, mpsc::Sender<io::Result<Child>>);

/// The kernel's parent-death signal follows the thread that made the child, and a test's thread ends before its process does. So all children are made by
/// one thread that lives as long as the process.
fn spawner() -> &'static mpsc::Sender<Spawn> {
    static SPAWNER: OnceLock<mpsc::Sender<Spawn>> = OnceLock::new();
    SPAWNER.get_or_init(|| {
        let (sender, receiver) = mpsc::channel::<Spawn>();
        std::thread::spawn(move || {
            for (mut command, reply) in receiver {
                let _ = reply.send(command.spawn());
            }
        });
        sender
    })
}

impl Process {
    /// Starts `command`, its output going to `log`, in a process group of its own, so that a terminal's Ctrl-C reaches only the process that started it.
    pub fn start(name: &str, mut command: Command, log: &Path) -> io::Result<Process> {
        let output = File::options().create(true).append(true).open(log)?;
        command.stdin(Stdio::null()).stdout(output.try_clone()?).stderr(output).process_group(0);
        // SAFETY: between fork and exec the closure makes one system call and touches no memory of the parent.
        unsafe { command.pre_exec(|| Ok(set_parent_process_death_signal(Some(Signal::KILL))?)) };
        let (reply, child) = mpsc::channel();
        let gone = || io::Error::other("the thread that starts processes has ended");
        spawner().send((command, reply)).map_err(|_| gone())?;
        let child = child.recv().map_err(|_| gone())??;
        Ok(Process { name: name.to_owned(), child, log: log.to_owned() })
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    pub fn log(&self) -> &Path {
        &self.log
    }

    /// The last lines of what it printed.
    pub fn log_tail(&self, lines: usize) -> String {
        let text = fs::read(&self.log).unwrap_or_default();
        let text = String::from_utf8_lossy(&text);
        let all: Vec<&str> = text.lines().collect();
        all[all.len().saturating_sub(lines)..].join("\n")
    }

    /// `Some` where it has ended.
    pub fn exited(&mut self) -> io::Result<Option<ExitStatus>> {
        self.child.try_wait()
    }

    pub fn signal(&self, signal: Signal) {
        if let Some(pid) = Pid::from_raw(self.child.id() as i32) {
            // It may have ended in between, which is as good.
            let _ = kill_process(pid, signal);
        }
    }

    /// Asks it to end, waits, and kills it after `deadline`.
    pub fn stop(&mut self, deadline: Duration) {
        self.signal(Signal::TERM);
        let started = Instant::now();
        while started.elapsed() < deadline {
            match self.child.try_wait() {
                Ok(None) => std::thread::sleep(POLL),
                Ok(Some(_)) | Err(_) => return,
            }
        }
        self.kill();
    }

    pub fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if matches!(self.child.try_wait(), Ok(None)) {
            self.kill();
        }
    }
}

/// A port of the loopback address that was free a moment ago, and that this process was given for nothing else. Whoever uses it must be ready for another process
/// to have taken it since.
pub fn free_port() -> io::Result<u16> {
    static GIVEN: Mutex<BTreeSet<u16>> = Mutex::new(BTreeSet::new());
    loop {
        let port = TcpListener::bind(("127.0.0.1", 0))?.local_addr()?.port();
        if GIVEN.lock().unwrap_or_else(PoisonError::into_inner).insert(port) {
            return Ok(port);
        }
    }
}

/// Asks `condition` until it answers, or gives `None` after `deadline`.
pub async fn wait_for<T, F: AsyncFnMut() -> Option<T>>(deadline: Duration, mut condition: F) -> Option<T> {
    let started = Instant::now();
    loop {
        if let Some(found) = condition().await {
            return Some(found);
        }
        if started.elapsed() >= deadline {
            return None;
        }
        tokio::time::sleep(POLL).await;
    }
}
