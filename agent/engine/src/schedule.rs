//! Who is served when: one thread owns the model and serves several sequences at once.
//!
//! Each round takes one step of the model. In its batch are the next token of every sequence that is being answered, and as much of the prompts that
//! are still being read as `num_batch` leaves room for; so a long prompt delays the others' tokens by one step, not by its whole length.
//! Rows that are left over verify guesses at what is said next (`look_up`).
//!
//! A slot keeps its sequence in the cache when its answer ends, and the next prompt that begins alike (the same chat's next turn) is read from there on.

mod embedding;
mod generation;
mod held;
mod look_up;
mod queue;
mod round;
mod slot;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use stowage_placement::Reason;
use tokio::sync::{mpsc, oneshot, watch};

use crate::api::{EngineError, GenerateEvent, GenerateRequest, MeasuredSpeed};
use crate::batch::Batch;
use crate::cache::Checkpoint;
use crate::graph::Pooling;
use crate::model::LoadedModel;
use crate::sample;
use crate::tokenizer::Tokenizer;
pub use look_up::Speculation;
use queue::{EmbedJob, GenerateJob, Job, Queue};
use round::Rounds;

/// Requests that may wait for a slot; Ollama's default (`OLLAMA_MAX_QUEUE`).
pub const MAX_QUEUE: usize = 512;

/// What the scheduler needs of a model; a cache of `num_ctx` places a slot, which may be written again from places that `can_rewind` tells.
pub trait Model: Send {
    /// Logits `[batch.wanted.len(), vocabulary]`.
    fn step(&mut self, batch: &Batch) -> Result<&[f32], EngineError>;
    /// Hidden states `[batch.tokens.len(), embedding]`.
    fn embed_step(&mut self, batch: &Batch) -> Result<&[f32], EngineError>;
    fn self_test(&mut self) -> Result<(), EngineError>;
    fn measure_speed(&mut self) -> Result<MeasuredSpeed, EngineError>;
    /// Whether a slot of which `from` tokens are cached can go on after its first `to`.
    fn can_rewind(&self, from: usize, to: usize) -> bool;
    /// Keeps what a slot can't be taken back to, or puts it back.
    fn checkpoint(&mut self, slot: u32, index: usize, copy: Checkpoint);
    /// Bytes of weights that are read from a file as yet.
    fn in_file(&self) -> usize;
    /// Brings about so many of those over to memory of its own.
    fn bring_over(&mut self, bytes: usize);
    /// Whether it gives logits.
    fn generates(&self) -> bool;
    fn pooling(&self) -> Pooling;
    /// The longest text that it embeds.
    fn longest_text(&self) -> u32;
    fn vocabulary(&self) -> usize;
    fn embedding(&self) -> usize;
    fn slots(&self) -> u32;
    fn num_ctx(&self) -> u32;
    fn num_batch(&self) -> u32;
    /// Most rows of logits in one step; never fewer than `slots`.
    fn max_wanted(&self) -> usize;
}

impl Model for LoadedModel {
    fn step(&mut self, batch: &Batch) -> Result<&[f32], EngineError> {
        LoadedModel::step(self, batch)
    }
    fn embed_step(&mut self, batch: &Batch) -> Result<&[f32], EngineError> {
        LoadedModel::embed_step(self, batch)
    }
    fn self_test(&mut self) -> Result<(), EngineError> {
        LoadedModel::self_test(self)
    }
    fn measure_speed(&mut self) -> Result<MeasuredSpeed, EngineError> {
        LoadedModel::measure_speed(self)
    }
    fn can_rewind(&self, from: usize, to: usize) -> bool {
        LoadedModel::can_rewind(self, from, to)
    }
    fn checkpoint(&mut self, slot: u32, index: usize, copy: Checkpoint) {
        LoadedModel::checkpoint(self, slot, index, copy);
    }
    fn in_file(&self) -> usize {
        LoadedModel::in_file(self)
    }
    fn bring_over(&mut self, bytes: usize) {
        LoadedModel::bring_over(self, bytes);
    }
    fn generates(&self) -> bool {
        LoadedModel::generates(self)
    }
    fn pooling(&self) -> Pooling {
        LoadedModel::pooling(self)
    }
    fn longest_text(&self) -> u32 {
        LoadedModel::longest_text(self)
    }
    fn vocabulary(&self) -> usize {
        LoadedModel::vocabulary(self)
    }
    fn embedding(&self) -> usize {
        LoadedModel::embedding(self)
    }
    fn slots(&self) -> u32 {
        LoadedModel::slots(self)
    }
    fn num_ctx(&self) -> u32 {
        LoadedModel::num_ctx(self)
    }
    fn num_batch(&self) -> u32 {
        LoadedModel::num_batch(self)
    }
    fn max_wanted(&self) -> usize {
        LoadedModel::max_wanted(self)
    }
}

/// How busy a replica is at this moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Occupancy {
    /// Sequences being read or answered.
    pub active: usize,
    /// Of so many.
    pub slots: usize,
    /// Requests that wait for a slot.
    pub queued: usize,
}

/// The way to the thread that has the model. Dropped, it lets the thread finish what it has and end.
pub struct Scheduler {
    queue: Arc<Queue>,
    active: Arc<AtomicUsize>,
    /// Closed when the thread has ended and the model is gone.
    ended: watch::Receiver<()>,
    vocabulary: usize,
    num_ctx: u32,
    generates: bool,
    longest_text: u32,
    slots: usize,
}

