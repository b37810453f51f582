//! A view of the machine of its own for the node: namespaces of processes, mounts and network, with folders of its own where a node keeps things.
//!
//! `run` starts `init` in new namespaces, which starts `inside`. When `inside` ends, however it does, the kernel ends every process of the view and takes its
//! mounts, interfaces and iptables rules along; what is the machine's own (a folder below the temporary one, control groups) `run` removes. Then it looks.

use std::collections::BTreeSet;
use std::fs;
use std::io::Read;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use rustix::process::{Signal, WaitOptions, set_parent_process_death_signal, wait};
use stowage_control_plane::node::{self, system};
use tokio::signal::unix::{SignalKind, signal};

use crate::steps::{self, Inputs};

const NAMESPACES: [&str; 4] = ["--mount", "--net", "--pid", "--fork"];
/// Folders in which a node keeps things at paths that can't all be chosen. Inside, each is an empty one.
const FOLDERS: [&str; 3] = ["/run", "/var/lib", "/var/log"];
/// What a kubelet sets for the whole machine. Inside, each is a file with what the machine has.
const SETTINGS: [&str; 6] = [
    "/proc/sys/vm/overcommit_memory",
    "/proc/sys/vm/panic_on_oom",
    "/proc/sys/kernel/panic",
    "/proc/sys/kernel/panic_on_oops",
    "/proc/sys/kernel/keys/root_maxkeys",
    "/proc/sys/kernel/keys/root_maxbytes",
];
const INTERRUPTED: u8 = 130;
/// For what is inside to end once it was told to.
const END_DEADLINE: Duration = Duration::from_secs(60);

/// Why there can be no such view here, in words.
pub fn lacking() -> Vec<String> {
    let mut lacking = Vec::new();
    match system("unshare").args(NAMESPACES).arg("true").stdin(Stdio::null()).output() {
        Ok(output) if output.status.success() => {}
        Ok(output) => {
            let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
            lacking.push(format!("namespaces of mounts, network and processes: {said}"));
        }
        Err(error) => lacking.push(format!("unshare (Debian's package util-linux): {error}")),
    }
    let group = format!("/stowage-e2e-check-{}", std::process::id());
    if let Err(error) = node::make_control_groups(&group) {
        lacking.push(format!("control groups: {error}"));
    }
    remove_control_groups(&group);
    lacking
}

/// Tries everything, in a view of its own; an error where it fails or something of it is left on the machine.
pub fn run(inputs: &Inputs) -> Result<ExitCode> {
    let started = Instant::now();
    let before = Machine::look();
    let folder = tempfile::Builder::new().prefix("stowage-e2e-").tempdir().context("making a temporary folder")?;
    let at = folder.path().to_owned();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().context("starting")?;
    let code = runtime.block_on(run_inside(&at, inputs))?;
    let groups = remove_control_groups(&steps::control_group(&at));
    folder.close().with_context(|| format!("removing {}", at.display()))?;
    let mut left = before.changes(&Machine::look(), &at);
    if code == 0 {
        left.extend(groups.iter().map(|group| format!("control group {group}")));
    }
    ensure!(left.is_empty(), "left on the machine: {left:#?}");
    eprintln!("e2e: the machine is as it was: no process, mount, interface, iptables rule, control group, setting or file is left");
    let verdict = match code {
        0 => "green",
        INTERRUPTED => "interrupted",
        _ => "FAILED",
    };
    eprintln!("e2e: {verdict} after {:.0} s", started.elapsed().as_secs_f64());
    Ok(ExitCode::from(code))
}

