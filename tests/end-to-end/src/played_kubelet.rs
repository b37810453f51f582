//! Kubelets and a scheduler that are played: the Pods of workers are taken to the nodes that they ask for as they come, their containers run as plain processes of
//! the real program on this machine, and their status is written as a kubelet would. There is no container, no limit and no network of a Pod.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use k8s_openapi::api::core::v1::{Container, Pod};
use kube::api::{DeleteParams, ListParams, Patch, PatchParams, PostParams};
use kube::{Api, Client, ResourceExt};
use rustix::process::Signal;
use serde_json::{Value, json};
use stowage_control_plane::processes::Process;
use stowage_crds::names;
use tokio::task::JoinHandle;

use crate::cluster::program;

/// Between two looks at the Pods.
const EVERY: Duration = Duration::from_millis(50);
/// A Pod's address, of a range kept for documentation. Processes listen at the loopback address.
const POD_ADDRESS: &str = "198.51.100.1";

/// Plays the kubelets of all nodes on until it is dropped, which kills what it runs.
pub struct PlayedKubelet {
    played: Arc<Mutex<Played>>,
    task: JoinHandle<()>,
}

#[derive(Default)]
struct Played {
    /// By the uids of their Pods.
    containers: BTreeMap<String, Running>,
    /// A node that the scheduler takes no Pods to, and what it says instead.
    no_room: Option<(String, String)>,
    /// Why containers are not started, as the kubelet says it: a reason and a message.
    cannot_start: Option<(String, String)>,
    /// How the next container that is killed is said to have ended, in place of what is so.
    said_to_have_ended: Option<String>,
    /// Pods whose containers were started, all the while.
    started: usize,
}

/// By node, a folder that Pods mount of the host, and which one stands for it.
type Elsewhere = BTreeMap<String, (PathBuf, PathBuf)>;

struct Running {
    process: Process,
    ends_by: Option<Instant>,
}

impl PlayedKubelet {
    /// Logs go to `folder`. On a node that is named in `elsewhere` the first folder that Pods mount of the host is the second one: nodes here share a machine.
    pub fn start(client: Client, folder: PathBuf, elsewhere: Elsewhere) -> PlayedKubelet {
        let played = Arc::<Mutex<Played>>::default();
        let all = played.clone();
        let task = tokio::spawn(async move {
            let pods: Api<Pod> = Api::namespaced(client, names::SYSTEM_NAMESPACE);
            loop {
                if let Err(error) = look(&pods, &all, &folder, &elsewhere).await {
                    eprintln!("the played kubelet: {error:#}");
                }
                tokio::time::sleep(EVERY).await;
            }
        });
        PlayedKubelet { played, task }
    }

    /// From now on Pods for this node find no room, as the message says; `None`: they do again.
    pub fn no_room(&self, on: Option<(&str, &str)>) {
        lock(&self.played).no_room = on.map(|(node, message)| (node.to_owned(), message.to_owned()));
    }

    /// From now on containers wait for this reason, as this message says; `None`: they are started again.
    pub fn cannot_start(&self, why: Option<(&str, &str)>) {
        lock(&self.played).cannot_start = why.map(|(reason, message)| (reason.to_owned(), message.to_owned()));
    }

    /// Kills the worker in a Pod, as if memory had run out for it.
    pub fn play_out_of_memory(&self, pod_uid: &str) {
        lock(&self.played).said_to_have_ended = Some("OOMKilled".to_owned());
        self.kill(pod_uid);
    }

    pub fn kill(&self, pod_uid: &str) {
        if let Some(container) = lock(&self.played).containers.get(pod_uid) {
            container.process.signal(Signal::KILL);
        }
    }

    /// Process ids of the workers that run, by the uids of their Pods.
    pub fn running(&self) -> BTreeMap<String, u32> {
        lock(&self.played).containers.iter().map(|(uid, container)| (uid.clone(), container.process.pid())).collect()
    }

    pub fn started(&self) -> usize {
        lock(&self.played).started
    }
}

impl Drop for PlayedKubelet {
    fn drop(&mut self) {
        self.task.abort();
    }
}

fn lock(played: &Mutex<Played>) -> MutexGuard<'_, Played> {
    played.lock().unwrap_or_else(PoisonError::into_inner)
}

