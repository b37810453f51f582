//! A leader of a cluster in memory: the real decisions, over watches that bring their events, and requests that arrive and are answered, when a test says so.

use std::sync::Arc;

use kube::runtime::watcher::Event;

use super::interleavings::{HIGH, MOVE_UP_AFTER};
use super::next_step;
use crate::cache::{Cache, Revision};
use crate::clock::after;
use crate::model_deployment::apply::{Answer, Found};
use crate::state::State;
use crate::step::{Decision, Item, Step, Target};
use crate::testing::cluster::{Cluster, Conflict, Store};
use crate::testing::{lease, listed, now, priority_class, worker_settings};

/// Kinds of objects that leaders watch, Leases left out: those are heard, not watched.
pub(super) const KINDS: usize = 6;

/// A process that believes it leads.
pub(super) struct Leader {
    pub(super) state: State,
    seen: [usize; KINDS],
    /// A kind of which it hears late.
    pub(super) slow: Option<usize>,
    /// Sent, and not yet arrived.
    pub(super) on_its_way: Vec<(Item, Request)>,
    /// Of what arrived.
    pub(super) answers: Vec<(Item, Outcome)>,
}

pub(super) enum Request {
    Write(Arc<Decision>),
    Read(Target, Revision),
}

pub(super) enum Outcome {
    Written(Arc<Decision>, Answer),
    Conflict(Arc<Decision>),
    Read(Found, Revision),
    /// Whatever became of it, nobody says.
    Lost,
}

/// Lists one kind as it is now, and says from where to watch on.
fn list<K: kube::ResourceExt + Clone>(store: &Store<K>) -> (Cache<K>, usize) {
    (listed(store.objects.values().cloned()), store.log.len())
}

/// Lets a watch bring its next event.
fn watch<K: kube::ResourceExt + Clone>(store: &Store<K>, cache: &mut Cache<K>, seen: &mut usize) -> bool {
    let Some(event) = store.log.get(*seen) else { return false };
    let event = match event {
        Event::Apply(object) => Event::Apply(object.clone()),
        Event::Delete(object) => Event::Delete(object.clone()),
        _ => return false,
    };
    *seen += 1;
    cache.take_in(event);
    true
}

impl Leader {
    /// Begins with lists of all kinds, between which others may write.
    pub(super) fn new(cluster: &mut Cluster, mut meanwhile: impl FnMut(&mut Cluster)) -> Leader {
        let system_namespace = stowage_crds::names::SYSTEM_NAMESPACE.into();
        let mut state = State { system_namespace, move_up_after: MOVE_UP_AFTER, ..State::default() };
        let mut seen = [0; KINDS];
        (state.nodes, seen[4]) = list(&cluster.nodes);
        meanwhile(cluster);
        (state.model_nodes, seen[1]) = list(&cluster.model_nodes);
        meanwhile(cluster);
        (state.deployments, seen[0]) = list(&cluster.deployments);
        meanwhile(cluster);
        (state.services, seen[2]) = list(&cluster.services);
        (state.slices, seen[3]) = list(&cluster.slices);
        (state.pods, seen[5]) = list(&cluster.pods);
        state.workers = cluster.has_worker_pods.then(|| Arc::new(worker_settings()));
        state.priority_classes = listed([priority_class(HIGH, 1000)]);
        state.hear(cluster.agents.keys().map(|name| lease(name, 0)).collect(), now());
        Leader { state, seen, slow: None, on_its_way: Vec::new(), answers: Vec::new() }
    }

    /// Lets all watches bring what there is; says whether that was anything.
    pub(super) fn catch_up(&mut self, cluster: &Cluster) -> bool {
        (0..KINDS).map(|kind| (0..).take_while(|_| self.watch(cluster, kind)).count()).sum::<usize>() > 0
    }

    pub(super) fn watch(&mut self, cluster: &Cluster, kind: usize) -> bool {
        let seen = &mut self.seen[kind];
        match kind {
            0 => watch(&cluster.deployments, &mut self.state.deployments, seen),
            1 => watch(&cluster.model_nodes, &mut self.state.model_nodes, seen),
            2 => watch(&cluster.services, &mut self.state.services, seen),
            3 => watch(&cluster.slices, &mut self.state.slices, seen),
            5 => watch(&cluster.pods, &mut self.state.pods, seen),
            _ => watch(&cluster.nodes, &mut self.state.nodes, seen),
        }
    }

    /// Decides for one item, and leaves the request on its way; says whether there was anything to do.
    pub(super) fn decide(&mut self, item: &Item, seconds: i64) -> bool {
        let (item, request) = match next_step(&self.state, item, after(now(), seconds)) {
            Step::Done => return false,
            Step::Confirm { target, as_of } => {
                self.state.in_flight.reads(item.clone());
                (item.clone(), Request::Read(target, as_of))
            }
            Step::Remember(remark) => {
                self.state.memory.remember(remark, after(now(), seconds));
                return true;
            }
            Step::Write(decision) => {
                let decision = Arc::new(*decision);
                self.state.in_flight.writes(item.clone(), decision.clone());
                (item.clone(), Request::Write(decision))
            }
        };
        self.on_its_way.push((item, request));
        true
    }

    /// Reads past the cache, at once.
    pub(super) fn read(&mut self, cluster: &Cluster, target: &Target, as_of: Revision) {
        self.state.confirm(cluster.read(target), as_of);
    }

    /// A request arrives, and its answer is on its way back.
    pub(super) fn arrive(&mut self, cluster: &mut Cluster, which: usize, lost: bool) {
        let (item, request) = self.on_its_way.swap_remove(which);
        let outcome = match request {
            Request::Read(target, as_of) => Outcome::Read(cluster.read(&target), as_of),
            Request::Write(decision) => match cluster.send(&decision.write) {
                _ if lost => Outcome::Lost,
                Ok(answer) => Outcome::Written(decision, answer),
                Err(Conflict) => Outcome::Conflict(decision),
            },
        };
        self.answers.push((item, outcome));
    }

    /// A request is given up; what it asks for comes later, or never.
    pub(super) fn give_up(&mut self, which: usize) -> Option<Arc<Decision>> {
        let (item, request) = self.on_its_way.swap_remove(which);
        self.answers.push((item, Outcome::Lost));
        match request {
            Request::Write(decision) => Some(decision),
            Request::Read(..) => None,
        }
    }

    /// Takes an answer in.
    pub(super) fn hear(&mut self, which: usize, seconds: i64) {
        let (item, outcome) = self.answers.swap_remove(which);
        self.state.in_flight.ended(&item);
        match outcome {
            Outcome::Lost => {}
            Outcome::Read(found, as_of) => self.state.confirm(found, as_of),
            Outcome::Written(decision, answer) => {
                self.state.assume(answer);
                for seen in &decision.refusals {
                    self.state.memory.refused(seen.clone(), after(now(), seconds));
                }
            }
            Outcome::Conflict(decision) => match decision.write.planned_on() {
                Some((target, as_of)) => {
                    self.state.in_flight.reads(item.clone());
                    self.on_its_way.push((item, Request::Read(target, as_of)));
                }
                None => self.state.memory.rejected(item, String::new(), after(now(), seconds)),
            },
        }
    }
}
