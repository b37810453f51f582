//! The one serial decision task.
//!
//! It takes in what changed, then goes through ModelNodes and ModelDeployments, asking a pure function for the next [`Step`] of each. What is to be written is
//! sent without waiting for the answer, so decisions go on while earlier ones are being written. A decision knows of all before it nevertheless: what is in
//! flight counts with what it takes (see [`crate::in_flight`]), and nothing more is done for an item until the answer to its last write was taken in.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::jiff::Timestamp;
use stowage_placement::Reason;
use tokio::sync::{mpsc, watch};

use crate::cache::Revision;
use crate::clock::Clock;
use crate::metrics::Metrics;
use crate::model_deployment::apply::{Answer, ApplyError, Remedy};
use crate::model_deployment::validate::Origin;
use crate::model_deployment::{controller, endpoints, preemption};
use crate::model_node::{membership, promises};
use crate::roll_call::{self, Questions};
use crate::state::{State, is_live};
use crate::step::{Decision, Item, Notice, Step, Target, Write};
use crate::waits::Waits;
use crate::watch::Change;
use crate::workers;

mod pace;
mod requests;

pub use pace::Pace;
pub use requests::Requests;
use requests::{Answered, NotLeading, Outcome};

/// Most changes that are taken in before deciding.
const BATCH: usize = 1024;
/// An item that still has something to remember after so many steps in a row waits for the next pass; no chain of steps is nearly as long.
const MOST_STEPS: usize = 64;

