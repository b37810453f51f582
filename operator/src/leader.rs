//! Who decides: the holder of one Lease.
//!
//! The holder counts as the leader for less time after each renewal than others wait before they take the Lease, so that in the ordinary course there is
//! never more than one. What that can't rule out (a process that is paused between looking and writing) the versions on every write do.

use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta};
use kube::api::PostParams;
use kube::{Api, Client};
use stowage_crds::names;
use tokio::sync::watch;
use tokio::time::{Instant, sleep, timeout};

use crate::clock::Clock;

/// Name of the Lease, in the system namespace.
pub const LEASE: &str = names::OPERATOR_MANAGER;

/// How long what holds. A leader that dies is followed within `lease + 2 x retry`.
#[derive(Clone, Copy, Debug)]
pub struct Periods {
    /// After so long without a renewal, others take the Lease.
    pub lease: Duration,
    /// After so long without a renewal, the holder no longer decides; shorter than `lease`.
    pub renew_deadline: Duration,
    /// Between two tries to take or renew it.
    pub retry: Duration,
}

/// Says whether this process leads at this moment.
#[derive(Clone, Debug)]
pub struct Leadership {
    until: watch::Receiver<Option<Instant>>,
}

impl Leadership {
    pub fn holds(&self) -> bool {
        self.until.borrow().is_some_and(|until| Instant::now() < until)
    }

    /// For tests: leads for ever.
    #[cfg(test)]
    pub fn unquestioned() -> Leadership {
        let (_, until) = watch::channel(Some(Instant::now() + Duration::from_secs(1 << 30)));
        Leadership { until }
    }
}

pub struct Election {
    api: Api<Lease>,
    identity: String,
    periods: Periods,
    clock: Arc<dyn Clock>,
    until: watch::Sender<Option<Instant>>,
    /// The Lease as last seen, and when it was first seen like that; another's clock is not relied on.
    seen: Option<(Lease, Instant)>,
}

impl Election {
    pub fn new(client: Client, namespace: &str, identity: String, periods: Periods, clock: Arc<dyn Clock>) -> Election {
        let (until, _) = watch::channel(None);
        Election { api: Api::namespaced(client, namespace), identity, periods, clock, until, seen: None }
    }

    pub fn leadership(&self) -> Leadership {
        Leadership { until: self.until.subscribe() }
    }

    /// Waits until this process leads.
    pub async fn acquire(&mut self) {
        loop {
            match self.attempt().await {
                Ok(true) => return,
                Ok(false) => {}
                Err(error) => tracing::warn!("taking the Lease {LEASE}: {error}"),
            }
            sleep(self.periods.retry).await;
        }
    }

    /// Renews until that fails for too long or somebody else leads.
    pub async fn keep(&mut self) {
        loop {
            sleep(self.periods.retry).await;
            match self.attempt().await {
                Ok(true) => {}
                Ok(false) => break,
                Err(error) => tracing::warn!("renewing the Lease {LEASE}: {error}"),
            }
            if !self.leadership().holds() {
                break;
            }
        }
        self.until.send_replace(None);
    }

    /// Gives the Lease up, so that another need not wait.
    pub async fn release(&mut self) {
        self.until.send_replace(None);
        let Some((mut lease, _)) = self.seen.take() else { return };
        if holder(&lease) != Some(self.identity.as_str()) {
            return;
        }
        if let Some(spec) = &mut lease.spec {
            spec.holder_identity = None;
            spec.renew_time = Some(MicroTime(self.clock.now()));
        }
        if let Err(error) = self.api.replace(LEASE, &PostParams::default(), &lease).await {
            tracing::warn!("giving up the Lease {LEASE}: {error}");
        }
    }

    /// Takes or renews the Lease where that may be done now; says whether this process holds it.
    async fn attempt(&mut self) -> Result<bool, kube::Error> {
        let begun = Instant::now();
        let answered = timeout(self.periods.renew_deadline / 2, self.write()).await;
        match answered {
            Ok(Ok(Some(lease))) => {
                self.seen = Some((lease, begun));
                self.until.send_replace(Some(begun + self.periods.renew_deadline));
                Ok(true)
            }
            Ok(Ok(None)) => Ok(false),
            // Somebody else wrote it: look again at once, next time.
            Ok(Err(kube::Error::Api(status))) if status.code == 409 => {
                let still_holds = self.look().await?.is_some_and(|lease| holder(&lease) == Some(self.identity.as_str()));
                Ok(still_holds)
            }
            Ok(Err(error)) => Err(error),
            Err(_) => Err(kube::Error::Service("the API server did not answer in time".into())),
        }
    }

    /// `None`: it is somebody else's.
    async fn write(&mut self) -> Result<Option<Lease>, kube::Error> {
        let mine = |lease: &Lease| holder(lease) == Some(self.identity.as_str());
        let known = match &self.seen {
            Some((lease, _)) if mine(lease) => Some(lease.clone()),
            _ => self.look().await?,
        };
        let Some(lease) = known else {
            return self.api.create(&PostParams::default(), &self.lease(ObjectMeta::default(), None)).await.map(Some);
        };
        if holder(&lease).is_some_and(|holder| holder != self.identity) && !self.has_expired(&lease) {
            return Ok(None);
        }
        let renewed = self.lease(lease.metadata.clone(), lease.spec);
        self.api.replace(LEASE, &PostParams::default(), &renewed).await.map(Some)
    }

    /// Reads the Lease, and notes when it changed.
    async fn look(&mut self) -> Result<Option<Lease>, kube::Error> {
        let found = self.api.get_opt(LEASE).await?;
        let unchanged = |(seen, since): &(Lease, Instant)| {
            let same = found.as_ref().is_some_and(|found| found.metadata.resource_version == seen.metadata.resource_version);
            same.then_some(*since)
        };
        let since = self.seen.as_ref().and_then(unchanged).unwrap_or_else(Instant::now);
        self.seen = found.clone().map(|lease| (lease, since));
        Ok(found)
    }

    fn has_expired(&self, lease: &Lease) -> bool {
        let seconds = lease.spec.as_ref().and_then(|spec| spec.lease_duration_seconds).and_then(|seconds| u64::try_from(seconds).ok());
        let holds = seconds.map_or(self.periods.lease, Duration::from_secs);
        self.seen.as_ref().is_some_and(|(_, since)| since.elapsed() >= holds)
    }

    fn lease(&self, metadata: ObjectMeta, previous: Option<LeaseSpec>) -> Lease {
        let now = MicroTime(self.clock.now());
        let previous = previous.unwrap_or_default();
        let is_mine = previous.holder_identity.as_deref() == Some(self.identity.as_str());
        let transitions = previous.lease_transitions.unwrap_or(0);
        Lease {
            metadata: ObjectMeta { name: Some(LEASE.to_owned()), managed_fields: None, ..metadata },
            spec: Some(LeaseSpec {
                holder_identity: Some(self.identity.clone()),
                lease_duration_seconds: i32::try_from(self.periods.lease.as_secs()).ok(),
                acquire_time: if is_mine { previous.acquire_time.clone() } else { Some(now.clone()) },
                renew_time: Some(now),
                lease_transitions: Some(if is_mine { transitions } else { transitions.saturating_add(1) }),
                ..previous
            }),
        }
    }
}

/// Who holds it; nobody, where it was given up.
fn holder(lease: &Lease) -> Option<&str> {
    lease.spec.as_ref()?.holder_identity.as_deref().filter(|holder| !holder.is_empty())
}