async fn look(pods: &Api<Pod>, played: &Mutex<Played>, folder: &Path, elsewhere: &Elsewhere) -> Result<()> {
    let found = pods.list(&ListParams::default().labels(names::ASSIGNMENT_LABEL)).await.context("listing Pods")?.items;
    for pod in &found {
        let uid = pod.uid().unwrap_or_default();
        let phase = pod.status.as_ref().and_then(|status| status.phase.as_deref()).unwrap_or_default();
        let runs = lock(played).containers.contains_key(&uid);
        match (phase, pod.spec.as_ref().and_then(|spec| spec.node_name.as_ref())) {
            ("Pending", None) => schedule(pods, played, pod).await?,
            ("Pending", Some(_)) if !runs && pod.metadata.deletion_timestamp.is_none() => run(pods, played, pod, folder, elsewhere).await?,
            _ => {}
        }
        if runs {
            watch_over(pods, played, pod).await?;
        } else if pod.metadata.deletion_timestamp.is_some() {
            // It is gone when nothing of it runs, if it is not already.
            let deleted = pods.delete(&pod.name_any(), &DeleteParams::default().grace_period(0)).await;
            if let Err(error) = deleted
                && !matches!(&error, kube::Error::Api(status) if status.code == 404)
            {
                return Err(error).context("deleting a Pod that has ended");
            }
        }
    }
    // What was deleted without waiting for it ends as well.
    lock(played).containers.retain(|uid, _| found.iter().any(|pod| pod.uid().as_ref() == Some(uid)));
    Ok(())
}

async fn schedule(pods: &Api<Pod>, played: &Mutex<Played>, pod: &Pod) -> Result<()> {
    let (name, node) = (pod.name_any(), asked_for(pod).context("a Pod says which node it is for")?);
    let no_room = lock(played).no_room.clone().filter(|(full, _)| *full == node);
    if let Some((_, message)) = no_room {
        let condition = json!({"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": message});
        return say(pods, pod, json!({"conditions": [condition]})).await;
    }
    let binding = json!({
        "apiVersion": "v1", "kind": "Binding", "metadata": {"name": name},
        "target": {"apiVersion": "v1", "kind": "Node", "name": node},
    });
    let bound: Result<Value, kube::Error> = pods.create_subresource("binding", &name, &PostParams::default(), &binding).await;
    bound.map(drop).context("binding a Pod to its node")
}

/// The one node that a Pod's affinity leaves.
fn asked_for(pod: &Pod) -> Option<&str> {
    let required =
        pod.spec.as_ref()?.affinity.as_ref()?.node_affinity.as_ref()?.required_during_scheduling_ignored_during_execution.as_ref()?;
    Some(required.node_selector_terms.first()?.match_fields.as_ref()?.first()?.values.as_ref()?.first()?.as_str())
}

async fn run(pods: &Api<Pod>, played: &Mutex<Played>, pod: &Pod, folder: &Path, elsewhere: &Elsewhere) -> Result<()> {
    let spec = pod.spec.as_ref().and_then(|spec| spec.containers.first()).context("a Pod has a container")?;
    let (name, uid) = (pod.name_any(), pod.uid().unwrap_or_default());
    let cannot_start = lock(played).cannot_start.clone();
    if let Some((reason, message)) = cannot_start {
        let waiting = json!({"waiting": {"reason": reason, "message": message}});
        return say(pods, pod, json!({"phase": "Pending", "containerStatuses": [container_status(&waiting)]})).await;
    }
    let mut command = Command::new(program("stowage-agent")?);
    let mut folders = mounted(pod, spec);
    if let Some((there, here)) = pod.spec.as_ref().and_then(|spec| elsewhere.get(spec.node_name.as_ref()?)) {
        folders.push((there.display().to_string(), here.display().to_string()));
    }
    for argument in spec.args.iter().flatten() {
        // All Pods are on this machine's one loopback address, so each has any port.
        match argument.starts_with("--port=") {
            true => command.arg("--port=0"),
            false => command.arg(folders.iter().fold(argument.clone(), |argument, (inside, outside)| argument.replace(inside, outside))),
        };
    }
    for variable in spec.env.iter().flatten() {
        let field = variable.value_from.as_ref().and_then(|from| from.field_ref.as_ref()).map(|field| field.field_path.as_str());
        let value = match field {
            Some("metadata.uid") => uid.clone(),
            Some("status.podIP") => "127.0.0.1".to_owned(),
            _ => variable.value.clone().unwrap_or_default(),
        };
        command.env(&variable.name, value);
    }
    let process = Process::start(&name, command, &folder.join(format!("{name}.log"))).context("starting a worker")?;
    {
        let mut played = lock(played);
        played.started += 1;
        played.containers.insert(uid, Running { process, ends_by: None });
    }
    let running = json!({"running": {"startedAt": k8s_openapi::jiff::Timestamp::now().to_string()}});
    let status = json!({"phase": "Running", "podIP": POD_ADDRESS, "conditions": [{"type": "Ready", "status": "True"}],
                           "containerStatuses": [container_status(&running)]});
    say(pods, pod, status).await
}

