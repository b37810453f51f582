//! The chart is installed and uninstalled, and nothing of it is left.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use stowage_control_plane::node::system;
use stowage_control_plane::processes::wait_for;
use stowage_end_to_end::{chart, watch};

use super::commands::{lines, printed};
use super::{DEADLINE, Everything, LINK, MODEL, NAMESPACE, NODE, OTHER_END};

/// Where the chart looks for models on a node by default.
pub(super) const MODELS: &str = "/var/lib/stowage/models";
/// And where it has agents keep what they download, as this user.
pub(super) const CACHE: &str = "/var/lib/stowage/cache";
const AGENT_USER: u32 = 65532;

impl Everything {
    /// As an administrator would put it there.
    pub(super) fn copy_model(&self, model: &Path) -> Result<()> {
        let name = model.file_name().context("a model is a file")?;
        fs::create_dir_all(MODELS).with_context(|| format!("making {MODELS}"))?;
        fs::copy(model, Path::new(MODELS).join(name)).map(drop).with_context(|| format!("copying {}", model.display()))
    }

    pub(super) async fn install(&mut self, model: &Path) -> Result<()> {
        let name = model.file_name().context("a model is a file")?;
        let path = format!("test.model.path={}", name.to_string_lossy());
        self.helm("install", &["--create-namespace", "--set", &path])?;
        self.kubectl(&["-n", NAMESPACE, "rollout", "status", "daemonset/stowage-agent", "--timeout=180s"])?;
        watch::model_node(&self.control_plane.client, NODE, |node| node.status.is_some()).await?;
        let owner = fs::metadata(CACHE).with_context(|| format!("looking at {CACHE}"))?.uid();
        ensure!(owner == AGENT_USER, "{CACHE}, which the kubelet makes as root's, is to be the agent's, {AGENT_USER}, and is {owner}'s");
        self.clock.step("helm install: operator and agent are ready");
        Ok(())
    }

    /// While a model is loaded: its worker's Pod goes, too. What users made stays until its kind goes.
    pub(super) async fn uninstall(&mut self) -> Result<()> {
        self.end_client()?;
        let mut command = chart::helm(&self.folder)?;
        command.args(["uninstall", chart::RELEASE, "--namespace", NAMESPACE, "--wait", "--timeout=2m"]);
        chart::output(command.env("KUBECONFIG", self.control_plane.kubeconfig())).context("helm uninstall")?;
        let kept = self.kubectl(&["get", "crd", "-o", "name"])?;
        ensure!(
            kept.contains("modeldeployments.stowage.dev"),
            "helm uninstall keeps the CustomResourceDefinitions, but these are there: {kept}"
        );
        let gone = wait_for(DEADLINE, async || self.pods_of("worker").ok()?.is_empty().then_some(()));
        gone.await.context("helm uninstall left a worker's Pod")?;
        let kinds: Vec<&str> = kept.lines().filter(|line| line.ends_with(".stowage.dev")).collect();
        self.kubectl(&[&["delete", "--timeout=60s"], kinds.as_slice()].concat())?;
        self.kubectl(&["delete", "namespace", NAMESPACE, "--timeout=60s"])?;
        self.clock.step("helm uninstall; then the CustomResourceDefinitions, which it keeps, and the namespace are deleted");
        Ok(())
    }

    /// Waits: the kubelet removes containers that have ended once a minute.
    pub(super) async fn nothing_is_left(&mut self) -> Result<()> {
        let mut left = Vec::new();
        let gone = wait_for(DEADLINE, async || {
            left = self.left().unwrap_or_else(|error| vec![format!("{error:#}")]);
            left.is_empty().then_some(())
        });
        gone.await.with_context(|| format!("left after {} s: {left:#?}", DEADLINE.as_secs()))?;
        self.clock.step("no Pod, object of ours, container, process, mount, network or rule is left on the node");
        Ok(())
    }

    /// What there still is on the node, in words.
    fn left(&self) -> Result<Vec<String>> {
        let mut left = Vec::new();
        let mut add = |what: &str, found: Vec<String>| left.extend(found.into_iter().map(|found| format!("{what} {found}")));
        add("Pod", lines(&self.kubectl(&["get", "pods", "-A", "-o", "name"])?));
        let ours = ["clusterroles", "clusterrolebindings", "validatingadmissionpolicies", "priorityclasses", "crds"].join(",");
        let ours = lines(&self.kubectl(&["get", &ours, "-o", "name"])?);
        add("object", ours.into_iter().filter(|name| name.contains("stowage")).collect());
        add("container", self.node.containers()?);
        add("process", processes()?);
        let mounts = lines(&fs::read_to_string("/proc/self/mountinfo").context("reading mounts")?);
        let of_pods = |mount: &String| ["/var/lib/kubelet/pods", "/run/netns/", "/run/containerd/"].iter().any(|part| mount.contains(part));
        add("mount", mounts.into_iter().filter(of_pods).collect());
        let interfaces = lines(&printed(system("ip").args(["-brief", "link"]))?);
        let own = |line: &String| ["lo ", LINK, OTHER_END].iter().any(|name| line.starts_with(name));
        add("interface", interfaces.into_iter().filter(|line| !own(line)).collect());
        let rules = lines(&printed(&mut system("iptables-save"))?);
        add("rule", rules.into_iter().filter(|rule| rule.contains(MODEL) || rule.contains("stowage-system")).collect());
        Ok(left)
    }
}

/// Those of containers: the programs that hold them, and what ran in ours.
fn processes() -> Result<Vec<String>> {
    let entries = fs::read_dir("/proc").context("listing processes")?.flatten();
    let names = entries.filter_map(|entry| fs::read_to_string(entry.path().join("comm")).ok()).map(|name| name.trim().to_owned());
    Ok(names.filter(|name| ["containerd-shim", "stowage-", "in-pod"].iter().any(|start| name.starts_with(start))).collect())
}
