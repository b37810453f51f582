//! The ready endpoints of a ModelDeployment's Service at this moment, as kube-proxy follows them: by a watch of its EndpointSlices.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use futures::{StreamExt, pin_mut};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::runtime::WatchStreamExt;
use kube::runtime::watcher::{Config, Event, watcher};
use kube::{Api, Client, ResourceExt};
use tokio::task::JoinSet;

/// Where a replica is reached: on the loopback address at the port of its slice, since what its agent advertises is no address of this machine.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Endpoint {
    /// The slice's name.
    pub replica: String,
    pub port: u16,
}

impl Endpoint {
    pub fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }
}

/// Follows the slices until it is dropped.
pub struct Endpoints {
    known: Known,
    _watch: JoinSet<()>,
}

#[derive(Clone, Default)]
struct Known {
    inner: Arc<Mutex<Inner>>,
}

#[derive(Default)]
struct Inner {
    ready: BTreeMap<String, Endpoint>,
    /// What a list brings, until it is whole.
    listed: BTreeMap<String, Endpoint>,
    departures: Vec<(Endpoint, Instant)>,
}

impl Endpoints {
    pub fn follow(client: &Client, namespace: &str, service: &str) -> Endpoints {
        let (known, mut watch) = (Known::default(), JoinSet::new());
        let of_service = Config::default().labels(&format!("kubernetes.io/service-name={service}"));
        watch.spawn(take_in_all(Api::namespaced(client.clone(), namespace), of_service, known.clone()));
        Endpoints { known, _watch: watch }
    }

    pub fn ready(&self) -> Vec<Endpoint> {
        self.known.lock().ready.values().cloned().collect()
    }

    /// When this endpoint was first seen to go after `since`, if it was.
    pub fn departed(&self, endpoint: &Endpoint, since: Instant) -> Option<Instant> {
        self.known.lock().departures.iter().find(|(gone, when)| gone == endpoint && *when >= since).map(|(_, when)| *when)
    }
}

impl Known {
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inner {
    fn take_in(&mut self, event: Event<EndpointSlice>) {
        match event {
            Event::Apply(slice) => {
                let mut ready = self.ready.clone();
                put(&mut ready, &slice);
                self.replace(ready);
            }
            Event::Delete(slice) => {
                let mut ready = self.ready.clone();
                ready.remove(&slice.name_any());
                self.replace(ready);
            }
            Event::Init => self.listed.clear(),
            Event::InitApply(slice) => put(&mut self.listed, &slice),
            Event::InitDone => {
                let listed = std::mem::take(&mut self.listed);
                self.replace(listed);
            }
        }
    }

    fn replace(&mut self, ready: BTreeMap<String, Endpoint>) {
        let now = Instant::now();
        let before = std::mem::replace(&mut self.ready, ready);
        let gone = before.into_iter().filter(|(name, endpoint)| self.ready.get(name) != Some(endpoint));
        self.departures.extend(gone.map(|(_, endpoint)| (endpoint, now)));
    }
}

fn put(endpoints: &mut BTreeMap<String, Endpoint>, slice: &EndpointSlice) {
    let name = slice.name_any();
    match endpoint(slice) {
        Some(endpoint) => endpoints.insert(name, endpoint),
        None => endpoints.remove(&name),
    };
}

/// The slices hold one endpoint each.
fn endpoint(slice: &EndpointSlice) -> Option<Endpoint> {
    let is_ready = slice.endpoints.iter().flatten().any(|endpoint| endpoint.conditions.as_ref().is_some_and(|c| c.ready == Some(true)));
    let port = slice.ports.as_ref()?.first()?.port?;
    is_ready.then_some(Endpoint { replica: slice.name_any(), port: port.try_into().ok()? })
}

async fn take_in_all(slices: Api<EndpointSlice>, of_service: Config, known: Known) {
    let events = watcher(slices, of_service).default_backoff();
    pin_mut!(events);
    while let Some(event) = events.next().await {
        if let Ok(event) = event {
            known.lock().take_in(event);
        }
    }
}
