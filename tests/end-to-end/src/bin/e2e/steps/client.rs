//! The Pod that asks the model through its Service every 50 ms, and what it was answered.

use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use serde_json::json;
use stowage_control_plane::processes::wait_for;

use super::{DEADLINE, Everything, IN_POD, MODEL};

/// Of the Pod.
const CLIENT: &str = "client";
/// Answers that must have come between two changes.
const SOME: usize = 20;

/// Answers so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Asked {
    pub answered: usize,
    pub failed: usize,
}

impl Asked {
    /// What the client says in its last line; there may be none yet.
    fn read(line: &str) -> Asked {
        let mut counts = line.split(' ').filter_map(|word| word.parse().ok());
        Asked { answered: counts.next().unwrap_or_default(), failed: counts.next().unwrap_or_default() }
    }

    pub fn since(self, before: Asked) -> Asked {
        Asked { answered: self.answered - before.answered, failed: self.failed - before.failed }
    }

    pub fn told(self) -> String {
        format!("{} requests answered, {} failed", self.answered, self.failed)
    }
}

impl Everything {
    /// Starts it; gives the address that it asks at.
    pub(super) async fn start_client(&self) -> Result<String> {
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
        self.asked_on().await?;
        Ok(address)
    }

    pub(super) fn end_client(&self) -> Result<()> {
        self.kubectl(&["delete", "pod", CLIENT, "--timeout=60s"]).map(drop)
    }

    /// Makes a change of which no request may tell.
    pub(super) async fn unnoticed(&mut self, what: &str, change: impl AsyncFnOnce(&mut Everything) -> Result<()>) -> Result<()> {
        let before = self.asked()?;
        change(self).await.context(what.to_owned())?;
        let asked = self.asked_on().await?.since(before);
        self.clock.step(&format!("{what}: {}", asked.told()));
        ensure!(asked.failed == 0, "{what}: {} requests failed meanwhile: {}", asked.failed, self.failures()?);
        Ok(())
    }

    /// Likewise one by which nothing is loaded anew.
    pub(super) async fn undisturbed(&mut self, what: &str, change: impl AsyncFnOnce(&mut Everything) -> Result<()>) -> Result<()> {
        let worker = self.worker()?;
        self.unnoticed(what, change).await?;
        let now = self.worker()?;
        ensure!(now == worker && !worker.is_empty(), "{what}: the worker's Pod was {worker} and is {now}");
        Ok(())
    }

    pub(super) fn asked(&self) -> Result<Asked> {
        Ok(Asked::read(self.kubectl(&["logs", CLIENT, "--tail=1"])?.trim()))
    }

    /// All answers once some more have come.
    pub(super) async fn asked_on(&self) -> Result<Asked> {
        let before = self.asked().unwrap_or_default();
        let mut since = Asked::default();
        let enough = wait_for(DEADLINE, async || {
            tokio::time::sleep(Duration::from_millis(200)).await;
            let now = self.asked().ok()?;
            since = now.since(before);
            (since.answered >= SOME).then_some(now)
        });
        match enough.await {
            Some(now) => Ok(now),
            None => bail!("after {} s the client had {}: {}", DEADLINE.as_secs(), since.told(), self.failures()?),
        }
    }

    /// What the client says of all that failed, a line each.
    pub(super) fn failures(&self) -> Result<String> {
        let log = self.kubectl(&["logs", CLIENT])?;
        Ok(log.lines().filter(|line| line.contains(" failed: failed ")).map(|line| format!("{line}\n")).collect())
    }
}
