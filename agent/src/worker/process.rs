//! A process that is certainly the one that was meant.
//!
//! A number alone is not: it is given again. Number and start time together are, and a pidfd then stays with the process whatever becomes of its number.
//! A process in another container may not be seen at all; of that its [`lifeline`](super::lifeline) says whether it lives.

use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use rustix::event::{PollFd, PollFlags, poll};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use serde::{Deserialize, Serialize};
use tokio::sync::watch;

use super::lifeline;

/// A process, as it can be written down and found again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ProcessId {
    /// 0 where it is in another container and can't be seen from this one.
    pub pid: u32,
    /// In clock ticks since the machine started (`/proc/PID/stat`, field 22).
    pub start_time: u64,
}

impl ProcessId {
    pub fn own() -> io::Result<ProcessId> {
        ProcessId::of(std::process::id())
    }

    /// The process that has this number now. One that has ended and only waits for its parent to notice (a zombie) holds nothing and counts as none.
    pub fn of(pid: u32) -> io::Result<ProcessId> {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
        let start_time = start_time(&stat).ok_or_else(|| io::Error::new(io::ErrorKind::NotFound, format!("process {pid} has ended")))?;
        Ok(ProcessId { pid, start_time })
    }
}

/// From `/proc/PID/stat`: `PID (NAME) STATE ...`, where NAME may hold anything. `None` for a process that has ended.
fn start_time(stat: &str) -> Option<u64> {
    let mut fields = stat[stat.rfind(')')? + 1..].split_ascii_whitespace();
    let state = fields.next()?;
    if matches!(state, "Z" | "X" | "x") {
        return None;
    }
    fields.nth(18)?.parse().ok()
}

/// A hold on a process: its end can be waited for, whoever started it.
#[derive(Debug)]
pub struct Process {
    pub id: ProcessId,
    hold: Hold,
    /// True when it has ended; made when somebody waits for that.
    end: OnceLock<watch::Receiver<bool>>,
}

#[derive(Debug)]
enum Hold {
    Pidfd(OwnedFd),
    /// It is in another Pod, and holds this file.
    Lifeline(PathBuf),
}

impl Process {
    /// `None` where that process is gone, whoever has its number now.
    pub fn find(id: ProcessId) -> io::Result<Option<Process>> {
        let Some(pid) = i32::try_from(id.pid).ok().and_then(Pid::from_raw) else { return Ok(None) };
        let fd = match pidfd_open(pid, PidfdFlags::empty()) {
            Ok(fd) => fd,
            Err(rustix::io::Errno::SRCH) => return Ok(None),
            Err(error) => return Err(error.into()),
        };
        // Looked at after the pidfd was opened: what has the start time now is what the pidfd holds.
        match ProcessId::of(id.pid) {
            Ok(found) if found == id => Ok(Some(Process { id, hold: Hold::Pidfd(fd), end: OnceLock::new() })),
            _ => Ok(None),
        }
    }

    /// The process in another Pod that holds this lifeline; `None` where nobody does. Its number counts where it can be seen under it.
    pub fn behind(lifeline: &Path, id: ProcessId) -> io::Result<Option<Process>> {
        if !lifeline::is_held(lifeline)? {
            return Ok(None);
        }
        let is_seen = ProcessId::of(id.pid).is_ok_and(|found| found == id);
        let id = ProcessId { pid: if is_seen { id.pid } else { 0 }, ..id };
        Ok(Some(Process { id, hold: Hold::Lifeline(lifeline.to_owned()), end: OnceLock::new() }))
    }

    /// Its number, where it can be seen.
    pub fn pid(&self) -> Option<u32> {
        (self.id.pid != 0).then_some(self.id.pid)
    }

    /// Whether it is in a Pod of its own, which somebody else starts and ends.
    pub fn is_elsewhere(&self) -> bool {
        matches!(self.hold, Hold::Lifeline(_))
    }

    /// Whether both are of one process. Numbers of one that is elsewhere depend on who looks.
    pub fn is(&self, other: &Process) -> bool {
        if self.is_elsewhere() { self.id.start_time == other.id.start_time } else { self.id == other.id }
    }

    /// A signal to a process that has ended is no error. One that is elsewhere gets none: its Pod is ended in its place.
    pub fn signal(&self, signal: Signal) -> io::Result<()> {
        let Hold::Pidfd(fd) = &self.hold else { return Ok(()) };
        match pidfd_send_signal(fd, signal) {
            Ok(()) | Err(rustix::io::Errno::SRCH) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// Returns when the process has ended: its memory and devices are free then.
    pub async fn ended(&self) -> io::Result<()> {
        let mut end = match self.end.get() {
            Some(end) => end.clone(),
            None => {
                let end = match &self.hold {
                    Hold::Pidfd(fd) => watch_end(fd.try_clone()?)?,
                    Hold::Lifeline(path) => lifeline::watch_end(path)?,
                };
                self.end.get_or_init(|| end).clone()
            }
        };
        end.wait_for(|ended| *ended).await.map_err(|_| io::Error::other("the thread that waits for a process's end gave up"))?;
        Ok(())
    }
}

/// A thread that waits: the one way to hear of the end of a process that is no child without asking again and again.
fn watch_end(fd: OwnedFd) -> io::Result<watch::Receiver<bool>> {
    let (sender, end) = watch::channel(false);
    std::thread::Builder::new().name("worker-end".to_owned()).spawn(move || {
        loop {
            match poll(&mut [PollFd::new(&fd, PollFlags::IN)], None) {
                Ok(_) => return sender.send_replace(true),
                Err(rustix::io::Errno::INTR) => {}
                Err(error) => {
                    tracing::error!(%error, "waiting for a process's end");
                    return false;
                }
            }
        }
    })?;
    Ok(end)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_with_brackets_and_spaces_does_not_hide_the_start_time() {
        let tail = "S 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 4242 20";
        assert_eq!(start_time(&format!("17 (a) b (c)) {tail}")), Some(4242));
        assert_eq!(start_time("17 (a) Z 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 4242 20"), None);
    }

    #[tokio::test]
    async fn a_process_is_found_by_number_and_start_time_and_its_end_is_seen() {
        let mut child = tokio::process::Command::new("sleep").arg("1000").spawn().unwrap();
        let id = ProcessId::of(child.id().unwrap()).unwrap();
        let other = ProcessId { start_time: id.start_time + 1, ..id };
        assert!(Process::find(other).unwrap().is_none());
        let process = Process::find(id).unwrap().unwrap();
        process.signal(Signal::KILL).unwrap();
        process.ended().await.unwrap();
        // Not yet waited for: a zombie is gone too.
        assert!(Process::find(id).unwrap().is_none());
        child.wait().await.unwrap();
    }
}
