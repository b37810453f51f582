//! A client that asks a ModelDeployment all the while through its endpoints, and notes every answer.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use tokio::task::{JoinHandle, JoinSet};

use crate::endpoints::{Endpoint, Endpoints};

/// Between two requests.
const EVERY: Duration = Duration::from_millis(50);
/// An endpoint from which so many answers are waited for is asked nothing more until one comes: a machine too busy to keep up is not what is tested.
const MOST_WAITED_FOR: usize = 4;
/// For one answer. Long, since what was asked of a paused replica is to be answered once it goes on.
const ANSWER_DEADLINE: Duration = Duration::from_secs(60);

pub struct Traffic {
    shared: Arc<Shared>,
    client: JoinHandle<()>,
}

struct Shared {
    model: String,
    endpoints: Endpoints,
    answers: Mutex<Vec<Answer>>,
    disturbed: Mutex<Vec<(Endpoint, Instant)>>,
    ends: AtomicBool,
    turn: AtomicUsize,
    /// One entry for each answer that is waited for.
    waited_for: Mutex<Vec<Endpoint>>,
}

/// One request that is over.
#[derive(Clone, Debug)]
struct Answer {
    /// None: there was no endpoint to send it to.
    endpoint: Option<Endpoint>,
    sent: Instant,
    ended: Instant,
    /// Why it failed.
    error: Option<String>,
}

/// What came of all requests.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    pub answered: usize,
    /// Failed, on a replica that was killed or paused just then.
    pub lost_with_replica: usize,
    /// Waited for longer than a second.
    pub slow: usize,
}

impl Traffic {
    /// Asks the model at these endpoints from now on.
    pub fn start(model: &str, endpoints: Endpoints) -> Traffic {
        let shared = Arc::new(Shared {
            model: model.to_owned(),
            endpoints,
            answers: Mutex::default(),
            disturbed: Mutex::default(),
            ends: AtomicBool::new(false),
            turn: AtomicUsize::new(0),
            waited_for: Mutex::default(),
        });
        Traffic { client: tokio::spawn(ask_on_and_on(shared.clone())), shared }
    }

    pub fn endpoints(&self) -> &Endpoints {
        &self.shared.endpoints
    }

    /// Requests that were answered so far.
    pub fn answered(&self) -> usize {
        lock(&self.shared.answers).iter().filter(|answer| answer.error.is_none()).count()
    }

    /// The replica behind `endpoint` is killed or paused right after this: requests on it may fail until its endpoint goes.
    pub fn disturb(&self, endpoint: &Endpoint) -> Instant {
        let now = Instant::now();
        lock(&self.shared.disturbed).push((endpoint.clone(), now));
        now
    }

    /// Waits for the last answers. A failure that no disturbance explains is an error, which lists them.
    pub async fn stop(self) -> Result<Counts> {
        self.shared.ends.store(true, Ordering::Relaxed);
        self.client.await.context("waiting for the last answers")?;
        let answers = lock(&self.shared.answers);
        let failed: Vec<&Answer> = answers.iter().filter(|answer| answer.error.is_some()).collect();
        let (lost, unexplained): (Vec<&Answer>, Vec<&Answer>) = failed.into_iter().partition(|answer| self.shared.is_explained(answer));
        let first = answers.first().map_or_else(Instant::now, |answer| answer.sent);
        let listed: Vec<String> = unexplained.iter().map(|answer| answer.told(first)).collect();
        ensure!(listed.is_empty(), "{} of {} requests failed: {listed:#?}", listed.len(), answers.len());
        let slow = answers.iter().filter(|answer| answer.error.is_none() && answer.ended - answer.sent > Duration::from_secs(1)).count();
        Ok(Counts { answered: answers.len() - lost.len(), lost_with_replica: lost.len(), slow })
    }
}

impl Shared {
    /// Whether it was in flight on what was killed or paused, or was sent there before the endpoint went.
    fn is_explained(&self, answer: &Answer) -> bool {
        let Some(endpoint) = &answer.endpoint else { return false };
        let sent_in_time = |when: Instant| self.endpoints.departed(endpoint, when).is_none_or(|gone| answer.sent <= gone);
        lock(&self.disturbed).iter().any(|(on, when)| on == endpoint && answer.ended >= *when && sent_in_time(*when))
    }

    /// Asks one of the endpoints that are ready, in turns; not those from which much is waited for.
    async fn ask(&self) {
        let (ready, sent) = (self.endpoints.ready(), Instant::now());
        if ready.is_empty() {
            let error = Some("no endpoint was ready".to_owned());
            return lock(&self.answers).push(Answer { endpoint: None, sent, ended: sent, error });
        }
        let turn = self.turn.fetch_add(1, Ordering::Relaxed);
        let in_turn = ready.iter().cycle().skip(turn % ready.len()).take(ready.len());
        let Some(endpoint) = self.take_place(in_turn) else { return };
        let error = generate(&endpoint.url(), &self.model).await.err().map(|error| format!("{error:#}"));
        let mut waited_for = lock(&self.waited_for);
        let place = waited_for.iter().position(|other| *other == endpoint);
        place.map(|place| waited_for.swap_remove(place));
        lock(&self.answers).push(Answer { endpoint: Some(endpoint), sent, ended: Instant::now(), error });
    }

    fn take_place<'e>(&self, mut endpoints: impl Iterator<Item = &'e Endpoint>) -> Option<Endpoint> {
        let mut waited_for = lock(&self.waited_for);
        let is_free = |endpoint: &&Endpoint| waited_for.iter().filter(|other| other == endpoint).count() < MOST_WAITED_FOR;
        let found = endpoints.find(is_free).cloned()?;
        waited_for.push(found.clone());
        Some(found)
    }
}

impl Answer {
    fn told(&self, first: Instant) -> String {
        let at = |time: Instant| (time - first).as_secs_f64();
        let replica = self.endpoint.as_ref().map_or("nowhere", |endpoint| &endpoint.replica);
        format!("{:.2} s to {:.2} s, {replica}: {}", at(self.sent), at(self.ended), self.error.as_deref().unwrap_or("answered"))
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

async fn ask_on_and_on(shared: Arc<Shared>) {
    let (mut asked, mut ticks) = (JoinSet::new(), tokio::time::interval(EVERY));
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Skip);
    while !shared.ends.load(Ordering::Relaxed) {
        ticks.tick().await;
        while asked.try_join_next().is_some() {}
        let one = shared.clone();
        asked.spawn(async move { one.ask().await });
    }
    asked.join_all().await;
}

/// One token, over a connection of its own, as from a client that has not been here before.
async fn generate(url: &str, model: &str) -> Result<()> {
    let options = json!({"temperature": 0, "num_predict": 1});
    let body = json!({"model": model, "prompt": "1, 2,", "raw": true, "stream": false, "options": options});
    let client = reqwest::Client::builder().timeout(ANSWER_DEADLINE).build()?;
    let response = client.post(format!("{url}/api/generate")).json(&body).send().await.context("sending")?;
    let (status, text) = (response.status(), response.text().await.context("reading")?);
    ensure!(status.is_success(), "{status}: {text}");
    let answer: Value = serde_json::from_str(&text).context("reading the answer")?;
    ensure!(answer["done"] == true, "not done: {answer}");
    Ok(())
}
