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

    /// For tests: leads for as long as the sender says.
    #[cfg(test)]
    pub fn until(until: watch::Receiver<Option<Instant>>) -> Leadership {
        Leadership { until }
    }
}

/// Says whether the API server has answered this process lately, whoever leads. An operator for which that is not so could not take over.
#[derive(Clone, Debug)]
pub struct Contact {
    heard: watch::Receiver<Option<Instant>>,
    patience: Duration,
}

impl Contact {
    /// How long it has been silent, where that is too long.
    pub fn lost(&self) -> Option<String> {
        match *self.heard.borrow() {
            None => Some("the API server has not answered yet".to_owned()),
            Some(at) if at.elapsed() > self.patience => Some(format!("the API server has not answered for {} s", at.elapsed().as_secs())),
            Some(_) => None,
        }
    }
}

pub struct Election {
    api: Api<Lease>,
    identity: String,
    periods: Periods,
    clock: Arc<dyn Clock>,
    until: watch::Sender<Option<Instant>>,
    heard: watch::Sender<Option<Instant>>,
    /// The Lease as last seen, and when it was first seen like that; another's clock is not relied on.
    seen: Option<(Lease, Instant)>,
}

impl Election {
    pub fn new(client: Client, namespace: &str, identity: String, periods: Periods, clock: Arc<dyn Clock>) -> Election {
        let (until, _) = watch::channel(None);
        let (heard, _) = watch::channel(None);
        Election { api: Api::namespaced(client, namespace), identity, periods, clock, until, heard, seen: None }
    }

    /// A leader that is out of contact for as long has been followed by another.
    pub fn contact(&self) -> Contact {
        Contact { heard: self.heard.subscribe(), patience: self.periods.lease + 2 * self.periods.retry }
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
        if matches!(&answered, Ok(Ok(_))) || matches!(&answered, Ok(Err(kube::Error::Api(status))) if status.code == 409) {
            self.heard.send_replace(Some(Instant::now()));
        }
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

#[cfg(test)]
mod tests {
    use tower_test::mock;

    use super::*;
    use crate::clock::SystemClock;

    const PERIODS: Periods =
        Periods { lease: Duration::from_secs(10), renew_deadline: Duration::from_secs(8), retry: Duration::from_secs(2) };

    #[tokio::test(start_paused = true)]
    async fn contact_is_lost_where_the_api_server_refuses_or_is_silent_for_longer_than_a_lease_lasts() {
        let (service, mut server) = mock::pair::<http::Request<kube::client::Body>, http::Response<kube::client::Body>>();
        let mut election = Election::new(Client::new(service, "default"), "system", "me".to_owned(), PERIODS, Arc::new(SystemClock));
        let contact = election.contact();
        assert_eq!(contact.lost().unwrap(), "the API server has not answered yet");
        let answers = tokio::spawn(async move {
            for (code, body) in [
                (403, "{\"code\": 403}"),
                (404, "{\"code\": 404, \"reason\": \"NotFound\"}"),
                (201, "{\"metadata\": {\"name\": \"stowage-operator\"}}"),
            ] {
                let (_, reply) = server.next_request().await.unwrap();
                reply.send_response(http::Response::builder().status(code).body(body.as_bytes().to_vec().into()).unwrap());
            }
            server
        });
        assert!(election.attempt().await.is_err());
        assert!(contact.lost().is_some(), "what answers `forbidden` does not let this operator lead");
        assert!(election.attempt().await.unwrap());
        assert_eq!(contact.lost(), None);
        let _server = answers.await.unwrap();
        tokio::time::advance(Duration::from_secs(15)).await;
        assert_eq!(contact.lost().unwrap(), "the API server has not answered for 15 s");
    }
}
