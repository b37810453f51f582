//! An upgrade from an earlier chart and its definitions. The images are today's: those of that time can't be had. What is upgraded is the chart: definitions,
//! roles, policies, Pods.

use anyhow::{Context, Result, ensure};
use serde_json::json;
use stowage_control_plane::processes::wait_for;
use stowage_end_to_end::chart;

use super::model::MANIFEST;
use super::{DEADLINE, Everything, MODEL, NAMESPACE, NODE};

/// The latest of them: today's operator writes fields into a ModelDeployment's status that the definitions of those before don't declare.
const EARLIER: &str = chart::EARLIER[1];

impl Everything {
    pub(super) async fn upgrade_from_an_earlier_chart(&mut self) -> Result<()> {
        self.helm_of(&chart::earlier(EARLIER), "install", &["--create-namespace"])?;
        self.kubectl(&["-n", NAMESPACE, "rollout", "status", "daemonset/stowage-agent", "--timeout=180s"])?;
        self.apply(MANIFEST)?;
        let asleep = json!({
            "apiVersion": "stowage.dev/v1alpha1", "kind": "ModelDeployment", "metadata": {"name": "asleep"},
            "spec": {"model": {"path": "nowhere.gguf"}, "replicas": 0, "system": "You sleep.", "placement": {"policy": "RequireGPU"}},
        });
        self.apply(&asleep.to_string())?;
        self.ready().await?;
        self.start_client().await?;
        self.clock.step(&format!("helm install of {EARLIER}, with today's images in place of that time's: a model is deployed and asked"));

        let kept = self.kept()?;
        let change = async |all: &mut Everything| {
            let (agent, operators) = (all.pods_of("agent")?, all.pods_of("operator")?);
            // As other images would, this has all Pods replaced.
            let replaced = ["--set", "operator.podAnnotations.upgraded=yes,agent.podAnnotations.upgraded=yes"];
            all.helm("upgrade", &replaced)?;
            all.agent_is_replaced(&agent)?;
            ensure!(all.pods_of("operator")? != operators, "the operators' Pods were not replaced");
            all.ready().await
        };
        self.undisturbed(&format!("helm upgrade from {EARLIER} to this chart"), change).await?;
        let now = self.kept()?;
        ensure!(now == kept, "an upgrade keeps every object as it was: {kept}\nand now: {now}");
        self.kubectl(&["delete", "modeldeployments", "--all", "--timeout=60s"])?;
        // The garbage collector has to find out first that these kinds are there again, and can't once they are gone.
        let services = async || self.kubectl(&["get", "services", "-o", "name"]).ok().filter(|names| names.trim() == "service/kubernetes");
        wait_for(DEADLINE, services).await.map(drop).context("the Services of ModelDeployments that were deleted are left")
    }

    /// Of the objects that people and the operator made: their uids, and what is asked for in them.
    fn kept(&self) -> Result<String> {
        let each = "jsonpath={range .items[*]}{.kind} {.metadata.name} {.metadata.uid} {.metadata.generation} {.spec}{\"\\n\"}{end}";
        let kept = self.kubectl(&["get", "modeldeployments,modelnodes", "-A", "-o", each])?;
        let has_all = ["asleep", MODEL, NODE].iter().all(|name| kept.contains(name));
        has_all.then_some(kept.clone()).with_context(|| format!("asleep, {MODEL} and {NODE} should be there: {kept}"))
    }
}
