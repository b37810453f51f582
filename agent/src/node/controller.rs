//! Carries out what the operator assigned to this node, and reports. One task: whatever happens, a change of the ModelNode, news of a worker, a
//! question at the gate, or just time, it reads the devices, does what is to be done, and publishes what is new.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::{Stream, StreamExt, TryStreamExt};
use k8s_openapi::api::core::v1::ObjectReference;
use kube::api::{Patch, PatchParams};
use kube::runtime::events::{Event, Recorder, Reporter};
use kube::runtime::{WatchStreamExt, watcher};
use kube::{Api, Client, Resource};
use serde_json::json;
use stowage_crds::model_node::{Assignment, ModelNodeStatus, ReplicaStatus};
use stowage_crds::{ModelNode, names, refusal};
use stowage_placement::Reason;
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

use super::account::account;
use super::assignments::{Action, Known, actions};
use super::calibration::Calibrations;
use super::calibrator::Calibrator;
use super::check::{Live, check};
use super::events::{event, happenings};
use super::figures::NodeFigures;
use super::publish::{Publisher, Seen, status};
use super::replicas::Replicas;
use super::workers::{GateRequest, Workers};
use crate::devices::Reading;
use crate::serve::Route;
use crate::store::Models;
use crate::worker::Refusal;
use crate::worker::view::Views;

/// How often the devices are looked at while nothing else happens.
const LOOK_EVERY: Duration = Duration::from_secs(2);
/// Longest that a write may take; the gate is not kept waiting for an API server that is gone.
const WRITE_TIMEOUT: Duration = Duration::from_secs(5);

/// Reads the devices; blocks.
pub type ReadDevices = Arc<dyn Fn() -> Reading + Send + Sync>;

/// What a controller works with.
pub struct Parts<W> {
    pub client: Client,
    /// The node's name, and its ModelNode's.
    pub node: String,
    /// At which this node's workers and its door are reached.
    pub address: String,
    pub workers: W,
    pub devices: ReadDevices,
    pub models: watch::Receiver<Models>,
    pub gate: mpsc::Receiver<GateRequest>,
    /// Where the node's door leads.
    pub routes: watch::Sender<Vec<Route>>,
    /// The node as it was last looked at, for its metrics.
    pub figures: watch::Sender<NodeFigures>,
    /// Where it is kept what loads taught of the GPUs.
    pub calibration: PathBuf,
    /// What measures GPUs of which nothing is known.
    pub calibrator: Calibrator,
    /// Cancelled when workers end because their agent does: from then on nothing is started or let in, and a worker that has ended is not said to be gone,
    /// for the next agent starts it anew.
    pub leaving: CancellationToken,
}

pub struct Controller<W> {
    parts: Parts<W>,
    api: Api<ModelNode>,
    recorder: Recorder,
    views: watch::Receiver<Views>,
    /// As last seen; `None` until the operator has made it.
    object: Option<ModelNode>,
    replicas: Replicas,
    publisher: Publisher,
    calibrations: Calibrations,
    /// Whether the last write failed, so that it is said once and not every time.
    failing: bool,
}

impl<W: Workers> Controller<W> {
    pub fn new(parts: Parts<W>) -> Controller<W> {
        let reporter = Reporter { controller: names::AGENT_MANAGER.to_owned(), instance: Some(parts.node.clone()) };
        Controller {
            api: Api::all(parts.client.clone()),
            recorder: Recorder::new(parts.client.clone(), reporter),
            views: parts.workers.views(),
            object: None,
            replicas: Replicas::default(),
            publisher: Publisher::new(ModelNodeStatus::default()),
            calibrations: known_calibrations(&parts.calibration),
            failing: false,
            parts,
        }
    }

    /// Runs until `stop`. Workers are left as they are.
    pub async fn run(mut self, stop: CancellationToken) {
        let mut objects = std::pin::pin!(self.objects());
        let mut look = tokio::time::interval(LOOK_EVERY);
        look.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let (mut models_live, mut views_live) = (true, true);
        while !stop.is_cancelled() {
            tokio::select! {
                () = stop.cancelled() => break,
                Some(object) = objects.next() => self.observe(object),
                Some(request) = self.parts.gate.recv() => self.answer(request).await,
                changed = self.views.changed(), if views_live => views_live = changed.is_ok(),
                changed = self.parts.models.changed(), if models_live => models_live = changed.is_ok(),
                () = self.parts.calibrator.changed() => {}
                _ = look.tick() => {}
            }
            self.step().await;
        }
        self.parts.calibrator.make_way().await;
    }

