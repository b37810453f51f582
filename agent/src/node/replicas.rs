//! What is known of each replica, and what is said of it.

use std::collections::BTreeMap;

use stowage_crds::model_deployment::ReplicaState;
use stowage_crds::model_node::{Assignment, ReplicaStatus};
use stowage_placement::{Bytes, DevicePlan, Reason};

use super::account::{Account, Holding};
use super::assignments::Known;
use super::calibration::Loaded;
use crate::devices::host::process_memory;
use crate::serve::{ModelNames, Route};
use crate::worker::Refusal;
use crate::worker::view::{Views, WorkerView};

/// The replicas of this node: those that the supervisor has, and those of which there is only something to say.
#[derive(Default)]
pub struct Replicas {
    known: BTreeMap<String, Known>,
    /// What is said of those that are refused or gone.
    ended: BTreeMap<String, ReplicaStatus>,
    /// As the supervisor last told.
    views: Views,
}

impl Replicas {
    pub fn known(&self) -> &BTreeMap<String, Known> {
        &self.known
    }

    /// What an earlier agent refused or reported gone stays so.
    pub fn recall(&mut self, status: &[ReplicaStatus]) {
        for replica in status {
            let known = match replica.state {
                ReplicaState::Refused => Known::Refused,
                ReplicaState::Gone => Known::Gone,
                _ => continue,
            };
            if !self.known.contains_key(&replica.uid) {
                self.known.insert(replica.uid.clone(), known);
                self.ended.insert(replica.uid.clone(), replica.clone());
            }
        }
    }

    /// Takes in what the supervisor tells. Whatever it had and has no longer, or says is gone, is gone.
    pub fn observe(&mut self, views: &Views) {
        for (uid, view) in views.iter().filter(|(_, view)| !view.is_gone()) {
            if !matches!(self.known.get(uid), Some(Known::Held(_) | Known::Ending)) {
                tracing::info!(uid, replica = view.status.replica, pid = view.pid, "a worker of an earlier agent runs on");
                self.ended.remove(uid);
                self.known.insert(uid.clone(), Known::Held(view.assignment.clone().map(Box::new)));
            }
        }
        let held = self.known.iter().filter(|(_, known)| matches!(known, Known::Held(_) | Known::Ending)).map(|(uid, _)| uid);
        let gone = held.filter(|uid| views.get(*uid).map_or(self.views.contains_key(*uid), WorkerView::is_gone));
        for uid in gone.cloned().collect::<Vec<String>>() {
            self.gone(&uid);
        }
        self.views.clone_from(views);
    }

    /// Takes in what the supervisor tells while the agent and its workers end. One that has ended stays what it was last.
    pub fn observe_leaving(&mut self, views: &Views) {
        let there = views.iter().filter(|(_, view)| !view.is_gone());
        self.views.extend(there.map(|(uid, view)| (uid.clone(), view.clone())));
    }

    /// The supervisor was told this.
    pub fn told(&mut self, assignment: &Assignment) {
        self.known.insert(assignment.uid.clone(), Known::Held(Some(Box::new(assignment.clone()))));
    }

    /// The supervisor was told to end what nobody assigned.
    pub fn ending(&mut self, uid: &str) {
        self.known.insert(uid.to_owned(), Known::Ending);
    }

    pub fn refused(&mut self, assignment: &Assignment, refusal: Refusal) {
        let status = ReplicaStatus {
            uid: assignment.uid.clone(),
            replica: assignment.replica.clone(),
            state: ReplicaState::Refused,
            reason: Some(refusal.reason),
            message: refusal.message,
            ..ReplicaStatus::default()
        };
        self.known.insert(assignment.uid.clone(), Known::Refused);
        self.ended.insert(assignment.uid.clone(), status);
    }

    pub fn gone(&mut self, uid: &str) {
        let replica = self.name(uid);
        self.known.insert(uid.to_owned(), Known::Gone);
        self.ended
            .insert(uid.to_owned(), ReplicaStatus { uid: uid.to_owned(), replica, state: ReplicaState::Gone, ..ReplicaStatus::default() });
    }

