//! The one serial decision task.
//!
//! It takes in what changed, then goes through ModelNodes and ModelDeployments, for each asking a pure function for the next [`Step`] and carrying it out,
//! until nothing is left to do. The answer to each write is taken in before the next step is asked for, so every decision knows of all before it.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::jiff::Timestamp;
use kube::Client;
use stowage_placement::Reason;
use tokio::sync::{mpsc, watch};

use crate::clock::Clock;
use crate::leader::Leadership;
use crate::metrics::Metrics;
use crate::model_deployment::apply::{self, ApplyError, Remedy};
use crate::model_deployment::validate::Origin;
use crate::model_deployment::{controller, endpoints, preemption};
use crate::model_node::{membership, promises};
use crate::roll_call::{self, Questions};
use crate::state::{State, is_live};
use crate::step::{Decision, Item, Notice, Step, Write};
use crate::waits::Waits;
use crate::watch::Change;
use crate::workers;

/// After the API server could not be reached.
const RETRY: Duration = Duration::from_secs(1);
/// Most changes that are taken in before deciding.
const BATCH: usize = 1024;
/// An item that still wants something after so many steps in a row waits for the next round; no chain of steps is nearly as long.
const MOST_STEPS: usize = 64;
/// Passes through everything in one round. One pass follows from another only where bytes were freed or a claim fell through.
const MOST_PASSES: usize = 32;

/// The next step for one item: pure, so that any order of them can be tried.
pub fn next_step(state: &State, item: &Item, now: Timestamp) -> Step {
    if state.memory.is_held_back(item, now) {
        return Step::Done;
    }
    match item {
        Item::NodeMembership(name) => membership::step(state, name),
        Item::Promises(name) => promises::step(state, name, now),
        Item::Deployment(key) => controller::step(state, key, now),
        Item::Endpoints(key) => endpoints::step(state, key),
        Item::Worker(uid) => workers::step::step(state, uid, now),
    }
}

/// All items there are, in the order in which a round goes through them. Promises come before new claims, so that what was begun is ended first, and the
/// ModelDeployments of the highest priority before others, so that they have the bytes that became free.
pub fn items(state: &State) -> Vec<Item> {
    let membership = membership::names(state).into_iter().map(Item::NodeMembership);
    let promises = state.model_nodes.keys().into_iter().map(|key| Item::Promises(key.name));
    let deployments = preemption::in_order(state).into_iter().map(Item::Deployment);
    let endpoints = endpoints::keys(state).into_iter().map(Item::Endpoints);
    let workers = workers::step::uids(state).into_iter().map(Item::Worker);
    membership.chain(promises).chain(deployments).chain(endpoints).chain(workers).collect()
}

/// Why a round ended early.
#[derive(Debug, thiserror::Error)]
pub enum Interrupted {
    #[error("this process no longer leads")]
    NotLeading,
    #[error("after {MOST_PASSES} passes there is still something to write")]
    Unsettled,
    #[error("writing {what}: {source}")]
    Api { what: String, source: ApplyError },
}

pub struct DecisionTask {
    pub client: Client,
    pub clock: Arc<dyn Clock>,
    pub leadership: Leadership,
    pub state: State,
    pub notices: mpsc::UnboundedSender<Notice>,
    pub headers: watch::Sender<BTreeSet<Origin>>,
    pub questions: watch::Sender<Questions>,
    pub metrics: Arc<Metrics>,
    pub waits: Waits,
}

impl DecisionTask {
    /// Decides until the leadership is lost or nothing can change any more.
    pub async fn run(&mut self, changes: &mut mpsc::Receiver<Change>) {
        loop {
            let mut due = self.wait(changes).await;
            while due && self.state.is_synced() {
                match self.round().await {
                    Ok(()) => due = false,
                    Err(Interrupted::NotLeading) => return,
                    Err(error) => {
                        tracing::warn!("{error}; trying again");
                        tokio::time::sleep(RETRY).await;
                        let came_meanwhile = std::iter::from_fn(|| changes.try_recv().ok()).collect();
                        self.take_in(came_meanwhile);
                    }
                }
            }
            if changes.is_closed() {
                return;
            }
        }
    }

