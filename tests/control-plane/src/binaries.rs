//! The control plane's programs, a node's, and helm: found in the cache or in `KUBEBUILDER_ASSETS`, else built from their Go modules.

use std::fs::{self, File};
use std::io::{BufRead, BufReader};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};
use rustix::process::{Signal, set_parent_process_death_signal};

use crate::Error;

pub const KUBERNETES_VERSION: &str = "1.37.2";
pub const ETCD_VERSION: &str = "3.6.5";
pub const HELM_VERSION: &str = "3.21.4";
pub const KUBE_SCORE_VERSION: &str = "1.20.0";
pub const ACTIONLINT_VERSION: &str = "1.7.7";
pub const PROMETHEUS_OPERATOR_VERSION: &str = "0.85.0";

/// Where each program is.
#[derive(Clone, Debug)]
pub struct Binaries {
    pub etcd: PathBuf,
    pub kube_apiserver: PathBuf,
    pub kube_controller_manager: PathBuf,
    pub kubectl: PathBuf,
}

/// Where the programs are that a node needs besides a control plane's, and the scheduler that finds it.
#[derive(Clone, Debug)]
pub struct NodeBinaries {
    pub kubelet: PathBuf,
    pub kube_proxy: PathBuf,
    pub kube_scheduler: PathBuf,
}

/// A program that can be built.
struct Program {
    name: &'static str,
    package: &'static str,
    /// Folder of the Go module, below `tests/control-plane/go`.
    module: &'static str,
    version: &'static str,
    /// The variable by which the program knows its version, where its source does not say it.
    version_variable: Option<&'static str>,
    /// Seconds that its build took on two busy cores, after those before it.
    seconds: u32,
}

const CONTROL_PLANE: [Program; 4] = [
    Program {
        name: "etcd",
        package: "go.etcd.io/etcd/server/v3",
        module: "etcd",
        version: ETCD_VERSION,
        version_variable: None,
        seconds: 60,
    },
    kubernetes("kube-apiserver", "k8s.io/kubernetes/cmd/kube-apiserver", 580),
    kubernetes("kube-controller-manager", "k8s.io/kubernetes/cmd/kube-controller-manager", 260),
    kubernetes("kubectl", "k8s.io/kubernetes/cmd/kubectl", 55),
];

const HELM: [Program; 1] = [Program {
    name: "helm",
    package: "helm.sh/helm/v3/cmd/helm",
    module: "helm",
    version: HELM_VERSION,
    version_variable: Some("helm.sh/helm/v3/internal/version.version"),
    seconds: 270,
}];

const KUBE_SCORE: [Program; 1] = [Program {
    name: "kube-score",
    package: "github.com/zegl/kube-score/cmd/kube-score",
    module: "kube-score",
    version: KUBE_SCORE_VERSION,
    version_variable: None,
    seconds: 40,
}];

const ACTIONLINT: [Program; 1] = [Program {
    name: "actionlint",
    package: "github.com/rhysd/actionlint/cmd/actionlint",
    module: "actionlint",
    version: ACTIONLINT_VERSION,
    version_variable: None,
    seconds: 20,
}];

const NODE: [Program; 3] = [
    kubernetes("kubelet", "k8s.io/kubernetes/cmd/kubelet", 60),
    kubernetes("kube-proxy", "k8s.io/kubernetes/cmd/kube-proxy", 35),
    kubernetes("kube-scheduler", "k8s.io/kubernetes/cmd/kube-scheduler", 25),
];

const fn kubernetes(name: &'static str, package: &'static str, seconds: u32) -> Program {
    let version_variable = Some("k8s.io/component-base/version.gitVersion");
    Program { name, package, module: "kubernetes", version: KUBERNETES_VERSION, version_variable, seconds }
}

