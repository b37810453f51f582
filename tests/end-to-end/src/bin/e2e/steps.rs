//! What is tried on the node, one step after another.

use std::fs;
use std::net::Ipv4Addr;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use clap::Args;
use serde_json::json;
use stowage_control_plane::node::{NodeOptions, system};
use stowage_control_plane::processes::wait_for;
use stowage_control_plane::{ControlPlane, ForNode, Node, Options};
use stowage_crds::names;
use stowage_end_to_end::cluster::program;
use stowage_end_to_end::{chart, watch};

/// The interface with the node's address, and its other end.
pub const LINK: &str = "stowage0";
pub const OTHER_END: &str = "stowage1";
pub const ADDRESS: Ipv4Addr = Ipv4Addr::new(10, 245, 0, 1);

const NODE: &str = "this-machine";
const NAMESPACE: &str = names::SYSTEM_NAMESPACE;
/// Where the chart looks for models on a node by default.
const MODELS: &str = "/var/lib/stowage/models";
/// And where it has agents keep what they download, as this user.
const CACHE: &str = "/var/lib/stowage/cache";
const AGENT_USER: u32 = 65532;
const MANIFEST: &str = include_str!("../../../../../examples/smollm2.yaml");
const MODEL: &str = "smollm2";
/// Of the Pod that asks all the while.
const CLIENT: &str = "client";
const IN_POD: &str = "ghcr.io/stowage-dev/in-pod:e2e";
const ARCHIVES: [&str; 3] = ["stowage-operator.tar", "stowage-agent.tar", "in-pod.tar"];
const DEADLINE: Duration = watch::DEADLINE;
/// Answers that must have come between two changes.
const SOME: usize = 10;

/// What is made before.
#[derive(Args, Clone, Debug)]
pub struct Inputs {
    /// The GGUF file of SmolLM2-135M-Instruct.
    #[arg(long)]
    model: PathBuf,
    /// The folder with the archives of the images.
    #[arg(long)]
    images: PathBuf,
}

impl Inputs {
    /// The flags that say the same.
    pub fn arguments(&self) -> [PathBuf; 4] {
        ["--model".into(), self.model.clone(), "--images".into(), self.images.clone()]
    }
}

/// Of all containers of the node whose folder this is.
pub fn control_group(folder: &Path) -> String {
    format!("/{}", folder.file_name().unwrap_or_default().to_string_lossy())
}

/// Raises the node, tries everything, and ends the node.
pub async fn run(folder: &Path, inputs: &Inputs) -> Result<()> {
    let _ = rustls::crypto::ring::default_provider().install_default();
    let mut clock = Clock { started: Instant::now(), last: Instant::now() };
    let for_node = ForNode { name: NODE.to_owned(), address: ADDRESS, token: "stowage-e2e-kubelet".to_owned() };
    let control_plane = ControlPlane::start(Options { node: Some(for_node.clone()), ..Options::default() }).await?;
    clock.step("the control plane answers");
    let images = ARCHIVES.map(|name| inputs.images.join(name)).to_vec();
    let options = NodeOptions { node: for_node, sandbox_image: IN_POD.to_owned(), images, cgroup: control_group(folder) };
    let node = Node::start(&control_plane, &options, &folder.join("node")).await?;
    clock.step("the node is ready: containerd with the images, kubelet, kube-proxy, scheduler");
    let mut everything = Everything { control_plane, node, folder: folder.to_owned(), clock };
    if let Err(error) = everything.try_all(inputs).await {
        everything.tell();
        return Err(error);
    }
    everything.stop()
}

struct Clock {
    started: Instant,
    last: Instant,
}

impl Clock {
    fn step(&mut self, what: &str) {
        eprintln!("[{:5.1} s, {:+5.1} s] {what}", self.started.elapsed().as_secs_f64(), self.last.elapsed().as_secs_f64());
        self.last = Instant::now();
    }
}

/// Answers of the client so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Asked {
    answered: usize,
    failed: usize,
}

struct Everything {
    control_plane: ControlPlane,
    node: Node,
    folder: PathBuf,
    clock: Clock,
}

impl Everything {
    async fn try_all(&mut self, inputs: &Inputs) -> Result<()> {
        self.install(&inputs.model).await?;
        self.deploy().await?;
        self.plugin()?;
        self.smoke_test()?;
        self.upgrade_operator().await?;
        self.restart_kubelet().await?;
        self.upgrade_agent().await?;
        self.nothing_was_restarted()?;
        self.workers_as_processes().await?;
        self.uninstall().await?;
        self.nothing_is_left().await
    }

