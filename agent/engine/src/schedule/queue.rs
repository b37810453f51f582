//! Requests that wait for a slot.

use std::collections::VecDeque;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use stowage_placement::Reason;
use tokio::sync::{mpsc, oneshot};

use crate::api::{EngineError, GenerateEvent, GenerateRequest, MeasuredSpeed};

pub struct GenerateJob {
    pub request: GenerateRequest,
    pub events: mpsc::Sender<GenerateEvent>,
    pub submitted: Instant,
}

pub struct EmbedJob {
    pub inputs: Vec<Vec<u32>>,
    pub reply: oneshot::Sender<Result<Vec<Vec<f32>>, EngineError>>,
}

pub enum Job {
    Generate(GenerateJob),
    Embed(EmbedJob),
    SelfTest(oneshot::Sender<Result<(), EngineError>>),
}

impl Job {
    /// Nobody waits for the answer any more.
    fn is_abandoned(&self) -> bool {
        match self {
            Job::Generate(job) => job.events.is_closed(),
            Job::Embed(job) => job.reply.is_closed(),
            Job::SelfTest(reply) => reply.is_closed(),
        }
    }
}

/// Who wants to know how fast the model is, and waits until nobody wants anything else.
pub type Measurement = oneshot::Sender<Result<MeasuredSpeed, EngineError>>;

/// First come, first served, and not too many.
pub struct Queue {
    state: Mutex<State>,
    changed: Condvar,
    capacity: usize,
}

#[derive(Default)]
struct State {
    jobs: VecDeque<Job>,
    measurement: Option<Measurement>,
    closed: bool,
}

impl Queue {
    pub fn new(capacity: usize) -> Queue {
        Queue { state: Mutex::default(), changed: Condvar::new(), capacity }
    }

    /// Errors: Draining once closed, QueueFull where there is no room.
    pub fn push(&self, job: Job) -> Result<(), EngineError> {
        let mut state = self.lock_open()?;
        if state.jobs.len() >= self.capacity {
            state.jobs.retain(|job| !job.is_abandoned());
        }
        if state.jobs.len() >= self.capacity {
            return Err(EngineError::new(
                Reason::QueueFull,
                format!("{} requests are waiting, as many as may; try again later", self.capacity),
            ));
        }
        state.jobs.push_back(job);
        self.changed.notify_one();
        Ok(())
    }

    /// The next job that somebody still waits for. A self-test only `when_idle`: it needs the model to itself, and what came later waits behind it.
    pub fn pop(&self, when_idle: bool) -> Option<Job> {
        let mut state = self.lock();
        while let Some(job) = state.jobs.front() {
            if matches!(job, Job::SelfTest(_)) && !when_idle {
                return None;
            }
            let job = state.jobs.pop_front();
            if job.as_ref().is_some_and(|job| !job.is_abandoned()) {
                return job;
            }
        }
        None
    }

    /// In place of an earlier one, who hears nothing then. Errors: Draining once closed.
    pub fn push_measurement(&self, measurement: Measurement) -> Result<(), EngineError> {
        self.lock_open()?.measurement = Some(measurement);
        self.changed.notify_one();
        Ok(())
    }

    /// Whoever waits to hear how fast the model is, where nobody wants anything else.
    pub fn pop_measurement(&self) -> Option<Measurement> {
        let mut state = self.lock();
        if state.jobs.is_empty() && !state.closed { state.measurement.take() } else { None }
    }

    /// Waits for something to do; false where there is nothing and nothing can come.
    pub fn wait(&self) -> bool {
        let nothing = |state: &mut State| state.jobs.is_empty() && state.measurement.is_none() && !state.closed;
        let state = self.changed.wait_while(self.lock(), nothing).unwrap_or_else(PoisonError::into_inner);
        !state.jobs.is_empty() || !state.closed
    }

    /// Whether nobody waits for an answer, and it is not closed.
    pub fn is_quiet(&self) -> bool {
        let state = self.lock();
        state.jobs.is_empty() && !state.closed
    }

    pub fn close(&self) {
        let mut state = self.lock();
        state.closed = true;
        state.measurement = None;
        drop(state);
        self.changed.notify_all();
    }

    pub fn len(&self) -> usize {
        self.lock().jobs.len()
    }

    fn lock_open(&self) -> Result<MutexGuard<'_, State>, EngineError> {
        let state = self.lock();
        if state.closed {
            return Err(EngineError::new(Reason::Draining, "the replica is shutting down and takes no new requests"));
        }
        Ok(state)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // A job is pushed or popped whole, so a panic elsewhere leaves nothing half done.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
