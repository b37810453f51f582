//! What is changed while a client asks, and it does not notice.

use std::fs;
use std::path::Path;
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use rustix::process::{Signal, kill_process};
use serde_json::json;
use stowage_control_plane::processes::wait_for;
use stowage_crds::conditions::ConditionType;
use stowage_crds::names;
use stowage_end_to_end::{drain, watch};
use stowage_placement::Reason;

use super::client::Asked;
use super::install::MODELS;
use super::losses::process_of;
use super::{DEADLINE, Everything, MODEL, NAMESPACE, NODE};

/// Of the model as it is applied.
pub(super) const NUM_CTX: u64 = 2048;

impl Everything {
    pub(super) async fn upgrade_operator(&mut self) -> Result<()> {
        let change = async |all: &mut Everything| all.helm("upgrade", &["--reuse-values", "--set", "operator.log.level=debug"]).map(drop);
        self.undisturbed("helm upgrade, of the operator", change).await
    }

    pub(super) async fn restart_kubelet(&mut self) -> Result<()> {
        self.undisturbed("the kubelet is restarted", async |all: &mut Everything| Ok(all.node.restart_kubelet().await?)).await
    }

    /// The one node's agent is replaced twice; what it has loaded stays as it is.
    pub(super) async fn upgrade_agent(&mut self) -> Result<()> {
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

    pub(super) fn agent_is_replaced(&self, before: &str) -> Result<()> {
        self.kubectl(&["-n", NAMESPACE, "rollout", "status", "daemonset/stowage-agent", "--timeout=180s"])?;
        ensure!(self.pods_of("agent")? != before, "the agent's Pod was not replaced");
        Ok(())
    }

    pub(super) async fn delete_agent(&mut self) -> Result<()> {
        let change = async |all: &mut Everything| {
            let agent = all.pods_of("agent")?;
            all.kubectl(&["-n", NAMESPACE, "delete", "pod", "-l", "app.kubernetes.io/component=agent", "--timeout=60s"])?;
            all.agent_is_replaced(&agent)
        };
        self.undisturbed("kubectl delete pod of the agent", change).await
    }

    /// Its Lease is not given up. Whoever leads next, itself started again or another, has to act.
    pub(super) async fn kill_leader(&mut self) -> Result<()> {
        let change = async |all: &mut Everything| {
            let leader = all.leader()?;
            let of_pod = |path: &str| all.kubectl(&["-n", NAMESPACE, "get", "pod", &leader, "-o", &format!("jsonpath={path}")]);
            kill_process(process_of(&of_pod("{.metadata.uid}")?)?, Signal::KILL)?;
            let again =
                wait_for(DEADLINE, async || of_pod("{.status.containerStatuses[*].restartCount}").ok().filter(|count| count == "1"));
            again.await.map(drop).with_context(|| format!("{leader} is not started again"))
        };
        self.undisturbed("the operator that leads is killed with SIGKILL", change).await?;
        self.scale().await
    }

    fn leader(&self) -> Result<String> {
        self.kubectl(&["-n", NAMESPACE, "get", "lease", names::OPERATOR_MANAGER, "-o", "jsonpath={.spec.holderIdentity}"])
    }

    /// There is no other node: what is there serves on and says so, for which a drain waits, and what is asked for beyond that has no place.
    pub(super) async fn drain(&mut self) -> Result<()> {
        let change = async |all: &mut Everything| {
            let mut drain = drain::begin(all.control_plane.kubectl(), NODE, &all.folder.join("drain.log")).await?;
            let stays = all.until(|m| watch::reason(m, ConditionType::Degraded) == Reason::NodeUnschedulable.as_str()).await?;
            eprintln!("    Degraded: {}", watch::message(&stays, ConditionType::Degraded));
            all.change(&json!({"replicas": 2}))?;
            let refused = all.until(|m| watch::reason(m, ConditionType::Scheduled) == Reason::NodeUnschedulable.as_str()).await?;
            eprintln!("    Scheduled: {}", watch::message(&refused, ConditionType::Scheduled));
            all.change(&json!({"replicas": 1}))?;
            drain.kill();
            all.kubectl(&["uncordon", NODE])?;
            all.until(|m| watch::is_ready(m) && watch::told(m, Reason::NodeUnschedulable).is_empty()).await.map(drop)
        };
        self.undisturbed("kubectl drain of the only node, and uncordon", change).await
    }

    /// Another file, then another context, then the former one again.
    pub(super) async fn roll_out(&mut self, model: &Path) -> Result<()> {
        let (name, copy) = (model.file_name().context("a model is a file")?, "the-same-model.gguf");
        fs::copy(model, Path::new(MODELS).join(copy)).with_context(|| format!("copying {}", model.display()))?;
        let changes = [
            ("to another file", json!({"model": {"path": copy}}), NUM_CTX),
            ("to num_ctx 1024", json!({"parameters": {"num_ctx": 1024}}), 1024),
            ("back", json!({"model": {"path": name.to_string_lossy()}, "parameters": {"num_ctx": NUM_CTX}}), NUM_CTX),
        ];
        for (what, spec, num_ctx) in changes {
            let before = self.worker()?;
            let change = async |all: &mut Everything| {
                all.change(&spec)?;
                all.settled(1, num_ctx).await.map(drop)
            };
            self.unnoticed(&format!("a rollout {what}"), change).await?;
            ensure!(self.worker()? != before, "the worker's Pod should be another");
        }
        Ok(())
    }

    pub(super) async fn scale(&mut self) -> Result<()> {
        for replicas in [2, 1] {
            self.scale_to(replicas).await?;
        }
        Ok(())
    }

    pub(super) async fn scale_to(&mut self, replicas: usize) -> Result<()> {
        let change = async |all: &mut Everything| {
            all.kubectl(&["scale", "modeldeployment", MODEL, &format!("--replicas={replicas}")])?;
            all.settled(replicas, NUM_CTX).await.map(drop)
        };
        self.unnoticed(&format!("kubectl scale to {replicas}"), change).await
    }

    /// Workers go into the agent's Pod, and back into their own: each time models are loaded anew, and until then requests fail.
    pub(super) async fn workers_as_processes(&mut self) -> Result<()> {
        for mode in ["Process", "Pod"] {
            let (before, agent, since) = (self.asked()?, self.pods_of("agent")?, Instant::now());
            self.helm("upgrade", &["--reuse-values", "--set", &format!("workers.mode={mode}")])?;
            self.agent_is_replaced(&agent)?;
            let moved = wait_for(DEADLINE, async || (self.pods_of("worker").ok()?.is_empty() == (mode == "Process")).then_some(()));
            moved.await.with_context(|| format!("with workers.mode={mode} these Pods are workers: {:?}", self.pods_of("worker")))?;
            self.ready().await?;
            let during: Asked = self.asked_on().await?.since(before);
            let seconds = since.elapsed().as_secs_f64();
            self.clock.step(&format!("helm upgrade to workers.mode={mode}, which loads models anew: {} in {seconds:.1} s", during.told()));
        }
        Ok(())
    }

    /// As probes would that are too strict.
    pub(super) fn nothing_was_restarted(&mut self) -> Result<()> {
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
}