    /// The node's ModelNode as it changes, `None` while there is none. Errors are said and waited out.
    fn objects(&self) -> impl Stream<Item = Option<ModelNode>> + Send + use<W> {
        let node = self.parts.node.clone();
        let stream = watcher::watch_object(self.api.clone(), &node).default_backoff();
        stream
            .inspect_err(move |error| tracing::warn!(%error, node, "watching the node's ModelNode failed; trying again"))
            .filter_map(async |event| event.ok())
    }

    /// The ModelNode is this now.
    fn observe(&mut self, object: Option<ModelNode>) {
        let uid = |object: &Option<ModelNode>| object.as_ref().and_then(|object| object.metadata.uid.clone());
        if let Some(new) = &object
            && uid(&self.object) != uid(&object)
        {
            let status = new.status.clone().unwrap_or_default();
            self.replicas.recall(&status.replicas);
            self.publisher = Publisher::new(status);
        }
        if object.is_none() {
            tracing::info!(node = self.parts.node, "no ModelNode yet; the operator makes it when it sees this agent's Lease");
        }
        // Without one, nothing is known of what is assigned: what runs, runs on.
        self.object = object;
    }

    /// Reads, acts, publishes.
    pub async fn step(&mut self) {
        let leaving = self.parts.leaving.is_cancelled();
        let views = self.views.borrow_and_update().clone();
        if leaving {
            self.replicas.observe_leaving(&views)
        } else {
            self.replicas.observe(&views)
        }
        self.make_way(leaving).await;
        let reading = self.read().await;
        // The door leads on to workers that leave: they still serve, and nobody else on this node does.
        if !leaving {
            self.act(&reading);
            self.learn(&reading);
            self.calibrate(&reading).await;
            self.open_door();
        }
        let status = self.status(&reading);
        self.show_figures(&status);
        self.publish(status).await;
    }

    async fn read(&mut self) -> Reading {
        let said = self.parts.calibrator.said();
        let read = self.parts.devices.clone();
        let mut reading = match tokio::task::spawn_blocking(move || read()).await {
            Ok(reading) => reading,
            // Not answering is better than answering with a node that has nothing.
            Err(panic) => std::panic::resume_unwind(panic.into_panic()),
        };
        self.parts.calibrator.take_out(&mut reading, said);
        reading
    }

    /// Learns from replicas that have loaded since.
    fn learn(&mut self, reading: &Reading) {
        if self.calibrations.learn(reading, &self.replicas.loaded()) {
            self.keep_calibrations();
        }
    }

    fn keep_calibrations(&self) {
        let path = &self.parts.calibration;
        if let Err(error) = self.calibrations.write(path) {
            tracing::warn!(%error, path = %path.display(), "keeping what was learnt of a GPU failed; it is known until this agent ends");
        }
    }

    /// Does what the assignments ask for.
    fn act(&mut self, reading: &Reading) {
        let Some(object) = &self.object else { return };
        let assignments = object.spec.assignments.clone();
        let known: BTreeMap<String, Known> = self.replicas.known().clone();
        for action in actions(&assignments, &known) {
            self.carry_out(action, reading);
        }
    }

    fn carry_out(&mut self, action: Action<'_>, reading: &Reading) {
        let workers = &self.parts.workers;
        match action {
            Action::Start(assignment) => match self.check(assignment, reading) {
                Ok(()) => {
                    tracing::info!(uid = assignment.uid, replica = assignment.replica, processor = assignment.plan.processor, "starting");
                    workers.start(assignment);
                    self.replicas.told(assignment);
                }
                Err(refusal) => {
                    tracing::warn!(uid = assignment.uid, replica = assignment.replica, %refusal, "refused");
                    self.replicas.refused(assignment, refusal);
                }
            },
            Action::Update(assignment) => {
                workers.update(assignment);
                self.replicas.told(assignment);
            }
            Action::Drain(assignment) => {
                workers.drain(assignment);
                self.replicas.told(assignment);
            }
            Action::Release(assignment) => {
                tracing::info!(uid = assignment.uid, replica = assignment.replica, "releasing");
                workers.release(&assignment.uid, assignment.deadline.clone());
                self.replicas.told(assignment);
            }
            Action::End(uid) => {
                tracing::warn!(uid, "ending a worker that nobody assigned");
                workers.release(uid, None);
                self.replicas.ending(uid);
            }
            Action::ReportGone(uid) => self.replicas.gone(uid),
            Action::Forget(uid) => {
                workers.forget(uid);
                self.replicas.forget(uid);
            }
        }
    }

    /// Does the plan hold on the devices as they are now?
    fn check(&self, assignment: &Assignment, reading: &Reading) -> Result<(), Refusal> {
        let holdings = self.replicas.holdings();
        let policies = self.object.as_ref().map(|object| object.spec.devices.as_slice()).unwrap_or_default();
        check(assignment, &Live { reading, account: &account(reading, &holdings), holdings: &holdings, policies })
    }