/// `${XDG_CACHE_HOME:-~/.cache}/stowage`, where what takes long to make is kept between checkouts.
pub fn cache_directory() -> PathBuf {
    let set = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    set("XDG_CACHE_HOME").or_else(|| set("HOME").map(|home| home.join(".cache"))).unwrap_or_else(std::env::temp_dir).join("stowage")
}

/// Finds every program, building those that are missing. Two callers at once do not build twice: the second waits for the first.
pub fn ensure() -> Result<Binaries, Error> {
    let [etcd, kube_apiserver, kube_controller_manager, kubectl] = programs(&CONTROL_PLANE);
    Ok(Binaries { etcd: etcd?, kube_apiserver: kube_apiserver?, kube_controller_manager: kube_controller_manager?, kubectl: kubectl? })
}

/// Finds helm, building it where it is missing.
pub fn helm() -> Result<PathBuf, Error> {
    let [helm] = programs(&HELM);
    helm
}

/// Finds kube-score, which looks for what is unsafe in manifests, building it where it is missing. No test needs it.
pub fn kube_score() -> Result<PathBuf, Error> {
    let [kube_score] = programs(&KUBE_SCORE);
    kube_score
}

/// Finds actionlint, which looks for what is wrong in GitHub's workflows, building it where it is missing. No test needs it.
pub fn actionlint() -> Result<PathBuf, Error> {
    let [actionlint] = programs(&ACTIONLINT);
    actionlint
}

/// Finds what a node needs, building what is missing. No test needs it.
pub fn node() -> Result<NodeBinaries, Error> {
    let [kubelet, kube_proxy, kube_scheduler] = programs(&NODE);
    Ok(NodeBinaries { kubelet: kubelet?, kube_proxy: kube_proxy?, kube_scheduler: kube_scheduler? })
}

/// The CustomResourceDefinitions of PodMonitor and PrometheusRule as their project publishes them: a chart that has such objects is validated against them.
pub fn monitoring_definitions() -> Result<[PathBuf; 2], Error> {
    let kept = cache_directory().join("control-plane").join(format!("prometheus-operator-{PROMETHEUS_OPERATOR_VERSION}"));
    let names = ["monitoring.coreos.com_podmonitors.yaml", "monitoring.coreos.com_prometheusrules.yaml"];
    if !names.iter().all(|name| kept.join(name).is_file()) {
        let module = download("prometheus-operator", "github.com/prometheus-operator/prometheus-operator")?;
        fs::create_dir_all(&kept).map_err(Error::io(format!("making {}", kept.display())))?;
        for name in names {
            let (from, to) = (module.join("example/prometheus-operator-crd").join(name), kept.join(name));
            let partial = kept.join(format!("{name}.{}", std::process::id()));
            fs::copy(&from, &partial).map_err(Error::io(format!("copying {}", from.display())))?;
            fs::rename(&partial, &to).map_err(Error::io(format!("renaming {} to {}", partial.display(), to.display())))?;
        }
    }
    Ok(names.map(|name| kept.join(name)))
}

/// Where go keeps the source of `package`, at the version that `folder`'s go.mod asks for and with the sum that its go.sum has.
fn download(folder: &str, package: &str) -> Result<PathBuf, Error> {
    let module = Path::new(env!("CARGO_MANIFEST_DIR")).join("go").join(folder);
    let mut command = Command::new("go");
    command.current_dir(&module).args(["mod", "download", package]).stdin(Stdio::null());
    let output = command.output().map_err(not_started)?;
    let failed = |output: &Output| Error::Build {
        binary: package.to_owned(),
        status: output.status.to_string(),
        output: String::from_utf8_lossy(&output.stderr).into_owned(),
    };
    if !output.status.success() {
        return Err(failed(&output));
    }
    let listed = Command::new("go").current_dir(&module).args(["list", "-m", "-f", "{{.Dir}}", package]).output().map_err(not_started)?;
    let directory = PathBuf::from(String::from_utf8_lossy(&listed.stdout).trim());
    if directory.as_os_str().is_empty() { Err(failed(&listed)) } else { Ok(directory) }
}