    /// Waits for changes, or for the time at which something changes by itself; says whether there is anything to decide.
    async fn wait(&mut self, changes: &mut mpsc::Receiver<Change>) -> bool {
        let now = self.clock.now();
        let deadline = self.state.next_deadline(now).and_then(|deadline| Duration::try_from(deadline.duration_since(now)).ok());
        let mut batch = Vec::new();
        tokio::select! {
            _ = changes.recv_many(&mut batch, BATCH) => self.take_in(batch),
            () = tokio::time::sleep(deadline.unwrap_or(Duration::MAX)), if deadline.is_some() => true,
        }
    }

    /// Takes in changes. A Lease that was renewed changes nothing by itself; one that makes a node ready does.
    pub fn take_in(&mut self, batch: Vec<Change>) -> bool {
        let now = self.clock.now();
        let (ready, members, synced) = (self.state.ready_nodes(now), membership::names(&self.state), self.state.is_synced());
        let mut due = false;
        for change in batch {
            let is_lease = matches!(change, Change::Lease(_));
            due |= self.state.take_in(change) && !is_lease;
        }
        self.state.heartbeats.listen(&self.state.leases, now);
        due |= synced != self.state.is_synced();
        due || self.state.ready_nodes(now) != ready || membership::names(&self.state) != members
    }

    /// Goes through everything until nothing is left to do.
    pub async fn round(&mut self) -> Result<(), Interrupted> {
        self.state.forget_the_gone();
        self.ask_for_headers();
        self.call_the_roll();
        self.waits.begin(&self.state, self.clock.now());
        for _ in 0..MOST_PASSES {
            let mut wrote = false;
            for item in items(&self.state) {
                wrote |= self.settle(&item).await?;
            }
            if !wrote {
                self.metrics.account(&self.state);
                self.waits.end(&self.state, self.clock.now(), &self.metrics);
                return Ok(());
            }
        }
        Err(Interrupted::Unsettled)
    }

    /// Takes steps for one item until it is as it should be; says whether anything was written.
    async fn settle(&mut self, item: &Item) -> Result<bool, Interrupted> {
        let mut wrote = false;
        for _ in 0..MOST_STEPS {
            match next_step(&self.state, item, self.clock.now()) {
                Step::Done => return Ok(wrote),
                Step::Confirm { target, as_of } => {
                    let read = apply::confirm(&self.client, &mut self.state, &target, as_of).await;
                    read.map_err(|error| Interrupted::Api { what: format!("{item:?}"), source: error.into() })?;
                }
                Step::Remember(remark) => self.state.memory.remember(remark, self.clock.now()),
                Step::Write(decision) => {
                    let follow = claimed_nodes(&self.state, &decision.write);
                    wrote |= self.carry_out(item, *decision).await?;
                    for node in follow {
                        wrote |= Box::pin(self.settle(&Item::Promises(node))).await?;
                    }
                }
            }
        }
        tracing::error!(?item, "still not settled after {MOST_STEPS} steps");
        Ok(false)
    }

    /// Makes the write; says whether it succeeded. A write that the API server does not take is no reason to stop.
    async fn carry_out(&mut self, item: &Item, decision: Decision) -> Result<bool, Interrupted> {
        if !self.leadership.holds() {
            return Err(Interrupted::NotLeading);
        }
        let Decision { write, notices, refusals } = decision;
        match apply::send(&self.client, &write).await {
            Ok(answer) => {
                self.metrics.wrote(write.kind(), "written");
                self.state.assume(answer);
                self.state.memory.rejected.remove(item);
                for seen in refusals {
                    self.state.memory.refused(seen, self.clock.now());
                }
                notices.into_iter().for_each(|notice| self.tell(notice));
                Ok(true)
            }
            Err(error) => self.failed(item, &write, error).await,
        }
    }

