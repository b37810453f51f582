//! One worker of two is lost, in each way that there is; the other answers, and another comes.

use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result, ensure};
use rustix::process::{Pid, Signal, kill_process};
use stowage_control_plane::node::system;
use stowage_control_plane::processes::wait_for;

use super::changes::NUM_CTX;
use super::commands::printed;
use super::model::WorkerPod;
use super::{DEADLINE, Everything, MODEL, NAMESPACE, memory};

impl Everything {
    pub(super) async fn lose_workers(&mut self) -> Result<()> {
        self.scale_to(2).await?;
        let kill = async |_: &Everything, victim: &WorkerPod| Ok(kill_process(process_of(&victim.uid)?, Signal::KILL)?);
        self.lose("a worker is killed with SIGKILL", kill).await?;
        let delete = async |all: &Everything, victim: &WorkerPod| {
            all.kubectl(&["-n", NAMESPACE, "delete", "pod", &victim.name, "--wait=false"]).map(drop)
        };
        self.lose("kubectl delete pod of a worker", delete).await?;
        let exhaust = async |_: &Everything, victim: &WorkerPod| memory::exhaust(process_of(&victim.uid)?).await;
        self.lose("memory runs out in a worker's Pod", exhaust).await?;
        self.out_of_memory_is_told()?;
        self.scale_to(1).await
    }

    /// Requests fail that are on the way to what is lost, until its address is in no rule of the node; from then on none does.
    async fn lose(&mut self, what: &str, lose: impl AsyncFnOnce(&Everything, &WorkerPod) -> Result<()>) -> Result<()> {
        let workers = self.settled(2, NUM_CTX).await?;
        let [victim, other] = workers.as_slice() else { unreachable!("two were waited for") };
        let before = self.asked()?;
        lose(self, victim).await.context(what.to_owned())?;
        let address = format!("{}:", victim.address);
        let gone = wait_for(DEADLINE, async || rules().ok().filter(|rules| !rules.contains(&address))).await;
        gone.with_context(|| format!("{what}: the node's rules still lead to {}", victim.address))?;
        let lost = self.asked_on().await?;
        let anew = wait_for(DEADLINE, async || self.workers().ok().filter(|now| !now.contains(victim))).await;
        anew.with_context(|| format!("{what}: {} is still there", victim.name))?;
        let now = self.settled(2, NUM_CTX).await?;
        let (after, meanwhile) = (self.asked_on().await?, lost.since(before));
        self.clock.step(&format!("{what}: {} until its address was gone, then {}", meanwhile.told(), after.since(lost).told()));
        ensure!(after.failed == lost.failed, "{what}: requests failed after its address was gone: {}", self.failures()?);
        ensure!(now.contains(other), "{what}: the other worker, {other:?}, should be untouched: {now:?}");
        Ok(())
    }

    fn out_of_memory_is_told(&self) -> Result<()> {
        let selector = format!("involvedObject.name={MODEL},reason=OutOfMemory");
        let told = self.kubectl(&["get", "events", "--field-selector", &selector, "-o", "jsonpath={.items[*].message}"])?;
        ensure!(told.contains("for memory ran out: it may have") && told.contains("planned"), "it should be told with numbers: {told:?}");
        eprintln!("    {told}");
        Ok(())
    }
}

/// Where the Services' addresses lead.
fn rules() -> Result<String> {
    printed(system("iptables-save").args(["-t", "nat"]))
}

/// The process of ours in a Pod, by its control group.
pub(super) fn process_of(pod_uid: &str) -> Result<Pid> {
    let entries = fs::read_dir("/proc").context("listing processes")?.flatten();
    let of_pod = |folder: &PathBuf| {
        let text = |name: &str| fs::read_to_string(folder.join(name)).unwrap_or_default();
        text("cgroup").contains(pod_uid) && text("comm").starts_with("stowage-")
    };
    let found = entries.map(|entry| entry.path()).find(of_pod);
    let pid = found.and_then(|folder| folder.file_name()?.to_str()?.parse().ok()).and_then(Pid::from_raw);
    pid.with_context(|| format!("no process of ours is in the control group of the Pod with uid {pod_uid}"))
}