    async fn install(&mut self, model: &Path) -> Result<()> {
        let name = model.file_name().context("a model is a file")?;
        fs::create_dir_all(MODELS).with_context(|| format!("making {MODELS}"))?;
        fs::copy(model, Path::new(MODELS).join(name)).with_context(|| format!("copying {}", model.display()))?;
        let path = format!("test.model.path={}", name.to_string_lossy());
        self.helm("install", &["--create-namespace", "--set", &path])?;
        self.kubectl(&["-n", NAMESPACE, "rollout", "status", "daemonset/stowage-agent", "--timeout=180s"])?;
        watch::model_node(&self.control_plane.client, NODE, |node| node.status.is_some()).await?;
        let owner = fs::metadata(CACHE).with_context(|| format!("looking at {CACHE}"))?.uid();
        ensure!(owner == AGENT_USER, "{CACHE}, which the kubelet makes as root's, is to be the agent's, {AGENT_USER}, and is {owner}'s");
        self.clock.step("helm install: operator and agent are ready");
        Ok(())
    }

    async fn deploy(&mut self) -> Result<()> {
        self.apply(MANIFEST)?;
        self.ready().await?;
        self.clock.step("kubectl apply -f examples/smollm2.yaml: it is ready");
        eprint!("{}", self.kubectl(&["get", "modeldeployments", MODEL])?);
        self.look_at_the_worker()?;
        let address = self.kubectl(&["get", "service", MODEL, "-o", "jsonpath={.spec.clusterIP}:{.spec.ports[0].port}"])?;
        let pod = json!({
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"name": CLIENT, "namespace": "default"},
            "spec": {
                "restartPolicy": "Never",
                "terminationGracePeriodSeconds": 1,
                "containers": [{"name": CLIENT, "image": IN_POD, "imagePullPolicy": "Never", "args": ["ask", format!("http://{address}"), MODEL]}],
            },
        });
        self.apply(&pod.to_string())?;
        self.answers_since(Asked::default()).await?;
        let said = self.client_log()?.lines().find(|line| line.starts_with("answered")).unwrap_or_default().to_owned();
        self.clock.step(&format!("another Pod asks it at its Service's address, {address}: {said}"));
        Ok(())
    }

    /// `kubectl stowage`, which reaches the replica through the API server and the kubelet.
    fn plugin(&mut self) -> Result<()> {
        let agent = program("stowage-agent")?;
        let plugin = |arguments: &[&str]| {
            let mut command = Command::new(&agent);
            command.arg("kubectl").args(arguments).arg("--kubeconfig").arg(self.control_plane.kubeconfig());
            printed(&mut command)
        };
        let model = format!("mdl/{MODEL}");
        let explained = plugin(&["explain", &model])?;
        ensure!(explained.contains("1/1 ready"), "kubectl stowage explain says: {explained}");
        let answer = plugin(&["chat", &model, "What is the capital of Japan?", "--option", "temperature=0"])?;
        ensure!(answer.contains("Tokyo"), "kubectl stowage chat says: {answer}");
        self.clock.step(&format!("kubectl stowage chat, through the API server: {}", answer.trim()));
        Ok(())
    }

    fn smoke_test(&mut self) -> Result<()> {
        let printed = self.helm("test", &[])?;
        self.clock.step("helm test, whose Pod printed:");
        eprint!("{printed}");
        Ok(())
    }

    async fn upgrade_operator(&mut self) -> Result<()> {
        let change = async |all: &mut Everything| all.helm("upgrade", &["--reuse-values", "--set", "operator.log.level=debug"]).map(drop);
        self.undisturbed("helm upgrade, of the operator", change).await
    }

    async fn restart_kubelet(&mut self) -> Result<()> {
        self.undisturbed("the kubelet is restarted", async |all: &mut Everything| Ok(all.node.restart_kubelet().await?)).await
    }

    /// The Pod that the ModelDeployment names, by what users ask of a Pod.
    fn look_at_the_worker(&mut self) -> Result<()> {
        let named = self.kubectl(&["get", "modeldeployment", MODEL, "-o", "jsonpath={.status.placements[*].podRef}"])?;
        let (namespace, pod) = named.split_once('/').with_context(|| format!("podRef is {named:?}"))?;
        let log = self.kubectl(&["-n", namespace, "logs", pod])?;
        ensure!(log.contains("the replica serves"), "the log of {named} is: {log}");
        let get = |path: &str| self.kubectl(&["-n", namespace, "get", "pod", pod, "-o", &format!("jsonpath={path}")]);
        let (limit, request) =
            (get("{.spec.containers[0].resources.limits.memory}")?, get("{.spec.containers[0].resources.requests.memory}")?);
        ensure!(!limit.is_empty() && limit == request, "{named} has {limit} of memory as limit and {request} as request");
        let ready = get("{.status.containerStatuses[*].ready}")?;
        self.clock.step(&format!("kubectl logs {named} tells of its replica; memory {limit}, ready {ready}"));
        Ok(())
    }

    /// Makes a change in which no request may fail, and nothing is loaded anew.
    async fn undisturbed(&mut self, what: &str, change: impl AsyncFnOnce(&mut Everything) -> Result<()>) -> Result<()> {
        let (before, worker) = (self.asked()?, self.worker()?);
        change(self).await?;
        let asked = self.answers_since(before).await?;
        self.clock.step(&format!("{what}: {}", asked.told()));
        ensure!(asked.failed == 0, "{what}: {} requests failed meanwhile: {}", asked.failed, self.failures()?);
        let now = self.worker()?;
        ensure!(now == worker && !worker.is_empty(), "{what}: the worker's Pod was {worker} and is {now}");
        Ok(())
    }

    /// The one node's agent is replaced twice; what it has loaded stays as it is.
    async fn upgrade_agent(&mut self) -> Result<()> {
        let change = async |all: &mut Everything| {
            let agent = all.pods_of("agent")?;
            all.helm("upgrade", &["--reuse-values", "--set", "agent.log.level=debug"])?;
            all.agent_is_replaced(&agent)
        };
        self.undisturbed("helm upgrade, of the agent", change).await?;
        let change = async |all: &mut Everything| {
            let agent = all.pods_of("agent")?;
            all.kubectl(&["-n", NAMESPACE, "rollout", "restart", "daemonset/stowage-agent"])?;
            all.agent_is_replaced(&agent)
        };
        self.undisturbed("kubectl rollout restart of the agents", change).await
    }

    fn agent_is_replaced(&self, before: &str) -> Result<()> {
        self.kubectl(&["-n", NAMESPACE, "rollout", "status", "daemonset/stowage-agent", "--timeout=180s"])?;
        ensure!(self.pods_of("agent")? != before, "the agent's Pod was not replaced");
        Ok(())
    }

    /// Workers go into the agent's Pod, and back into their own: each time models are loaded anew, and until then requests fail.
    async fn workers_as_processes(&mut self) -> Result<()> {
        for mode in ["Process", "Pod"] {
            let (before, agent, since) = (self.asked()?, self.pods_of("agent")?, Instant::now());
            self.helm("upgrade", &["--reuse-values", "--set", &format!("workers.mode={mode}")])?;
            self.agent_is_replaced(&agent)?;
            let moved = wait_for(DEADLINE, async || (self.pods_of("worker").ok()?.is_empty() == (mode == "Process")).then_some(()));
            moved.await.with_context(|| format!("with workers.mode={mode} these Pods are workers: {:?}", self.pods_of("worker")))?;
            self.ready().await?;
            let replaced = self.asked()?;
            let asked = self.answers_since(replaced).await?;
            let during = Asked {
                answered: asked.answered + replaced.answered - before.answered,
                failed: asked.failed + replaced.failed - before.failed,
            };
            let seconds = since.elapsed().as_secs_f64();
            self.clock.step(&format!("helm upgrade to workers.mode={mode}, which loads models anew: {} in {seconds:.1} s", during.told()));
        }
        eprint!("{}", self.failures()?);
        Ok(())
    }

    /// As probes would that are too strict.
    fn nothing_was_restarted(&mut self) -> Result<()> {
        let restarts = "jsonpath={range .items[*]}{.metadata.name} {.status.containerStatuses[*].restartCount}{\"\\n\"}{end}";
        let restarts = self.kubectl(&["-n", NAMESPACE, "get", "pods", "-o", restarts])?;
        let restarted: Vec<&str> = restarts.lines().filter(|line| !line.ends_with(" 0")).collect();
        ensure!(restarted.is_empty(), "containers were restarted: {restarted:?}");
        let reasons = "jsonpath={range .items[*]}{.involvedObject.name} {.reason}: {.message}{\"\\n\"}{end}";
        let warnings = self.kubectl(&["-n", NAMESPACE, "get", "events", "--field-selector", "type=Warning", "-o", reasons])?;
        self.clock.step(&format!("no container was restarted; {} warnings among the events", warnings.lines().count()));
        eprint!("{warnings}");
        Ok(())
    }

    /// While a model is loaded: its worker's Pod goes, too. What users made stays until its kind goes.
    async fn uninstall(&mut self) -> Result<()> {
        self.kubectl(&["delete", "pod", CLIENT, "--timeout=60s"])?;
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
    async fn nothing_is_left(&mut self) -> Result<()> {
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

    fn stop(self) -> Result<()> {
        let Everything { control_plane, node, mut clock, .. } = self;
        node.stop();
        control_plane.stop();
        clock.step("kubelet, kube-proxy, scheduler, containerd and the control plane are ended");
        Ok(())
    }

    async fn ready(&self) -> Result<()> {
        watch::model_deployment(&self.control_plane.client, "default", MODEL, watch::is_ready).await?;
        Ok(())
    }

    /// What the client was answered since, once that is enough to tell.
    async fn answers_since(&self, before: Asked) -> Result<Asked> {
        let mut since = Asked::default();
        let enough = wait_for(DEADLINE, async || {
            tokio::time::sleep(Duration::from_millis(200)).await;
            let now = self.asked().ok()?;
            since = Asked { answered: now.answered - before.answered, failed: now.failed - before.failed };
            (since.answered >= SOME).then_some(since)
        });
        let enough = enough.await;
        match enough {
            Some(asked) => Ok(asked),
            None => bail!("after {} s the client had {}: {}", DEADLINE.as_secs(), since.told(), self.failures()?),
        }
    }

    fn asked(&self) -> Result<Asked> {
        let log = self.client_log()?;
        let count = |word: &str| log.lines().filter(|line| line.starts_with(word)).count();
        Ok(Asked { answered: count("answered"), failed: count("failed") })
    }

    /// What the client says of all that failed, a line each.
    fn failures(&self) -> Result<String> {
        let log = self.client_log()?;
        Ok(log.lines().filter(|line| line.starts_with("failed")).map(|line| format!("{line}\n")).collect())
    }

    fn client_log(&self) -> Result<String> {
        self.kubectl(&["logs", CLIENT])
    }

    /// Uid of the Pod of the model's worker.
    fn worker(&self) -> Result<String> {
        self.pods_with(&format!("{}={MODEL}", names::MODEL_DEPLOYMENT_LABEL))
    }

    /// Uids of the Pods of a component.
    fn pods_of(&self, component: &str) -> Result<String> {
        self.pods_with(&format!("app.kubernetes.io/component={component}"))
    }

    fn pods_with(&self, label: &str) -> Result<String> {
        self.kubectl(&["-n", NAMESPACE, "get", "pods", "-l", label, "-o", "jsonpath={.items[*].metadata.uid}"])
    }

    fn apply(&self, manifest: &str) -> Result<()> {
        let path = self.folder.join("manifest.yaml");
        fs::write(&path, manifest).with_context(|| format!("writing {}", path.display()))?;
        self.kubectl(&["apply", "-f", &path.display().to_string()]).map(|_| ())
    }

    fn kubectl(&self, arguments: &[&str]) -> Result<String> {
        printed(self.control_plane.kubectl().args(arguments)).with_context(|| format!("kubectl {}", arguments.join(" ")))
    }

    /// Gives what helm says beside its report: what the Pods of hooks printed.
    fn helm(&self, verb: &str, arguments: &[&str]) -> Result<String> {
        let mut command = chart::helm(&self.folder)?;
        command.args([verb, chart::RELEASE]);
        if verb != "test" {
            command.arg(chart::directory()).arg("--wait");
        }
        command.args(["--namespace", NAMESPACE, "--timeout=5m"]).args(arguments).env("KUBECONFIG", self.control_plane.kubeconfig());
        let output = command.output().context("running helm")?;
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        ensure!(output.status.success(), "helm {verb}: {}{}", said, String::from_utf8_lossy(&output.stdout));
        Ok(said)
    }

    /// All that helps to see why something failed.
    fn tell(&self) {
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

impl Asked {
    fn told(self) -> String {
        format!("{} requests answered, {} failed", self.answered, self.failed)
    }
}

fn lines(text: &str) -> Vec<String> {
    text.lines().map(str::to_owned).collect()
}

/// What a command prints.
fn printed(command: &mut Command) -> Result<String> {
    let output = command.stdin(Stdio::null()).output().with_context(|| format!("running {:?}", command.get_program()))?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr).trim());
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Those of containers: the programs that hold them, and what ran in ours.
fn processes() -> Result<Vec<String>> {
    let entries = fs::read_dir("/proc").context("listing processes")?.flatten();
    let names = entries.filter_map(|entry| fs::read_to_string(entry.path().join("comm")).ok()).map(|name| name.trim().to_owned());
    Ok(names.filter(|name| ["containerd-shim", "stowage-", "in-pod"].iter().any(|start| name.starts_with(start))).collect())
}