    /// May a worker load now? Asked when its file is there, which may be long after it was started.
    async fn answer(&mut self, request: GateRequest) {
        if self.parts.leaving.is_cancelled() {
            let _ = request.answer.send(Err(Refusal::new(Reason::Pending, "the agent is ending; its successor answers")));
            return;
        }
        let views = self.views.borrow().clone();
        self.replicas.observe(&views);
        let reading = self.read().await;
        let answer = match self.replicas.assignment(&request.uid) {
            Some(assignment) => self.check(assignment, &reading),
            None => Err(Refusal::new(Reason::InvalidRequest, format!("no assignment {} is on this node", request.uid))),
        };
        if let Err(refusal) = &answer {
            tracing::warn!(uid = request.uid, %refusal, "refused at the gate");
        }
        // Where nobody waits any longer, the worker is gone, and that is heard elsewhere.
        let _ = request.answer.send(answer);
    }

    /// Tells the door where it leads.
    fn open_door(&self) {
        let routes: Vec<Route> = self.replicas.routes();
        self.parts.routes.send_if_modified(|current| {
            let changed = *current != routes;
            *current = routes;
            changed
        });
    }

    fn show_figures(&self, status: &ModelNodeStatus) {
        let model = |uid: &String| {
            let owner = &self.replicas.assignment(uid)?.model_deployment;
            Some((uid.clone(), format!("{}/{}", owner.namespace, owner.name)))
        };
        let models = status.replicas.iter().filter_map(|replica| model(&replica.uid)).collect();
        self.parts.figures.send_replace(NodeFigures { status: status.clone(), models });
    }

    async fn publish(&mut self, status: ModelNodeStatus) {
        if self.object.is_none() {
            return;
        }
        let Some(next) = self.publisher.due(status, Instant::now()) else { return };
        match self.write(&next).await {
            Ok(()) => {
                self.failing = false;
                self.tell(&next.replicas);
                self.publisher.published(next, Instant::now());
            }
            Err(error) => {
                if !std::mem::replace(&mut self.failing, true) {
                    tracing::warn!(
                        error,
                        node = self.parts.node,
                        "writing the status of the node's ModelNode failed; trying again until it succeeds"
                    );
                }
            }
        }
    }

    fn status(&self, reading: &Reading) -> ModelNodeStatus {
        let account = account(reading, &self.replicas.holdings());
        status(Seen {
            generation: self.object.as_ref().and_then(|object| object.metadata.generation),
            reading,
            account: &account,
            replicas: self.replicas.statuses(&account),
            models: &self.parts.models.borrow(),
            calibrations: &self.calibrations,
            address: &self.parts.address,
        })
    }

    /// The whole status, applied: what is not in it any longer is removed.
    async fn write(&self, status: &ModelNodeStatus) -> Result<(), String> {
        let node = &self.parts.node;
        let patch = Patch::Apply(json!({
            "apiVersion": ModelNode::api_version(&()),
            "kind": ModelNode::kind(&()),
            "metadata": {"name": node},
            "status": status,
        }));
        let parameters = PatchParams::apply(names::AGENT_MANAGER).force();
        let write = self.api.patch_status(node, &parameters, &patch);
        match tokio::time::timeout(WRITE_TIMEOUT, write).await {
            Ok(written) => written.map(drop).map_err(|error| refusal::told(&error)),
            Err(_) => Err(format!("no answer within {} s", WRITE_TIMEOUT.as_secs())),
        }
    }

    /// Tells as Events what is new in `replicas`. Events may get lost.
    fn tell(&self, replicas: &[ReplicaStatus]) {
        let Some(object) = &self.object else { return };
        let events = happenings(&self.publisher.last().replicas, replicas).into_iter().map(|(happening, replica)| {
            let mut regarding = object.object_ref(&());
            regarding.field_path = Some(format!("spec.assignments{{{}}}", replica.replica));
            (event(happening, replica), regarding)
        });
        self.send(events.collect());
    }

    /// Nobody waits for them.
    fn send(&self, events: Vec<(Event, ObjectReference)>) {
        if events.is_empty() {
            return;
        }
        let recorder = self.recorder.clone();
        tokio::spawn(async move {
            for (event, regarding) in events {
                if let Err(error) = recorder.publish(&event, &regarding).await {
                    tracing::warn!(%error, reason = event.reason, "an Event could not be written");
                }
            }
        });
    }
}

/// What earlier agents learnt. Where that can't be read, it is learnt anew.
fn known_calibrations(path: &Path) -> Calibrations {
    Calibrations::read(path).unwrap_or_else(|error| {
        tracing::warn!(%error, path = %path.display(), "reading what earlier loads taught failed; learning it anew");
        Calibrations::default()
    })
}

mod calibrating;
#[cfg(test)]
mod tests;
