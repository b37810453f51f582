//! Terms of leadership: from taking the Lease to losing it or being told to end.

use std::collections::BTreeSet;
use std::sync::Arc;

use kube::Client;
use stowage_placement::Defaults;
use tokio::sync::{mpsc, watch};

use crate::clock::Clock;
use crate::decide::{DecisionTask, Pace, Requests};
use crate::leader::Election;
use crate::metrics::Metrics;
use crate::model_deployment::fetch::{self, ReadHeader};
use crate::roll_call::{self, AskReplica, Questions};
use crate::state::State;
use crate::step::Notice;
use crate::waits::Waits;
use crate::workers;

/// Changes that wait to be taken in; watches pause when there are so many.
const WAITING: usize = 4096;

/// What every term is served with.
pub struct Terms {
    pub client: Client,
    pub clock: Arc<dyn Clock>,
    pub system_namespace: String,
    pub defaults: Defaults,
    /// Seconds for which a GPU must have had room before a replica moves there.
    pub move_up_after: u32,
    /// What workers' Pods have in common; `None` where agents start workers themselves.
    pub workers: Option<Arc<workers::Settings>>,
    pub reader: Arc<dyn ReadHeader>,
    pub asker: Arc<dyn AskReplica>,
    pub notices: mpsc::UnboundedSender<Notice>,
    pub metrics: Arc<Metrics>,
}

impl Terms {
    /// Stands for election, decides while it leads, and stands again; until `end` comes, when the Lease is given up.
    pub async fn serve(&self, mut election: Election, end: impl Future<Output = ()>) {
        tokio::pin!(end);
        loop {
            tokio::select! {
                () = &mut end => return,
                () = election.acquire() => {}
            }
            tracing::info!("leading");
            self.metrics.leads(true);
            let leadership = election.leadership();
            let ended = tokio::select! {
                () = &mut end => true,
                () = election.keep() => false,
                () = self.lead(leadership) => false,
            };
            self.metrics.leads(false);
            if ended {
                election.release().await;
                return;
            }
            tracing::warn!("no longer leading");
        }
    }

    async fn lead(&self, leadership: crate::leader::Leadership) {
        let (changes, mut coming) = mpsc::channel(WAITING);
        let _watches = crate::watch::start(&self.client, &self.system_namespace, self.workers.is_some(), &changes);
        let (headers, wanted) = watch::channel(BTreeSet::new());
        let (questions, asked) = watch::channel(Questions::new());
        let mut task = DecisionTask {
            clock: self.clock.clone(),
            requests: Requests::new(self.client.clone(), leadership),
            pace: Pace::default(),
            state: State {
                system_namespace: self.system_namespace.clone(),
                defaults: self.defaults,
                move_up_after: self.move_up_after.into(),
                workers: self.workers.clone(),
                ..State::default()
            },
            notices: self.notices.clone(),
            headers,
            questions,
            metrics: self.metrics.clone(),
            waits: Waits::default(),
        };
        tokio::select! {
            () = task.run(&mut coming) => {}
            () = fetch::run(self.reader.clone(), wanted, changes.clone()) => {}
            () = roll_call::run(self.asker.clone(), asked, changes) => {}
        }
    }
}