/// The next step for one item: pure, so that any order of them can be tried.
pub fn next_step(state: &State, item: &Item, now: Timestamp) -> Step {
    if state.in_flight.is_busy(item) || state.memory.is_held_back(item, now) {
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

/// All items there are, in the order in which a pass goes through them. Promises come before new claims, so that what was begun is ended first, and the
/// ModelDeployments of the highest priority before others, so that they have the bytes that became free.
pub fn items(state: &State) -> Vec<Item> {
    let membership = membership::names(state).into_iter().map(Item::NodeMembership);
    let promises = state.model_nodes.keys().into_iter().map(|key| Item::Promises(key.name));
    let deployments = preemption::in_order(state).into_iter().map(Item::Deployment);
    let endpoints = endpoints::keys(state).into_iter().map(Item::Endpoints);
    let workers = workers::step::uids(state).into_iter().map(Item::Worker);
    membership.chain(promises).chain(deployments).chain(endpoints).chain(workers).collect()
}

/// Whether others go first where the API server can't do everything at once: all that is not about places and promises, and what is said of replicas that
/// have their places.
fn can_wait(state: &State, item: &Item) -> bool {
    match item {
        Item::NodeMembership(_) | Item::Promises(_) => false,
        Item::Deployment(key) => state.deployments.get(key).is_some_and(|deployment| {
            let seen = deployment.status.as_ref().filter(|status| status.observed_generation == deployment.metadata.generation);
            seen.is_some_and(|status| status.updated_replicas >= deployment.spec.replicas)
        }),
        Item::Endpoints(_) | Item::Worker(_) => true,
    }
}

pub struct DecisionTask {
    pub clock: Arc<dyn Clock>,
    pub state: State,
    pub requests: Requests,
    pub pace: Pace,
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
            let heard = self.hear(changes).await;
            if heard.is_err() || changes.is_closed() {
                return;
            }
            if self.pace.is_due() && self.state.is_synced() && self.pass().await.is_err() {
                return;
            }
        }
    }

    /// Waits for changes, for answers, or for the time at which something changes by itself.
    async fn hear(&mut self, changes: &mut mpsc::Receiver<Change>) -> Result<(), NotLeading> {
        let now = self.clock.now();
        let by_itself = || self.state.next_deadline(now).and_then(|deadline| Duration::try_from(deadline.duration_since(now)).ok());
        let wait = self.pace.wait().or_else(by_itself);
        let mut batch = Vec::new();
        tokio::select! {
            _ = changes.recv_many(&mut batch, BATCH) => self.pace.due |= self.take_in(batch),
            Some(answered) = self.requests.next() => self.answered(answered)?,
            () = tokio::time::sleep(wait.unwrap_or(Duration::MAX)), if wait.is_some() => self.pace.due = true,
        }
        while let Some(answered) = self.requests.try_next() {
            self.answered(answered)?;
        }
        Ok(())
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

    /// Goes through everything once, and sends what is to be written; says whether that was anything.
    async fn pass(&mut self) -> Result<bool, NotLeading> {
        self.pace.due = false;
        self.state.forget_the_gone();
        self.ask_for_headers();
        self.call_the_roll();
        self.waits.begin(&self.state, self.clock.now());
        let mut sent = false;
        for item in items(&self.state) {
            let can_wait = can_wait(&self.state, &item);
            while !can_wait && !self.requests.have_room(can_wait) {
                self.next_answer().await?;
            }
            // What can wait and finds no room is due again with the next answer.
            if self.requests.have_room(can_wait) && self.settle(&item)? {
                sent = true;
                if can_wait {
                    self.requests.can_wait(&item);
                }
            }
        }
        self.waits.end(&self.state, self.clock.now(), &self.metrics);
        if !sent {
            self.metrics.account(&self.state);
        }
        self.pace.passed(sent);
        Ok(sent)
    }

    /// Takes steps for one item until it is as it should be, or an answer has to be waited for; says whether anything was sent.
    fn settle(&mut self, item: &Item) -> Result<bool, NotLeading> {
        for _ in 0..MOST_STEPS {
            match next_step(&self.state, item, self.clock.now()) {
                Step::Done => return Ok(false),
                Step::Remember(remark) => self.state.memory.remember(remark, self.clock.now()),
                Step::Confirm { target, as_of } => {
                    self.read(item.clone(), target, as_of);
                    return Ok(true);
                }
                Step::Write(decision) => {
                    let decision = Arc::new(*decision);
                    self.requests.write(item.clone(), decision.clone())?;
                    self.state.in_flight.writes(item.clone(), decision);
                    return Ok(true);
                }
            }
        }
        tracing::error!(?item, "still not settled after {MOST_STEPS} steps");
        Ok(false)
    }

    fn read(&mut self, item: Item, target: Target, as_of: Revision) {
        self.state.in_flight.reads(item.clone());
        self.requests.read(item, target, as_of);
    }

    async fn next_answer(&mut self) -> Result<(), NotLeading> {
        match self.requests.next().await {
            Some(answered) => self.answered(answered),
            None => Ok(()),
        }
    }

    /// Takes in what came of a request. A write that the API server does not take is no reason to stop.
    fn answered(&mut self, Answered { item, outcome }: Answered) -> Result<(), NotLeading> {
        self.state.in_flight.ended(&item);
        self.pace.due = true;
        match outcome {
            Outcome::NotLeading => return Err(NotLeading),
            Outcome::Read(as_of, Ok(found)) => self.state.confirm(found, as_of),
            Outcome::Read(_, Err(error)) => self.try_later(&format!("reading for {item:?}"), &error.into()),
            Outcome::Written(decision, Ok(answer)) => self.written(&item, Arc::unwrap_or_clone(decision), answer),
            Outcome::Written(decision, Err(error)) => self.failed(item, &decision.write, error),
        }
        Ok(())
    }

    fn written(&mut self, item: &Item, decision: Decision, answer: Answer) {
        let Decision { write, notices, refusals } = decision;
        self.metrics.wrote(write.kind(), "written");
        self.state.assume(answer);
        self.state.memory.rejected.remove(item);
        for seen in refusals {
            self.state.memory.refused(seen, self.clock.now());
        }
        notices.into_iter().for_each(|notice| self.tell(notice));
    }

    fn failed(&mut self, item: Item, write: &Write, error: ApplyError) {
        match (error.remedy(), write.planned_on()) {
            (Remedy::TryLater, _) => self.try_later(&format!("writing {} of {item:?}", write.kind()), &error),
            (Remedy::ReadAgain, Some((target, as_of))) => {
                self.metrics.wrote(write.kind(), "conflict");
                tracing::debug!(?item, "{}: {error}; reading it again", write.kind());
                self.read(item, target, as_of);
            }
            _ => {
                self.metrics.wrote(write.kind(), "rejected");
                tracing::warn!(?item, "{}: {error}", write.kind());
                self.tell_of_foreign_service(&error);
                self.state.memory.rejected(item, error.to_string(), self.clock.now());
            }
        }
    }

    fn try_later(&mut self, what: &str, error: &ApplyError) {
        tracing::warn!("{what}: {error}; trying again");
        self.pace.pause();
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

#[cfg(test)]
mod burst_stories;
#[cfg(test)]
mod interleavings;
#[cfg(test)]
mod leader;
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