    async fn failed(&mut self, item: &Item, write: &Write, error: ApplyError) -> Result<bool, Interrupted> {
        let interrupted = |source| Interrupted::Api { what: format!("{} of {item:?}", write.kind()), source };
        match (error.remedy(), write.planned_on()) {
            (Remedy::TryLater, _) => return Err(interrupted(error)),
            (Remedy::ReadAgain, Some((target, as_of))) => {
                self.metrics.wrote(write.kind(), "conflict");
                tracing::debug!(?item, "{}: {error}; reading it again", write.kind());
                apply::confirm(&self.client, &mut self.state, &target, as_of).await.map_err(|error| interrupted(error.into()))?;
            }
            _ => {
                self.metrics.wrote(write.kind(), "rejected");
                tracing::warn!(?item, "{}: {error}", write.kind());
                self.tell_of_foreign_service(&error);
                self.state.memory.rejected(item.clone(), error.to_string(), self.clock.now());
            }
        }
        Ok(false)
    }

    fn tell(&self, notice: Notice) {
        self.metrics.told(&notice);
        // Nobody listens only when the process ends.
        let _ = self.notices.send(notice);
    }

    fn tell_of_foreign_service(&self, error: &ApplyError) {
        let ApplyError::ForeignService(key) = error else { return };
        let uid = self.state.deployments.get(key).and_then(|deployment| deployment.metadata.uid.clone()).unwrap_or_default();
        self.tell(Notice { key: key.clone(), uid, warning: true, reason: Reason::InvalidRequest, message: error.to_string() });
    }

    /// Says which replicas are to be asked whether they serve, and forgets answers of those that need not be asked any more.
    fn call_the_roll(&mut self) {
        let questions = roll_call::questions(&self.state, self.clock.now());
        self.state.unanswering.retain(|uid| questions.iter().any(|question| question.uid == *uid));
        send_if_new(&self.questions, questions);
    }

    /// Says which models have still to be read from elsewhere, and forgets those that nobody needs any more.
    /// A branch is asked for by its commit as soon as that is written down, so what was read of it is kept by both.
    fn ask_for_headers(&mut self) {
        let live = self.state.deployments.iter().filter(|(_, deployment)| is_live(deployment));
        let origins = live.map(|(_, deployment)| Origin::settled(deployment));
        let mut wanted: BTreeSet<Origin> = origins.filter(|origin| !matches!(origin, Origin::Path(_))).collect();
        let headers = &mut self.state.headers;
        let at_its_commit = |origin: &Origin| Some(origin.clone().at(&headers.get(origin)?.as_ref().ok()?.source.commit));
        let soon_wanted: BTreeSet<Origin> = wanted.iter().filter_map(at_its_commit).collect();
        headers.retain(|origin, _| wanted.contains(origin) || soon_wanted.contains(origin));
        wanted.retain(|origin| !matches!(self.state.headers.get(origin), Some(Ok(_))));
        send_if_new(&self.headers, wanted);
    }
}

fn send_if_new<T: PartialEq>(sender: &watch::Sender<T>, value: T) {
    sender.send_if_modified(|known| {
        let changed = *known != value;
        *known = value;
        changed
    });
}

/// Nodes on which this write claims a place; their promises are due at once.
fn claimed_nodes(state: &State, write: &Write) -> BTreeSet<String> {
    let Write::Status { key, status, .. } = write else { return BTreeSet::new() };
    let known = |uid: &str| {
        let status = state.deployments.get(key).and_then(|deployment: &Arc<stowage_crds::ModelDeployment>| deployment.status.as_ref());
        status.is_some_and(|status| status.placements.iter().any(|placement| placement.assignment_uid == uid))
    };
    let claims = status.placements.iter().filter(|placement| !known(&placement.assignment_uid));
    claims.map(|placement| placement.node.clone()).collect()
}

#[cfg(test)]
mod interleavings;
#[cfg(test)]
mod moving_stories;
#[cfg(test)]
mod node_stories;
#[cfg(test)]
mod priority_stories;
#[cfg(test)]
mod scenario;
#[cfg(test)]
mod stories;
#[cfg(test)]
mod world;