/// Where folders are that the container would see elsewhere.
fn mounted(pod: &Pod, container: &Container) -> Vec<(String, String)> {
    let volumes = pod.spec.iter().flat_map(|spec| spec.volumes.iter().flatten());
    let folders: BTreeMap<&str, &str> =
        volumes.filter_map(|volume| Some((volume.name.as_str(), volume.host_path.as_ref()?.path.as_str()))).collect();
    let mounts = container.volume_mounts.iter().flatten();
    mounts.filter_map(|mount| Some((mount.mount_path.clone(), (*folders.get(mount.name.as_str())?).to_owned()))).collect()
}

/// Tells of its end, and ends what is to go.
async fn watch_over(pods: &Api<Pod>, played: &Mutex<Played>, pod: &Pod) -> Result<()> {
    let uid = pod.uid().unwrap_or_default();
    let grace = Duration::from_secs(pod.metadata.deletion_grace_period_seconds.unwrap_or(30).try_into().unwrap_or(30));
    let ended = {
        let mut played = lock(played);
        let said = played.said_to_have_ended.clone();
        let Some(container) = played.containers.get_mut(&uid) else { return Ok(()) };
        if pod.metadata.deletion_timestamp.is_some() && container.ends_by.is_none() {
            container.process.signal(Signal::TERM);
            container.ends_by = Some(Instant::now() + grace);
        }
        if container.ends_by.is_some_and(|by| by <= Instant::now()) {
            container.process.signal(Signal::KILL);
        }
        let ended = container.process.exited()?.map(|status| (status, container.process.log_tail(3)));
        if ended.is_some() {
            played.containers.remove(&uid);
            played.said_to_have_ended = None;
        }
        ended.map(|(status, log)| terminated(status, &log, said))
    };
    let Some((phase, state)) = ended else { return Ok(()) };
    say(pods, pod, json!({"phase": phase, "containerStatuses": [container_status(&state)]})).await
}

fn terminated(status: ExitStatus, log: &str, said: Option<String>) -> (&'static str, Value) {
    let code = status.code().unwrap_or(137);
    let reason = said.unwrap_or_else(|| if status.success() { "Completed" } else { "Error" }.to_owned());
    let message = if status.success() { "" } else { log };
    let now = k8s_openapi::jiff::Timestamp::now();
    // Long enough ago for nobody to wait before the worker is tried again.
    let started = now - k8s_openapi::jiff::SignedDuration::from_secs(60);
    let state =
        json!({"exitCode": code, "reason": reason, "message": message, "startedAt": started.to_string(), "finishedAt": now.to_string()});
    (if status.success() { "Succeeded" } else { "Failed" }, json!({"terminated": state}))
}

fn container_status(state: &Value) -> Value {
    json!({"name": "worker", "image": "", "imageID": "", "ready": state.get("running").is_some(), "restartCount": 0, "state": state})
}

async fn say(pods: &Api<Pod>, pod: &Pod, status: Value) -> Result<()> {
    let patch = Patch::Strategic(json!({"metadata": {"uid": pod.uid()}, "status": status}));
    pods.patch_status(&pod.name_any(), &PatchParams::default(), &patch).await.map(drop).context("writing a Pod's status")
}