    pub fn forget(&mut self, uid: &str) {
        self.known.remove(uid);
        self.ended.remove(uid);
        self.views.remove(uid);
    }

    fn name(&self, uid: &str) -> String {
        let told = self.assignment(uid).map(|assignment| &assignment.replica);
        let viewed = || self.views.get(uid).map(|view| &view.status.replica);
        let said = || self.ended.get(uid).map(|status| &status.replica);
        told.or_else(viewed).or_else(said).cloned().unwrap_or_default()
    }

    /// What the supervisor was told of a replica.
    pub fn assignment(&self, uid: &str) -> Option<&Assignment> {
        match self.known.get(uid)? {
            Known::Held(told) => told.as_deref(),
            Known::Ending => self.views.get(uid)?.assignment.as_ref(),
            Known::Refused | Known::Gone => None,
        }
    }

    /// Who holds bytes, or was let in and will. Reads `/proc` for what the workers' processes take.
    pub fn holdings(&self) -> Vec<Holding> {
        let held = self.known.iter().filter(|(_, known)| matches!(known, Known::Held(_) | Known::Ending));
        // A worker that was refused at the gate ends, and will load nothing.
        let held = held.filter(|(uid, _)| self.views.get(*uid).is_none_or(|view| view.status.state != ReplicaState::Refused || view.runs));
        held.map(|(uid, _)| self.holding(uid)).collect()
    }

    fn holding(&self, uid: &str) -> Holding {
        let view = self.views.get(uid);
        let pid = view.and_then(|view| view.pid);
        let loading = view.filter(|view| view.status.state == ReplicaState::Loading);
        Holding {
            uid: uid.to_owned(),
            runs: view.is_some_and(|view| view.runs),
            pid,
            promised: self.assignment(uid).map(|assignment| promised(&assignment.plan)).unwrap_or_default(),
            reported: view.filter(|view| !view.held.is_empty()).map(reported),
            percent: loading.and_then(|view| view.status.percent).unwrap_or_default(),
            resident: pid.and_then(process_memory).or(view.map(|view| view.resident)).unwrap_or_default(),
        }
    }

    /// Those that have loaded, with their processes.
    pub fn loaded(&self) -> Vec<Loaded<'_>> {
        let ready = self.views.iter().filter(|(_, view)| view.is_ready());
        ready.filter_map(|(uid, view)| Some(Loaded { assignment: self.assignment(uid)?, pid: view.pid? })).collect()
    }

    /// What is said of each, in the order of their uids.
    pub fn statuses(&self, account: &Account) -> Vec<ReplicaStatus> {
        self.known.keys().map(|uid| self.status(uid, account)).collect()
    }

    fn status(&self, uid: &str, account: &Account) -> ReplicaStatus {
        if let Some(ended) = self.ended.get(uid) {
            return ended.clone();
        }
        let Some(view) = self.views.get(uid) else {
            return ReplicaStatus {
                uid: uid.to_owned(),
                replica: self.name(uid),
                reason: Some(Reason::Pending),
                ..ReplicaStatus::default()
            };
        };
        let mut status = view.status.clone();
        status.reason = status.reason.or_else(|| reason(status.state));
        // What is held, as far as it can be told, is a better figure than the worker's own; and what the operator counts with.
        // Of one that memory ran out for, what it held stands: it holds nothing now.
        let live = status.devices.iter_mut().filter(|_| status.state != ReplicaState::Refused);
        for device in live {
            device.measured_bytes = device.measured_bytes.map(|_| account.held(uid, &device.id));
        }
        status
    }

    /// The workers that listen, by the names of their models.
    pub fn routes(&self) -> Vec<Route> {
        let route = |(uid, view): (&String, &WorkerView)| {
            let Assignment { replica, model_deployment, aliases, .. } = self.assignment(uid)?;
            let names = ModelNames::new(&model_deployment.namespace, &model_deployment.name, aliases.clone());
            Some(Route { replica: replica.clone(), names, worker: view.http_address?, ready: view.is_ready() })
        };
        self.views.iter().filter_map(route).collect()
    }
}