/// Its exit status.
async fn run_inside(folder: &Path, inputs: &Inputs) -> Result<u8> {
    let own = std::env::current_exe().context("finding the running program")?;
    let temporary = folder.join("tmp");
    fs::create_dir(&temporary).with_context(|| format!("making {}", temporary.display()))?;
    let mut command = system("unshare");
    command.args(NAMESPACES).args(["--mount-proc", "--kill-child=SIGKILL"]).arg(&own).arg("init").arg(&own).arg("inside");
    command.arg("--folder").arg(folder).args(inputs.arguments()).env("TMPDIR", &temporary);
    // What reads from this pipe sees its end when this process is told to end, or is killed.
    command.stdin(Stdio::piped()).process_group(0);
    // SAFETY: between fork and exec the closure makes one system call and touches no memory of the parent. The thread that makes the child is the one that waits.
    unsafe { command.pre_exec(|| Ok(set_parent_process_death_signal(Some(Signal::KILL))?)) };
    let mut terminate = signal(SignalKind::terminate()).context("listening for SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("listening for SIGINT")?;
    let mut child = tokio::process::Command::from(command).spawn().context("starting unshare")?;
    let tether = child.stdin.take();
    tokio::select! {
        status = child.wait() => return Ok(code(status.context("waiting for unshare")?)),
        _ = interrupt.recv() => {}
        _ = terminate.recv() => {}
    }
    eprintln!("e2e: interrupted: ending everything");
    drop(tether);
    if tokio::time::timeout(END_DEADLINE, child.wait()).await.is_err() {
        child.kill().await.context("killing unshare")?;
    }
    Ok(INTERRUPTED)
}

fn code(status: std::process::ExitStatus) -> u8 {
    status.code().and_then(|code| u8::try_from(code).ok()).unwrap_or(1)
}

/// The first process of the view: it starts `command`, and waits for it and for every process that has lost its parent.
pub fn init(command: &[String]) -> Result<ExitCode> {
    let [program, arguments @ ..] = command else { bail!("init: no command") };
    let child = Command::new(program).args(arguments).spawn().with_context(|| format!("starting {program}"))?;
    loop {
        let Some((pid, status)) = wait(WaitOptions::empty()).context("waiting for processes")? else { continue };
        if pid.as_raw_nonzero().get() as u32 == child.id() {
            let code = status.exit_status().and_then(|code| u8::try_from(code).ok());
            return Ok(ExitCode::from(code.unwrap_or(1)));
        }
    }
}

/// Within the namespaces: makes the rest of the view, and tries everything.
pub fn inside(folder: &Path, inputs: &Inputs) -> Result<ExitCode> {
    mounts(folder)?;
    network()?;
    let runtime = tokio::runtime::Runtime::new().context("starting")?;
    std::thread::spawn(end_when_told);
    runtime.block_on(steps::run(folder, inputs))?;
    Ok(ExitCode::SUCCESS)
}

/// Standard input ends when `run` is told to end. Whatever goes on then, the kernel ends with the first process of the view.
fn end_when_told() {
    let _ = std::io::stdin().read_to_end(&mut Vec::new());
    std::process::exit(i32::from(INTERRUPTED))
}

fn mounts(folder: &Path) -> Result<()> {
    // As on a node: what is mounted by the kubelet is seen by containers that are there already. Nothing leaves this namespace.
    execute("mount", &["--make-rshared", "/"])?;
    let own = folder.join("view");
    for path in FOLDERS {
        let replacement = own.join(path.trim_start_matches('/').replace('/', "-"));
        fs::create_dir_all(&replacement).with_context(|| format!("making {}", replacement.display()))?;
        bind(&replacement, path)?;
    }
    for path in SETTINGS.into_iter().filter(|path| Path::new(path).exists()) {
        let replacement = own.join(path.trim_start_matches('/').replace('/', "-"));
        fs::copy(path, &replacement).with_context(|| format!("copying {path}"))?;
        bind(&replacement, path)?;
    }
    Ok(())
}

fn bind(replacement: &Path, path: &str) -> Result<()> {
    execute("mount", &["--bind", &replacement.display().to_string(), path])
}

/// The node's address is on one end of a line whose other end nobody holds; all that is not known goes there, so that it has a route and is seen by the
/// Services' rules.
fn network() -> Result<()> {
    let (link, address) = (steps::LINK, format!("{}/32", steps::ADDRESS));
    execute("ip", &["link", "set", "lo", "up"])?;
    execute("ip", &["link", "add", link, "type", "veth", "peer", "name", steps::OTHER_END])?;
    execute("ip", &["link", "set", link, "up"])?;
    execute("ip", &["link", "set", steps::OTHER_END, "up"])?;
    execute("ip", &["address", "add", &address, "dev", link])?;
    execute("ip", &["route", "add", "default", "dev", link, "src", &steps::ADDRESS.to_string()])
}

fn execute(program: &str, arguments: &[&str]) -> Result<()> {
    let output = system(program).args(arguments).stdin(Stdio::null()).output().with_context(|| format!("running {program}"))?;
    ensure!(output.status.success(), "{program} {}: {}", arguments.join(" "), String::from_utf8_lossy(&output.stderr).trim());
    Ok(())
}

/// What could be left on the machine.
struct Machine {
    interfaces: BTreeSet<String>,
    rules: BTreeSet<String>,
    settings: Vec<Option<String>>,
    /// At the top, of every controller.
    control_groups: BTreeSet<String>,
}

impl Machine {
    fn look() -> Machine {
        let entries = fs::read_dir("/sys/class/net").into_iter().flatten().flatten();
        let interfaces = entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
        let rules = system("iptables-save").stdin(Stdio::null()).output().map(|output| output.stdout).unwrap_or_default();
        // Without comments, which have the time, and without how often each chain was passed.
        let rules = String::from_utf8_lossy(&rules).lines().filter(|line| !line.starts_with('#')).map(without_counters).collect();
        let settings = SETTINGS.iter().map(|path| fs::read_to_string(path).ok()).collect();
        let top = subfolders(Path::new("/sys/fs/cgroup")).into_iter().flat_map(|hierarchy| subfolders(&hierarchy));
        let control_groups = top.map(|path| path.display().to_string()).collect();
        Machine { interfaces, rules, settings, control_groups }
    }

    /// What there is of the view in `folder` beyond what there was, in words.
    fn changes(&self, now: &Machine, folder: &Path) -> Vec<String> {
        let mut changes: Vec<String> = now.interfaces.difference(&self.interfaces).map(|name| format!("interface {name}")).collect();
        changes.extend(now.rules.difference(&self.rules).map(|rule| format!("iptables rule {rule}")));
        changes.extend(now.control_groups.difference(&self.control_groups).map(|group| format!("control group {group}")));
        let settings = SETTINGS.iter().zip(self.settings.iter().zip(&now.settings)).filter(|(_, (before, after))| before != after);
        changes.extend(settings.map(|(path, (before, after))| format!("{path}: {after:?}, which was {before:?}")));
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
        let folder_text = folder.display().to_string();
        changes.extend(mounts.lines().filter(|line| line.contains(&folder_text)).map(|line| format!("mount {line}")));
        changes.extend(processes_of(folder).into_iter().map(|process| format!("process {process}")));
        if folder.exists() {
            changes.push(format!("folder {folder_text}"));
        }
        changes
    }
}

fn without_counters(line: &str) -> String {
    line.split(" [").next().unwrap_or(line).to_owned()
}

/// Those whose command line names the folder, or that are in the view's control group.
fn processes_of(folder: &Path) -> Vec<String> {
    let (named, group) = (folder.display().to_string(), steps::control_group(folder));
    let text = |path: PathBuf| fs::read(path).map(|bytes| String::from_utf8_lossy(&bytes).replace('\0', " ")).unwrap_or_default();
    let processes = fs::read_dir("/proc").into_iter().flatten().flatten().map(|entry| entry.path());
    let found = processes.map(|path| (text(path.join("cmdline")), text(path.join("cgroup"))));
    found.filter(|(command, groups)| command.contains(&named) || groups.contains(&group)).map(|(command, _)| command).collect()
}

/// Removes the view's control groups, of every controller; gives those of Pods, which the kubelet should have removed.
fn remove_control_groups(name: &str) -> Vec<String> {
    let (name, mount) = (name.trim_start_matches('/'), Path::new("/sys/fs/cgroup"));
    let hierarchies = subfolders(mount).into_iter().chain([mount.to_owned()]);
    let mut removed = Vec::new();
    hierarchies.for_each(|hierarchy| remove_control_group(&hierarchy.join(name), &mut removed));
    // The kubelet's own groups, one of each quality of service, stay for as long as the machine is a node.
    removed.retain(|group| group.contains("/pod"));
    removed
}

/// The deepest first, as they have to be removed.
fn remove_control_group(group: &Path, removed: &mut Vec<String>) {
    subfolders(group).iter().for_each(|below| remove_control_group(below, removed));
    if fs::remove_dir(group).is_ok() {
        removed.push(group.display().to_string());
    }
}

fn subfolders(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir())).map(|entry| entry.path()).collect()
}
