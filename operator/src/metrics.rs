//! What the operator counts, for Prometheus.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};

use axum::Router;
use axum::http::{StatusCode, header};
use axum::response::IntoResponse;
use axum::routing::get;
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::{Registry, Unit};
use stowage_crds::ModelDeployment;
use stowage_crds::conditions::ConditionType;
use stowage_crds::model_deployment::DeviceSelector;

use crate::cache::Key;
use crate::leader::Contact;
use crate::ledger::Ledger;
use crate::state::State;
use crate::step::Notice;

type Labels = Vec<(&'static str, String)>;

#[derive(Default)]
pub struct Metrics {
    decisions: Family<Labels, Counter>,
    writes: Family<Labels, Counter>,
    account: Mutex<Account>,
    scheduled: Waited,
    ready: Waited,
    leads: Gauge,
}

/// How everything stood after a round. It is replaced as a whole, so that no scrape meets half of one.
#[derive(Clone, Debug, Default)]
struct Account {
    promised: Family<Labels, Gauge>,
    offered: Family<Labels, Gauge>,
    conditions: Family<Labels, Gauge>,
}

impl Account {
    fn of(state: &State) -> Account {
        let account = Account::default();
        state.deployments.iter().for_each(|(key, deployment)| account.take_in_deployment(key, deployment));
        state.model_nodes.iter().for_each(|(key, node)| account.take_in_node(key, &Ledger::new(node, state.defaults)));
        account
    }

    fn take_in_deployment(&self, key: &Key, deployment: &ModelDeployment) {
        for condition in deployment.status.iter().flat_map(|status| &status.conditions) {
            let labels = vec![
                ("model", format!("{}/{}", key.namespace, key.name)),
                ("type", condition.type_.clone()),
                ("reason", condition.reason.clone()),
            ];
            self.conditions.get_or_create(&labels).set((condition.status == "True").into());
        }
    }

    fn take_in_node(&self, key: &Key, ledger: &Ledger<'_>) {
        let devices = ledger.devices(&DeviceSelector::default());
        for device in devices.gpus.iter().chain([&devices.host]) {
            let labels = vec![("node", key.name.clone()), ("device", device.id.clone())];
            let promised: u64 = ledger.holdings(&device.id).iter().map(|(promised, _)| promised.0).sum();
            self.promised.get_or_create(&labels).set(promised.try_into().unwrap_or(i64::MAX));
            self.offered.get_or_create(&labels).set(device.offered.0.try_into().unwrap_or(i64::MAX));
        }
    }
}

/// From 10 ms to about three quarters of an hour.
struct Waited(Histogram);

impl Default for Waited {
    fn default() -> Waited {
        Waited(Histogram::new(exponential_buckets(0.01, 2.0, 19)))
    }
}

impl Metrics {
    pub fn told(&self, notice: &Notice) {
        self.decisions.get_or_create(&vec![("reason", notice.reason.as_str().to_owned())]).inc();
    }

    pub fn wrote(&self, kind: &str, result: &str) {
        self.writes.get_or_create(&vec![("kind", kind.to_owned()), ("result", result.to_owned())]).inc();
    }

    /// From a new generation of a ModelDeployment until this was true of it.
    pub fn waited(&self, condition: ConditionType, seconds: f64) {
        match condition {
            ConditionType::Scheduled => self.scheduled.0.observe(seconds),
            _ => self.ready.0.observe(seconds),
        }
    }

    pub fn leads(&self, leads: bool) {
        self.leads.set(leads.into());
        if !leads {
            // What it knows grows old from here; the new leader has the ledger.
            self.replace_account(Account::default());
        }
    }

    /// The ledger as it stands, and what holds of the ModelDeployments.
    pub fn account(&self, state: &State) {
        self.replace_account(Account::of(state));
    }

    fn replace_account(&self, account: Account) {
        *self.account.lock().unwrap_or_else(PoisonError::into_inner) = account;
    }

    /// All of it as OpenMetrics text.
    pub fn text(&self) -> String {
        let mut text = String::new();
        // Writing to a String can't fail, and an encoding error of a metric that we defined would be seen by its tests.
        if let Err(error) = encode(&mut text, &self.registry()) {
            tracing::error!(%error, "metrics could not be written");
        }
        text
    }

    fn registry(&self) -> Registry {
        let mut registry = Registry::with_prefix("stowage_operator");
        registry.register("decisions", "Transitions told to users, by reason", self.decisions.clone());
        registry.register("writes", "Writes to the API server, by kind and result", self.writes.clone());
        let Account { promised, offered, conditions } = self.account.lock().unwrap_or_else(PoisonError::into_inner).clone();
        registry.register("promised_bytes", "Bytes promised to replicas on a device", promised);
        registry.register("offered_bytes", "Bytes that a device offers to another replica", offered);
        let help = "Whether a condition of a ModelDeployment is true, with its reason";
        registry.register("condition", help, conditions);
        let help = "From seeing a new generation of a ModelDeployment until every replica has a place";
        registry.register_with_unit("time_to_scheduled", help, Unit::Seconds, self.scheduled.0.clone());
        let help = "From seeing a new generation of a ModelDeployment until all replicas serve";
        registry.register_with_unit("time_to_ready", help, Unit::Seconds, self.ready.0.clone());
        registry.register("leads", "Whether this operator leads", self.leads.clone());
        registry
    }
}

/// Serves `/metrics`, `/healthz` and `/readyz`; the last says no where the API server is out of reach.
pub async fn serve(address: SocketAddr, metrics: Arc<Metrics>, contact: Contact) -> std::io::Result<()> {
    let listener = tokio::net::TcpListener::bind(address).await?;
    axum::serve(listener, router(metrics, contact)).await
}

fn router(metrics: Arc<Metrics>, contact: Contact) -> Router {
    let text = move || {
        let text = metrics.text();
        async move { ([(header::CONTENT_TYPE, "application/openmetrics-text; version=1.0.0; charset=utf-8")], text).into_response() }
    };
    let ready = move || {
        let lost = contact.lost();
        async move { lost.map_or_else(|| "ok".into_response(), |why| (StatusCode::SERVICE_UNAVAILABLE, why).into_response()) }
    };
    Router::new().route("/metrics", get(text)).route("/healthz", get(|| async { "ok" })).route("/readyz", get(ready))
}
