//! A process that is certainly the one that was meant.
//!
//! A number alone is not: it is given again. Number and start time together are, and a pidfd then stays with the process whatever becomes of its number.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::OnceLock;

use rustix::event::{PollFd, PollFlags, poll};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use serde::{Deserialize, Serialize};
use tokio::sync::watch;

/// A process, as it can be written down and found again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ProcessId {
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

/// A hold on a process: it can be signalled and its end waited for, whoever started it.
#[derive(Debug)]
pub struct Process {
    pub id: ProcessId,
    fd: OwnedFd,
    /// True when it has ended; made when somebody waits for that.
    end: OnceLock<watch::Receiver<bool>>,
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
            Ok(found) if found == id => Ok(Some(Process { id, fd, end: OnceLock::new() })),
            _ => Ok(None),
        }
    }

    /// A signal to a process that has ended is no error.
    pub fn signal(&self, signal: Signal) -> io::Result<()> {
        match pidfd_send_signal(&self.fd, signal) {
            Ok(()) | Err(rustix::io::Errno::SRCH) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// Returns when the process has ended: its memory and devices are free then.
    pub async fn ended(&self) -> io::Result<()> {
        let mut end = match self.end.get() {
            Some(end) => end.clone(),
            None => {
                let end = watch_end(self.fd.try_clone()?)?;
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
