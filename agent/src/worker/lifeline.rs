//! How an agent sees that a worker in another Pod lives: the worker holds a file locked, and the kernel lets go of it when the worker's process ends, however
//! it ends. The process itself need not be seen, nor need the worker be able to speak.

use std::fs::File;
use std::io;
use std::path::Path;
use std::time::Duration;

use rustix::fs::{FlockOperation, flock};
use tokio::sync::watch;

/// Between a worker's tries to take what another still holds.
const RETRY: Duration = Duration::from_millis(50);

/// A worker's end of it; held as long as this lives.
#[derive(Debug)]
pub struct Lifeline(#[expect(dead_code, reason = "what holds the lock is that the file is open")] File);

/// Makes the file for a worker that is to come.
pub fn make(path: &Path) -> io::Result<()> {
    File::options().create(true).append(true).open(path).map(drop)
}

/// Takes hold of it. Waits while another worker of the same assignment has it: there is one at a time.
pub async fn hold(path: &Path) -> io::Result<Lifeline> {
    let file = File::open(path)?;
    loop {
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => return Ok(Lifeline(file)),
            Err(rustix::io::Errno::WOULDBLOCK | rustix::io::Errno::INTR) => tokio::time::sleep(RETRY).await,
            Err(error) => return Err(error.into()),
        }
    }
}

/// Whether a worker holds it. Where there is no file, nobody does.
pub fn is_held(path: &Path) -> io::Result<bool> {
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
        Err(error) => return Err(error),
    };
    match flock(&file, FlockOperation::NonBlockingLockShared) {
        Ok(()) => Ok(false),
        Err(rustix::io::Errno::WOULDBLOCK) => Ok(true),
        Err(error) => Err(error.into()),
    }
}

/// Becomes true when nobody holds it any more: a thread waits for that.
pub fn watch_end(path: &Path) -> io::Result<watch::Receiver<bool>> {
    let file = File::open(path)?;
    let (sender, end) = watch::channel(false);
    std::thread::Builder::new().name("worker-end".to_owned()).spawn(move || {
        loop {
            match flock(&file, FlockOperation::LockShared) {
                Ok(()) => return sender.send_replace(true),
                Err(rustix::io::Errno::INTR) => {}
                Err(error) => {
                    tracing::error!(%error, "waiting for the end of a worker in a Pod");
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
    use crate::worker::process::{Process, ProcessId};

    #[tokio::test]
    async fn a_process_that_is_elsewhere_lives_as_long_as_its_lifeline_is_held() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("uid.alive");
        let id = ProcessId { pid: 1, start_time: u64::MAX };
        assert!(Process::behind(&path, id).unwrap().is_none(), "there is no file");
        make(&path).unwrap();
        assert!(Process::behind(&path, id).unwrap().is_none(), "nobody holds it");
        let held = hold(&path).await.unwrap();
        let process = Process::behind(&path, id).unwrap().unwrap();
        assert_eq!((process.pid(), process.is_elsewhere()), (None, true), "process 1 of this container is another");
        let second = hold(&path);
        tokio::pin!(second);
        assert!(futures::poll!(&mut second).is_pending(), "a second worker waits");
        let end = process.ended();
        tokio::pin!(end);
        assert!(futures::poll!(&mut end).is_pending());
        drop(held);
        end.await.unwrap();
        second.await.unwrap();
    }
}