impl Scheduler {
    /// Starts the thread. `max_queue` requests may wait for a slot.
    pub fn start(model: Box<dyn Model>, tokenizer: Arc<Tokenizer>, max_queue: usize) -> Result<Scheduler, EngineError> {
        Scheduler::start_with(model, tokenizer, max_queue, Speculation::default())
    }

    /// The same with or without guesses, for comparing them: what is answered is the same.
    pub fn start_with(
        model: Box<dyn Model>,
        tokenizer: Arc<Tokenizer>,
        max_queue: usize,
        speculation: Speculation,
    ) -> Result<Scheduler, EngineError> {
        let queue = Arc::new(Queue::new(max_queue));
        let active = Arc::new(AtomicUsize::new(0));
        let (running, ended) = watch::channel(());
        let (vocabulary, num_ctx, slots) = (model.vocabulary(), model.num_ctx(), model.slots() as usize);
        let (generates, longest_text) = (model.generates(), model.longest_text());
        let rounds = Rounds::new(model, tokenizer, Arc::clone(&queue), Arc::clone(&active), speculation);
        let thread = std::thread::Builder::new().name("scheduler".into()).spawn(move || {
            rounds.run();
            drop(running);
        });
        thread.map_err(|error| EngineError::new(Reason::LoadFailed, format!("starting the scheduler's thread: {error}")))?;
        Ok(Scheduler { queue, active, ended, vocabulary, num_ctx, generates, longest_text, slots })
    }

    /// Queues a generation.
    ///
    /// Errors: InvalidRequest, PromptTooLong, QueueFull, Draining.
    pub fn generate(&self, request: GenerateRequest) -> Result<mpsc::Receiver<GenerateEvent>, EngineError> {
        if !self.generates {
            return Err(generates_no_text());
        }
        sample::check(&request.sampling)?;
        self.check_tokens("the prompt", &request.prompt)?;
        let prompt = request.prompt.len();
        if prompt >= self.num_ctx as usize {
            let message = format!(
                "the prompt has {prompt} tokens; with num_ctx {} it may have {} at most, so that an answer has room",
                self.num_ctx,
                self.num_ctx - 1
            );
            return Err(EngineError::new(Reason::PromptTooLong, message));
        }
        // Room for every event there can be: a reader that is slow, or does not read at all, never holds up the thread or the other sequences.
        let most = (self.num_ctx as usize - prompt).min(request.max_tokens.map_or(usize::MAX, |max| max as usize)) + 2;
        let (events, receiver) = mpsc::channel(most);
        self.queue.push(Job::Generate(GenerateJob { request, events, submitted: Instant::now() }))?;
        Ok(receiver)
    }

    /// One vector for each input, of length 1: its tokens' hidden states, pooled as the model has it.
    pub async fn embed(&self, inputs: &[Vec<u32>]) -> Result<Vec<Vec<f32>>, EngineError> {
        for (i, input) in inputs.iter().enumerate() {
            self.check_tokens(&format!("input {i}"), input)?;
            if input.len() > self.longest_text as usize {
                let message = format!("input {i} has {} tokens; this replica embeds texts of at most {}", input.len(), self.longest_text);
                return Err(EngineError::new(Reason::PromptTooLong, message));
            }
        }
        if inputs.is_empty() {
            return Ok(Vec::new());
        }
        let (reply, answer) = oneshot::channel();
        self.queue.push(Job::Embed(EmbedJob { inputs: inputs.to_vec(), reply }))?;
        answer.await.unwrap_or_else(|_| Err(thread_gone()))
    }

    /// Waits until no sequence is active, then reads a short prompt and looks at what comes out. What the slots had cached is lost.
    pub async fn self_test(&self) -> Result<(), EngineError> {
        let (reply, answer) = oneshot::channel();
        self.queue.push(Job::SelfTest(reply))?;
        answer.await.unwrap_or_else(|_| Err(thread_gone()))
    }

    /// Waits until all weights are in memory and nobody wants anything else, then reads a prompt and generates a few tokens; how fast that was. What the slots
    /// had cached is lost.
    pub async fn measure_speed(&self) -> Result<MeasuredSpeed, EngineError> {
        let (measurement, answer) = oneshot::channel();
        self.queue.push_measurement(measurement)?;
        answer.await.unwrap_or_else(|_| Err(thread_gone()))
    }

    pub fn occupancy(&self) -> Occupancy {
        Occupancy { active: self.active.load(Ordering::Relaxed), slots: self.slots, queued: self.queue.len() }
    }

    /// Takes nothing new, finishes what is running and what waits, frees the model, and returns.
    pub async fn shutdown(&self) {
        self.queue.close();
        let mut ended = self.ended.clone();
        while ended.changed().await.is_ok() {}
    }

    fn check_tokens(&self, what: &str, tokens: &[u32]) -> Result<(), EngineError> {
        if tokens.is_empty() {
            return Err(EngineError::new(Reason::InvalidRequest, format!("{what} has no tokens")));
        }
        match tokens.iter().find(|&&token| token as usize >= self.vocabulary) {
            Some(token) => Err(EngineError::new(
                Reason::InvalidRequest,
                format!("{what} has token {token}; the model knows those below {}", self.vocabulary),
            )),
            None => Ok(()),
        }
    }
}

impl Drop for Scheduler {
    fn drop(&mut self) {
        self.queue.close();
    }
}

pub fn generates_no_text() -> EngineError {
    EngineError::new(Reason::InvalidRequest, "this model turns texts into vectors (embeddings) and generates no text")
}

fn thread_gone() -> EngineError {
    EngineError::new(Reason::WorkerCrashed, "the thread that had the model ended unexpectedly")
}

#[cfg(test)]
mod tests;