/// The reason that goes without saying.
fn reason(state: ReplicaState) -> Option<Reason> {
    match state {
        ReplicaState::Pending => Some(Reason::Pending),
        ReplicaState::Downloading => Some(Reason::Downloading),
        ReplicaState::Loading => Some(Reason::Loading),
        ReplicaState::Ready => Some(Reason::Serving),
        ReplicaState::Draining => Some(Reason::Draining),
        ReplicaState::Refused | ReplicaState::Failed | ReplicaState::Gone => None,
    }
}

fn promised(plan: &DevicePlan) -> BTreeMap<String, Bytes> {
    plan.devices.iter().map(|allocation| (allocation.id.clone(), allocation.total_bytes)).collect()
}

fn reported(view: &WorkerView) -> BTreeMap<String, Bytes> {
    view.held.iter().map(|device| (device.id.clone(), device.total())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::node::testing::assignment;
    use stowage_engine::MeasuredDevice;
    use stowage_placement::HOST;

    fn view(state: ReplicaState) -> WorkerView {
        let mut view = WorkerView { assignment: Some(assignment("a")), ..WorkerView::default() };
        (view.status.uid, view.status.replica, view.status.state) = ("a".into(), "smol-a".into(), state);
        view
    }

    fn views(view: WorkerView) -> Views {
        Views::from([("a".to_owned(), view)])
    }

    #[test]
    fn a_worker_of_an_earlier_agent_is_taken_over_with_what_it_was_told() {
        let mut replicas = Replicas::default();
        let worker = "127.0.0.1:4711".parse().unwrap();
        replicas.observe(&views(WorkerView { http_address: Some(worker), ..view(ReplicaState::Ready) }));
        assert_eq!(replicas.known().get("a"), Some(&Known::Held(Some(Box::new(assignment("a"))))));
        let names = ModelNames::new("default", "smol", Vec::new());
        assert_eq!(replicas.routes(), [Route { replica: assignment("a").replica, names, worker, ready: true }]);
    }

    #[test]
    fn a_replica_that_was_told_and_is_not_viewed_yet_is_pending_and_counts_its_promise() {
        let mut replicas = Replicas::default();
        replicas.told(&assignment("a"));
        replicas.observe(&Views::new());
        assert_eq!(replicas.statuses(&Account::default())[0].state, ReplicaState::Pending);
        assert_eq!(replicas.holdings()[0].promised[HOST], Bytes::gib(1));
    }

    #[test]
    fn what_the_supervisor_no_longer_has_is_gone_holds_nothing_and_keeps_its_name() {
        let mut replicas = Replicas::default();
        replicas.told(&assignment("a"));
        replicas.observe(&views(view(ReplicaState::Draining)));
        replicas.observe(&Views::new());
        assert_eq!(replicas.known().get("a"), Some(&Known::Gone));
        let status = &replicas.statuses(&Account::default())[0];
        assert_eq!((status.state, status.replica.as_str()), (ReplicaState::Gone, "smol-a"));
        assert_eq!(replicas.holdings(), []);
    }

    #[test]
    fn what_is_measured_is_what_the_account_says_that_it_holds() {
        let mut ready = view(ReplicaState::Ready);
        ready.held = vec![MeasuredDevice { id: HOST.into(), weights: Bytes::gib(1), ..MeasuredDevice::default() }];
        ready.status.devices = vec![stowage_crds::model_deployment::DeviceBytes {
            id: HOST.into(),
            predicted_bytes: Bytes(7),
            measured_bytes: Some(Bytes(9)),
        }];
        let mut replicas = Replicas::default();
        replicas.observe(&views(ready));
        let account = super::super::account::account(&Default::default(), &replicas.holdings());
        assert_eq!(replicas.statuses(&account)[0].devices[0].measured_bytes, Some(Bytes::gib(1)));
    }

    #[test]
    fn a_refusal_outlives_the_agent_that_gave_it() {
        let mut earlier = Replicas::default();
        earlier.refused(&assignment("a"), Refusal::new(Reason::DeviceChanged, "1 MiB too little"));
        let status = earlier.statuses(&Account::default());
        let mut later = Replicas::default();
        later.recall(&status);
        assert_eq!(later.known().get("a"), Some(&Known::Refused));
        assert_eq!(later.statuses(&Account::default()), status);
    }
}
