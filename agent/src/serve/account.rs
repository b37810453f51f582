//! The account of one request: what it cost and how it ended, for metrics and the access log. Never what it said.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use http::HeaderMap;
use stowage_engine::Finish;

use super::error::Fault;
use super::metrics::{Metrics, ModelLabels, RequestLabels};

/// Shared by all who work on one request; settled when the last of them lets go.
#[derive(Clone)]
pub struct Account(Arc<Open>);

struct Open {
    metrics: Arc<Metrics>,
    api: &'static str,
    started: Instant,
    trace: Option<String>,
    figures: Mutex<Figures>,
}

#[derive(Default)]
struct Figures {
    /// `None` until the request ended by itself; what is dropped before was cancelled by its client.
    outcome: Option<&'static str>,
    model: String,
    stream: bool,
    first_token: Option<Duration>,
    prompt_tokens: u64,
    cached_tokens: u64,
    lost_tokens: u64,
    generated_tokens: u64,
    queued: Duration,
}

impl Account {
    /// Opens the account of a request that arrived now. Its `traceparent` (W3C) goes into the log.
    pub fn open(metrics: Arc<Metrics>, api: &'static str, headers: &HeaderMap) -> Account {
        let trace = headers.get("traceparent").and_then(|value| value.to_str().ok()).map(str::to_owned);
        Account(Arc::new(Open { metrics, api, started: Instant::now(), trace, figures: Mutex::default() }))
    }

    fn figures(&self) -> MutexGuard<'_, Figures> {
        self.0.figures.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn elapsed(&self) -> Duration {
        self.0.started.elapsed()
    }

    /// The ModelDeployment that serves the request.
    pub fn model(&self, full_name: String) {
        self.figures().model = full_name;
    }

    pub fn streams(&self) {
        self.figures().stream = true;
    }

    /// Text arrived; the first time counts.
    pub fn text_arrived(&self) {
        let after = self.elapsed();
        let mut figures = self.figures();
        if figures.first_token.is_none() {
            figures.first_token = Some(after);
            let labels = ModelLabels { model: figures.model.clone(), api: self.0.api };
            drop(figures);
            self.0.metrics.first_token(&labels, after);
        }
    }

    /// A generation finished; a request may have several.
    pub fn generated(&self, finish: &Finish) {
        let mut figures = self.figures();
        figures.prompt_tokens += u64::from(finish.prompt_tokens);
        figures.cached_tokens += u64::from(finish.cached_tokens);
        figures.lost_tokens += u64::from(finish.lost_tokens);
        figures.generated_tokens += u64::from(finish.generated_tokens);
        figures.queued += finish.queued;
    }

    pub fn embedded(&self, tokens: u64) {
        self.figures().prompt_tokens += tokens;
    }

    /// The request ended as it should.
    pub fn finished(&self) {
        self.figures().outcome.get_or_insert("ok");
    }

    pub fn failed(&self, fault: &Fault) {
        self.figures().outcome.get_or_insert(fault.kind.code());
    }

    /// The door knows a status, not a kind.
    pub fn ended_as(&self, outcome: &'static str) {
        self.figures().outcome.get_or_insert(outcome);
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        let figures = std::mem::take(self.figures.get_mut().unwrap_or_else(PoisonError::into_inner));
        let Figures { outcome, model, stream, first_token, prompt_tokens, cached_tokens, lost_tokens, generated_tokens, queued } = figures;
        let outcome = outcome.unwrap_or("cancelled");
        let duration = self.started.elapsed();
        if prompt_tokens + generated_tokens > 0 {
            let labels = ModelLabels { model: model.clone(), api: self.api };
            self.metrics.tokens(&labels, prompt_tokens, generated_tokens);
            self.metrics.lost_tokens(&labels, lost_tokens);
        }
        tracing::info!(
            target: "stowage::access",
            api = self.api,
            model,
            outcome,
            stream,
            duration_ms = duration.as_millis() as u64,
            first_token_ms = first_token.map(|after| after.as_millis() as u64),
            queued_ms = queued.as_millis() as u64,
            prompt_tokens,
            cached_tokens,
            lost_tokens,
            generated_tokens,
            traceparent = self.trace.as_deref(),
            "request"
        );
        self.metrics.request_ended(RequestLabels { model, api: self.api, outcome }, duration);
    }
}
