//! What Prometheus may ask: requests and their outcome, tokens, time to the first one, durations, running and queued.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use axum::response::{IntoResponse, Response};
use http::header;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::{Registry, Unit};

/// OpenMetrics text, as prometheus-client writes it.
const OPEN_METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct RequestLabels {
    /// `NAMESPACE/NAME` of the ModelDeployment; empty where the request named none that is here, so that clients can't invent labels.
    pub model: String,
    pub api: &'static str,
    pub outcome: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct ModelLabels {
    pub model: String,
    pub api: &'static str,
}

type Histograms = Family<ModelLabels, Histogram, fn() -> Histogram>;

/// One set of metrics for each server: a worker's, or the node's door's.
pub struct Metrics {
    registry: Registry,
    resident: Gauge,
    requests: Family<RequestLabels, Counter>,
    prompt_tokens: Family<ModelLabels, Counter>,
    lost_tokens: Family<ModelLabels, Counter>,
    generated_tokens: Family<ModelLabels, Counter>,
    first_token: Histograms,
    duration: Histograms,
    running: Gauge,
    queued: Gauge,
    generations: AtomicU64,
    slots: u64,
}

/// From 5 ms to about three minutes, each a bit more than the last: a first token's time.
fn first_token_histogram() -> Histogram {
    Histogram::new(exponential_buckets(0.005, 2.0, 16))
}

/// From 10 ms to about three quarters of an hour: a whole answer's time.
fn duration_histogram() -> Histogram {
    Histogram::new(exponential_buckets(0.01, 2.0, 19))
}

/// Bytes; 0 where the kernel does not say.
fn resident_memory() -> i64 {
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap_or_default();
    let pages = statm.split(' ').nth(1).and_then(|pages| pages.parse::<i64>().ok()).unwrap_or(0);
    pages.saturating_mul(i64::try_from(rustix::param::page_size()).unwrap_or(0))
}

impl Metrics {
    /// `slots`: the sequences that are served at once; what is under way beyond them is queued. `None`: nothing is generated here.
    pub fn new(prefix: &str, slots: Option<u32>) -> Metrics {
        let mut root = Registry::default();
        let resident = Gauge::default();
        root.register("process_resident_memory_bytes", "Memory that this process has", resident.clone());
        let registry = root.sub_registry_with_prefix(prefix);
        let requests = Family::default();
        let prompt_tokens = Family::default();
        let lost_tokens = Family::default();
        let generated_tokens = Family::default();
        let first_token: Histograms = Family::new_with_constructor(first_token_histogram);
        let duration: Histograms = Family::new_with_constructor(duration_histogram);
        let (running, queued) = (Gauge::default(), Gauge::default());
        registry.register("requests", "Requests by model, API and outcome", requests.clone());
        registry.register("prompt_tokens", "Tokens read from prompts", prompt_tokens.clone());
        let help =
            "Tokens of prompts read again although they had been in the cache: layers with a window had let go of what they look back on";
        registry.register("prompt_tokens_read_again", help, lost_tokens.clone());
        registry.register("generated_tokens", "Tokens generated", generated_tokens.clone());
        let help = "From a request's arrival to its first text";
        registry.register_with_unit("time_to_first_token", help, Unit::Seconds, first_token.clone());
        registry.register_with_unit("request_duration", "From a request's arrival to its end", Unit::Seconds, duration.clone());
        if slots.is_some() {
            registry.register("generations_running", "Generations that have a slot", running.clone());
            registry.register("generations_queued", "Generations that wait for a slot", queued.clone());
        }
        Metrics {
            registry: root,
            resident,
            requests,
            prompt_tokens,
            lost_tokens,
            generated_tokens,
            first_token,
            duration,
            running,
            queued,
            generations: AtomicU64::new(0),
            slots: slots.map_or(0, u64::from),
        }
    }

    /// With what another part of the process counts.
    pub fn beside(mut self, other: impl Collector) -> Metrics {
        self.registry.register_collector(Box::new(other));
        self
    }

    pub fn generation_began(&self) {
        self.generations.fetch_add(1, Ordering::Relaxed);
    }

    pub fn generation_ended(&self) {
        self.generations.fetch_sub(1, Ordering::Relaxed);
    }

    pub fn request_ended(&self, labels: RequestLabels, duration: Duration) {
        let model = ModelLabels { model: labels.model.clone(), api: labels.api };
        self.requests.get_or_create(&labels).inc();
        self.duration.get_or_create(&model).observe(duration.as_secs_f64());
    }

    /// Tokens that were read again though an earlier prompt had them.
    pub fn lost_tokens(&self, model: &ModelLabels, lost: u64) {
        self.lost_tokens.get_or_create(model).inc_by(lost);
    }

    pub fn tokens(&self, model: &ModelLabels, prompt: u64, generated: u64) {
        self.prompt_tokens.get_or_create(model).inc_by(prompt);
        self.generated_tokens.get_or_create(model).inc_by(generated);
    }

    pub fn first_token(&self, model: &ModelLabels, after: Duration) {
        self.first_token.get_or_create(model).observe(after.as_secs_f64());
    }

    /// Everything as text. The engine fills its slots before it queues, so running and queued follow from what is under way.
    pub fn text(&self) -> String {
        let under_way = self.generations.load(Ordering::Relaxed);
        let running = under_way.min(self.slots);
        self.running.set(i64::try_from(running).unwrap_or(i64::MAX));
        self.queued.set(i64::try_from(under_way - running).unwrap_or(i64::MAX));
        self.resident.set(resident_memory());
        let mut text = String::new();
        // Writing to a String can't fail, and an encoding error of a metric that we defined would be seen by its tests.
        if let Err(error) = encode(&mut text, &self.registry) {
            tracing::error!(%error, "metrics could not be written");
        }
        text
    }

    pub fn response(&self) -> Response {
        open_metrics(self.text())
    }
}

pub fn open_metrics(text: String) -> Response {
    ([(header::CONTENT_TYPE, OPEN_METRICS)], text).into_response()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_under_way_beyond_the_slots_is_queued() {
        let metrics = Metrics::new("stowage", Some(2));
        (0..5).for_each(|_| metrics.generation_began());
        metrics.generation_ended();
        let text = metrics.text();
        assert!(text.contains("stowage_generations_running 2"), "{text}");
        assert!(text.contains("stowage_generations_queued 2"), "{text}");
    }
}
