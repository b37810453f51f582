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
use stowage_control_plane::node::system;
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
    let tried = system("unshare").args(NAMESPACES).arg("true").stdin(Stdio::null()).output();
    match tried {
        Ok(output) if output.status.success() => Vec::new(),
        Ok(output) => {
            vec![format!("namespaces of mounts, network and processes: unshare says {:?}", String::from_utf8_lossy(&output.stderr).trim())]
        }
        Err(error) => vec![format!("unshare (Debian's package util-linux): {error}")],
    }
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
    let verdict = if code == 0 { "green" } else { "FAILED" };
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
    let mut child = tokio::process::Command::from(command).spawn().context("starting unshare")?;
    let tether = child.stdin.take();
    let mut terminate = signal(SignalKind::terminate()).context("listening for SIGTERM")?;
    tokio::select! {
        status = child.wait() => return Ok(code(status.context("waiting for unshare")?)),
        _ = tokio::signal::ctrl_c() => {}
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
    let code = runtime.block_on(async {
        tokio::select! {
            result = steps::run(folder, inputs) => match result {
                Ok(()) => 0,
                Err(error) => {
                    eprintln!("e2e: {error:#}");
                    1
                }
            },
            () = told_to_end() => INTERRUPTED,
        }
    });
    // Not a return: the runtime would wait for the thread that reads standard input.
    std::process::exit(i32::from(code))
}

/// The end of standard input, which `run` holds.
async fn told_to_end() {
    let (sender, receiver) = tokio::sync::oneshot::channel();
    std::thread::spawn(move || {
        let _ = std::io::stdin().read_to_end(&mut Vec::new());
        let _ = sender.send(());
    });
    let _ = receiver.await;
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
}

impl Machine {
    fn look() -> Machine {
        let entries = fs::read_dir("/sys/class/net").into_iter().flatten().flatten();
        let interfaces = entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
        let rules = system("iptables-save").stdin(Stdio::null()).output().map(|output| output.stdout).unwrap_or_default();
        // Without comments, which have the time, and without how often each chain was passed.
        let rules = String::from_utf8_lossy(&rules).lines().filter(|line| !line.starts_with('#')).map(without_counters).collect();
        let settings = SETTINGS.iter().map(|path| fs::read_to_string(path).ok()).collect();
        Machine { interfaces, rules, settings }
    }

    /// What there is of the view in `folder` beyond what there was, in words.
    fn changes(&self, now: &Machine, folder: &Path) -> Vec<String> {
        let mut changes: Vec<String> = now.interfaces.difference(&self.interfaces).map(|name| format!("interface {name}")).collect();
        changes.extend(now.rules.difference(&self.rules).map(|rule| format!("iptables rule {rule}")));
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

/// Removes the view's control groups, of every controller; gives those that were below its own, which their containers should have taken along.
fn remove_control_groups(name: &str) -> Vec<String> {
    let name = name.trim_start_matches('/');
    let hierarchies = fs::read_dir("/sys/fs/cgroup").into_iter().flatten().flatten().map(|entry| entry.path().join(name));
    let roots: Vec<PathBuf> = hierarchies.chain([Path::new("/sys/fs/cgroup").join(name)]).filter(|path| path.is_dir()).collect();
    let mut below = Vec::new();
    for root in &roots {
        groups_below(root, &mut below);
        let _ = fs::remove_dir(root);
    }
    below
}

/// The deepest first, as they have to be removed.
fn groups_below(group: &Path, found: &mut Vec<String>) {
    let entries = fs::read_dir(group).into_iter().flatten().flatten().filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()));
    for path in entries.map(|entry| entry.path()) {
        groups_below(&path, found);
        let _ = fs::remove_dir(&path);
        found.push(path.display().to_string());
    }
}
