//! Memory runs out in a container: a process joins its control group, and touches memory there until the kernel ends what else is in it.

use std::fs;
use std::io::{self, BufRead, Write};
use std::path::PathBuf;
use std::process::{Command, ExitCode, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use rustix::process::Pid;
use stowage_control_plane::processes::wait_for;

use super::DEADLINE;

/// Of memory that is touched at once.
const PIECE: usize = 4 << 20;
/// Between two pieces, so that not much is touched beyond what is needed.
const EVERY: Duration = Duration::from_millis(10);

/// Until the kernel has ended the process, for want of memory in its control group. It is made the first to be ended there.
pub(super) async fn exhaust(process: Pid) -> Result<()> {
    let (group, process) = (group_of(process)?, process.as_raw_nonzero());
    fs::write(format!("/proc/{process}/oom_score_adj"), "1000").context("choosing whom the kernel ends")?;
    // The running program, though it may have been built anew since it was started.
    let mut toucher =
        Command::new("/proc/self/exe").arg("touch").stdin(Stdio::piped()).spawn().context("starting a process that touches memory")?;
    let joined = fs::write(group.join("cgroup.procs"), toucher.id().to_string());
    let told = joined.and_then(|()| toucher.stdin.as_mut().map_or(Ok(()), |stdin| stdin.write_all(b"\n")));
    // One that has ended, and is not waited for yet, has no memory.
    let lives = || fs::read_to_string(format!("/proc/{process}/status")).is_ok_and(|status| status.contains("VmRSS:"));
    let mut touches = || matches!(toucher.try_wait(), Ok(None));
    let over = wait_for(DEADLINE, async || (told.is_err() || !lives() || !touches()).then_some(())).await;
    toucher.kill().and_then(|()| toucher.wait()).context("ending the process that touches memory")?;
    told.with_context(|| format!("joining {}", group.display()))?;
    ensure!(over.is_some() && !lives(), "process {process} lives, though memory was touched in {}", group.display());
    Ok(())
}

/// The folder of the control group that limits its memory.
fn group_of(process: Pid) -> Result<PathBuf> {
    let path = format!("/proc/{}/cgroup", process.as_raw_nonzero());
    let groups = fs::read_to_string(&path).with_context(|| format!("reading {path}"))?;
    let named = groups.lines().filter_map(|line| line.splitn(3, ':').skip(1).collect::<Vec<_>>().try_into().ok());
    let named: Vec<[&str; 2]> = named.collect();
    let of_version_1 = named.iter().find(|[controllers, _]| controllers.split(',').any(|controller| controller == "memory"));
    let folder = match of_version_1 {
        Some([_, group]) => format!("/sys/fs/cgroup/memory{group}"),
        None => format!("/sys/fs/cgroup{}", named.iter().find(|[controllers, _]| controllers.is_empty()).context("no control group")?[1]),
    };
    Ok(PathBuf::from(folder))
}

/// What the process does: from when its standard input has a line, it touches memory until it is ended.
pub fn touch() -> Result<ExitCode> {
    io::stdin().lock().read_line(&mut String::new()).context("waiting to begin")?;
    let mut touched = Vec::new();
    loop {
        touched.push(vec![1_u8; PIECE]);
        std::thread::sleep(EVERY);
    }
}
