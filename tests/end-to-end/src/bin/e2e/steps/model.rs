//! A model is deployed and asked, as users do it; and where it stands.

use std::process::Command;

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use stowage_control_plane::processes::wait_for;
use stowage_crds::{ModelDeployment, names};
use stowage_end_to_end::cluster::program;
use stowage_end_to_end::watch;
use stowage_placement::Bytes;

use super::commands::{lines, printed};
use super::{DEADLINE, Everything, MODEL, NAMESPACE, NODE};

pub(super) const MANIFEST: &str = include_str!("../../../../../../examples/smollm2.yaml");

/// Of memory that a worker holds with this model.
const LEAST_OF_A_WORKER: Bytes = Bytes::mib(64);

/// A worker's Pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct WorkerPod {
    pub name: String,
    pub uid: String,
    pub address: String,
}

impl Everything {
    pub(super) async fn deploy(&mut self) -> Result<()> {
        self.apply(MANIFEST)?;
        self.ready().await?;
        self.clock.step("kubectl apply -f examples/smollm2.yaml: it is ready");
        eprint!("{}", self.kubectl(&["get", "modeldeployments", MODEL])?);
        self.look_at_the_worker().await?;
        let address = self.start_client().await?;
        let asked = self.asked()?;
        self.clock.step(&format!("another Pod asks it every 50 ms at its Service's address, {address}: {}", asked.told()));
        Ok(())
    }

    /// The Pod that the ModelDeployment names, by what users ask of a Pod.
    pub(super) async fn look_at_the_worker(&mut self) -> Result<()> {
        let named = self.kubectl(&["get", "modeldeployment", MODEL, "-o", "jsonpath={.status.placements[*].podRef}"])?;
        let (namespace, pod) = named.split_once('/').with_context(|| format!("podRef is {named:?}"))?;
        let log = self.kubectl(&["-n", namespace, "logs", pod])?;
        ensure!(log.contains("the replica serves"), "the log of {named} is: {log}");
        let get = |path: &str| self.kubectl(&["-n", namespace, "get", "pod", pod, "-o", &format!("jsonpath={path}")]);
        let (limit, request) =
            (get("{.spec.containers[0].resources.limits.memory}")?, get("{.spec.containers[0].resources.requests.memory}")?);
        ensure!(!limit.is_empty() && limit == request, "{named} has {limit} of memory as limit and {request} as request");
        let ready = get("{.status.containerStatuses[*].ready}")?;
        let measured = self.measured_by_kubelet(namespace, pod).await?;
        self.clock
            .step(&format!("kubectl logs {named} tells of its replica; memory {limit}, ready {ready}; the kubelet measures {measured}"));
        Ok(())
    }

    /// What `kubectl top pod` shows of this Pod comes from here: from the kubelet's metrics, which the cluster's metrics server gathers. It looks every few seconds.
    async fn measured_by_kubelet(&self, namespace: &str, pod: &str) -> Result<Bytes> {
        let path = format!("/api/v1/nodes/{NODE}/proxy/metrics/resource");
        let of_pod = format!("pod_memory_working_set_bytes{{namespace=\"{namespace}\",pod=\"{pod}\"}} ");
        let mut last = String::new();
        let measured = wait_for(DEADLINE, async || {
            last = self.kubectl(&["get", "--raw", &path]).ok()?;
            let bytes = last.lines().find_map(|line| line.strip_prefix(&of_pod)?.split(' ').next()?.parse::<f64>().ok())?;
            Some(Bytes(bytes as u64)).filter(|bytes| *bytes >= LEAST_OF_A_WORKER)
        });
        measured.await.with_context(|| format!("{of_pod}should be at least {LEAST_OF_A_WORKER}, for it has a model loaded: {last}"))
    }

    /// `kubectl stowage`, which reaches the replica through the API server and the kubelet.
    pub(super) fn plugin(&mut self) -> Result<()> {
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

    pub(super) fn smoke_test(&mut self) -> Result<()> {
        let printed = self.helm("test", &[])?;
        self.clock.step("helm test, whose Pod printed:");
        eprint!("{printed}");
        Ok(())
    }

    pub(super) async fn ready(&self) -> Result<()> {
        watch::model_deployment(&self.control_plane.client, "default", MODEL, watch::is_ready).await?;
        Ok(())
    }

    /// Merges this into the ModelDeployment's spec.
    pub(super) fn change(&self, spec: &Value) -> Result<()> {
        let patch = serde_json::json!({"spec": spec}).to_string();
        self.kubectl(&["patch", "modeldeployment", MODEL, "--type=merge", "--patch", &patch]).map(drop)
    }

    /// The ModelDeployment, once `holds` says yes of it.
    pub(super) async fn until(&self, holds: impl Fn(&ModelDeployment) -> bool + Send) -> Result<ModelDeployment> {
        watch::model_deployment(&self.control_plane.client, "default", MODEL, holds).await
    }

    /// Until so many replicas with this context serve, each in a Pod of its own, and no other Pod is left.
    pub(super) async fn settled(&self, replicas: usize, num_ctx: u64) -> Result<Vec<WorkerPod>> {
        self.until(|m| watch::is_settled(m, replicas, num_ctx)).await?;
        let found = wait_for(DEADLINE, async || self.workers().ok().filter(|pods| pods.len() == replicas)).await;
        found.with_context(|| format!("{replicas} workers' Pods should be there: {:?}", self.workers()))
    }

    pub(super) fn workers(&self) -> Result<Vec<WorkerPod>> {
        let label = format!("{}={MODEL}", names::MODEL_DEPLOYMENT_LABEL);
        let each = "jsonpath={range .items[*]}{.metadata.name} {.metadata.uid} {.status.podIP}{\"\\n\"}{end}";
        let printed = self.kubectl(&["-n", NAMESPACE, "get", "pods", "-l", &label, "-o", each])?;
        let pod = |line: String| {
            let mut parts = line.split(' ').map(str::to_owned);
            Some(WorkerPod { name: parts.next()?, uid: parts.next()?, address: parts.next().unwrap_or_default() })
        };
        Ok(lines(&printed).into_iter().filter_map(pod).collect())
    }

    /// Uid of the Pod of the model's worker.
    pub(super) fn worker(&self) -> Result<String> {
        self.pods_with(&format!("{}={MODEL}", names::MODEL_DEPLOYMENT_LABEL))
    }

    /// Uids of the Pods of a component.
    pub(super) fn pods_of(&self, component: &str) -> Result<String> {
        self.pods_with(&format!("app.kubernetes.io/component={component}"))
    }

    pub(super) fn pods_with(&self, label: &str) -> Result<String> {
        self.kubectl(&["-n", NAMESPACE, "get", "pods", "-l", label, "-o", "jsonpath={.items[*].metadata.uid}"])
    }
}
