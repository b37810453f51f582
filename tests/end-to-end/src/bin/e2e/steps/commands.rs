//! kubectl and helm, as an administrator runs them.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};
use stowage_end_to_end::chart;

use super::{Everything, NAMESPACE};

impl Everything {
    pub(super) fn apply(&self, manifest: &str) -> Result<()> {
        let path = self.folder.join("manifest.yaml");
        fs::write(&path, manifest).with_context(|| format!("writing {}", path.display()))?;
        self.kubectl(&["apply", "-f", &path.display().to_string()]).map(|_| ())
    }

    pub(super) fn kubectl(&self, arguments: &[&str]) -> Result<String> {
        printed(self.control_plane.kubectl().args(arguments)).with_context(|| format!("kubectl {}", arguments.join(" ")))
    }

    /// Gives what helm says beside its report: what the Pods of hooks printed.
    pub(super) fn helm(&self, verb: &str, arguments: &[&str]) -> Result<String> {
        self.helm_of(&chart::directory(), verb, arguments)
    }

    /// The same with another chart than this checkout's.
    pub(super) fn helm_of(&self, chart: &Path, verb: &str, arguments: &[&str]) -> Result<String> {
        let mut command = chart::helm(&self.folder)?;
        command.args([verb, chart::RELEASE]);
        if verb != "test" {
            command.arg(chart).arg("--wait");
        }
        command.args(["--namespace", NAMESPACE, "--timeout=5m"]).args(arguments).env("KUBECONFIG", self.control_plane.kubeconfig());
        let output = command.output().context("running helm")?;
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        ensure!(output.status.success(), "helm {verb}: {}{}", said, String::from_utf8_lossy(&output.stdout));
        Ok(said)
    }

    /// All that helps to see why something failed.
    pub(super) fn tell(&self) {
        let asked: [&[&str]; 6] = [
            &["get", "pods,modeldeployments,modelnodes", "-A", "-o", "wide"],
            &["get", "events", "-A", "--sort-by=.lastTimestamp"],
            &["describe", "pods", "-n", NAMESPACE],
            &["logs", "-n", NAMESPACE, "-l", "app.kubernetes.io/component=agent", "--tail=40", "--all-containers"],
            &["logs", "-n", NAMESPACE, "-l", "app.kubernetes.io/component=worker", "--tail=20"],
            &["logs", "-n", NAMESPACE, "-l", "app.kubernetes.io/component=operator", "--tail=40"],
        ];
        for arguments in asked {
            let printed = self.kubectl(arguments).unwrap_or_else(|error| format!("{error:#}\n"));
            eprintln!("--- kubectl {}\n{printed}", arguments.join(" "));
        }
        for process in self.node.processes() {
            eprintln!("--- {}\n{}", process.name, process.log_tail(25));
        }
    }
}

pub(super) fn lines(text: &str) -> Vec<String> {
    text.lines().map(str::to_owned).collect()
}

/// What a command prints.
pub(super) fn printed(command: &mut Command) -> Result<String> {
    let output = command.stdin(Stdio::null()).output().with_context(|| format!("running {:?}", command.get_program()))?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr).trim());
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}