fn not_started(error: std::io::Error) -> Error {
    match error.kind() {
        std::io::ErrorKind::NotFound => Error::NoGo,
        _ => Error::Io { doing: "starting `go`".to_owned(), source: error },
    }
}

/// Finds programs that are wanted together, building those that are missing.
fn programs<const N: usize>(wanted: &[Program; N]) -> [Result<PathBuf, Error>; N] {
    std::array::from_fn(|index| program(&wanted[index], [index + 1, N]))
}

/// `place`: which of how many.
fn program(program: &Program, place: [usize; 2]) -> Result<PathBuf, Error> {
    if let Some(assets) = std::env::var_os("KUBEBUILDER_ASSETS") {
        let path = Path::new(&assets).join(program.name);
        if path.is_file() {
            return Ok(path);
        }
    }
    let directory = cache_directory().join("control-plane").join(format!("{}-{}", program.module, program.version));
    let path = directory.join(program.name);
    if path.is_file() {
        return Ok(path);
    }
    fs::create_dir_all(&directory).map_err(Error::io(format!("making {}", directory.display())))?;
    let lock_path = directory.join("lock");
    let lock = File::create(&lock_path).map_err(Error::io(format!("making {}", lock_path.display())))?;
    lock.lock().map_err(Error::io(format!("locking {}", lock_path.display())))?;
    if !path.is_file() {
        build(program, place, &path)?;
    }
    Ok(path)
}

/// Builds beside the final name and renames, so that a build cut short leaves nothing that looks whole.
fn build(program: &Program, place: [usize; 2], path: &Path) -> Result<(), Error> {
    let partial = path.with_extension("partial");
    let module = Path::new(env!("CARGO_MANIFEST_DIR")).join("go").join(program.module);
    let mut command = Command::new("go");
    command.current_dir(&module).args(["build", "-trimpath", "-v", "-ldflags"]);
    let version = program.version_variable.map(|variable| format!(" -X {variable}=v{}", program.version)).unwrap_or_default();
    command.arg(format!("-s -w{version}"));
    command.arg("-o").arg(&partial).arg(program.package).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
    // SAFETY: between fork and exec the closure makes one system call and touches no memory of the parent. The thread that waits here outlives the child.
    unsafe { command.pre_exec(|| Ok(set_parent_process_death_signal(Some(Signal::TERM))?)) };
    let mut child = command.spawn().map_err(not_started)?;
    let bar = progress(program, place);
    let mut tail = Vec::new();
    if let Some(stderr) = child.stderr.take() {
        for line in BufReader::new(stderr).lines().map_while(Result::ok) {
            bar.set_message(line.clone());
            tail.push(line);
            if tail.len() > 20 {
                tail.remove(0);
            }
        }
    }
    let status = child.wait().map_err(Error::io("waiting for `go build`"))?;
    bar.finish_and_clear();
    if !status.success() {
        return Err(Error::Build { binary: program.name.to_owned(), status: status.to_string(), output: tail.join("\n") });
    }
    eprintln!("built {} {} in {} s", program.name, program.version, bar.elapsed().as_secs());
    fs::rename(&partial, path).map_err(Error::io(format!("renaming {} to {}", partial.display(), path.display())))
}

fn progress(program: &Program, [number, count]: [usize; 2]) -> ProgressBar {
    eprintln!(
        "building {} {} ({number} of {}, once; about {} s where nothing is cached)",
        program.name, program.version, count, program.seconds
    );
    let bar = ProgressBar::new_spinner();
    if let Ok(style) = ProgressStyle::with_template("{spinner} {prefix} {elapsed} {wide_msg}") {
        bar.set_style(style);
    }
    bar.set_prefix(program.name);
    bar.enable_steady_tick(Duration::from_millis(200));
    bar
}
