//! The Helm chart as helm renders it: what the tests apply is what users install.

use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;

use anyhow::{Context, Result, bail};
use serde_json::Value;
use stowage_control_plane::binaries::{self, KUBERNETES_VERSION};
use stowage_crds::yaml;

/// Name of the release, by which its objects are named.
pub const RELEASE: &str = "stowage";

/// `charts/stowage` of this checkout.
pub fn directory() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../charts/stowage")
}

/// Versions of earlier charts that upgrades are tried from. The definitions of the first lack fields that this one's have.
pub const EARLIER: [&str; 2] = ["0.1.0-alpha.1", "0.1.0-alpha.2"];

/// One of them, packed.
pub fn earlier(version: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("earlier").join(format!("{RELEASE}-{version}.tgz"))
}

/// The sets of values in a folder of the chart.
pub fn sets(folder: &str) -> Result<Vec<PathBuf>> {
    let folder = directory().join(folder);
    let entries = fs::read_dir(&folder).with_context(|| format!("listing {}", folder.display()))?;
    let mut paths = entries.map(|entry| Ok(entry?.path())).collect::<Result<Vec<PathBuf>>>()?;
    paths.sort();
    Ok(paths)
}

/// Helm with folders of its own below `folder`, so that it neither reads nor writes what belongs to the user.
pub fn helm(folder: &Path) -> Result<Command> {
    static HELM: OnceLock<PathBuf> = OnceLock::new();
    let program = match HELM.get() {
        Some(found) => found,
        None => {
            let found = binaries::helm()?;
            HELM.get_or_init(|| found)
        }
    };
    let mut command = Command::new(program);
    for name in ["HELM_CACHE_HOME", "HELM_CONFIG_HOME", "HELM_DATA_HOME"] {
        command.env(name, folder.join("helm"));
    }
    command.stdin(Stdio::null());
    Ok(command)
}

/// What helm prints on standard output; an error holds what it prints on standard error.
pub fn output(command: &mut Command) -> Result<String> {
    let output = command.output().context("running helm")?;
    if !output.status.success() {
        bail!("{}", String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// The chart's objects as YAML, with these arguments of `helm template`.
pub fn render<A: AsRef<OsStr>>(folder: &Path, namespace: &str, arguments: &[A]) -> Result<String> {
    let mut command = helm(folder)?;
    command.args(["template", RELEASE]).arg(directory()).args(["--namespace", namespace, "--kube-version", KUBERNETES_VERSION]);
    output(command.args(arguments))
}

/// The objects of a rendering.
pub fn objects(rendered: &str) -> Result<Vec<Value>> {
    yaml::documents(rendered).context("reading what helm rendered")
}
