//! The thread that has the model: round after round, as long as there is work.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use stowage_placement::Reason;

use crate::api::EngineError;
use crate::batch::Batch;
use crate::cache::Checkpoint;
use crate::schedule::Model;
use crate::schedule::embedding::Embedding;
use crate::schedule::generation::Generation;
use crate::schedule::look_up::Speculation;
use crate::schedule::queue::{Job, Queue};
use crate::schedule::slot::{Slot, Work, best_for};
use crate::tokenizer::Tokenizer;

/// Of weights that were in a file at first, what is brought over to memory of the model's own after each round, at least so many bytes: little beside all the
/// weights, which a round reads.
const ROUNDS_TO_BRING_OVER: usize = 64;
const BROUGHT_AFTER_A_ROUND: usize = 2 << 20;
/// And where nobody waits for anything.
const BROUGHT_WHEN_QUIET: usize = 8 << 20;

pub struct Rounds {
    model: Box<dyn Model>,
    tokenizer: Arc<Tokenizer>,
    queue: Arc<Queue>,
    active: Arc<AtomicUsize>,
    slots: Vec<Slot>,
    round: u64,
    batch: Batch,
    /// Whether there is anything that can't be gone back to.
    needs_copies: bool,
    /// Bytes of weights that are brought over after a round.
    piece: usize,
    speculation: Speculation,
}

/// Tokens of one slot in a batch.
struct Share {
    slot: usize,
    count: usize,
    /// After the last of them comes the next token.
    wants_logits: bool,
    /// What is guessed to come then, and is in the batch after them.
    guess: Vec<u32>,
}

impl Rounds {
    pub fn new(
        model: Box<dyn Model>,
        tokenizer: Arc<Tokenizer>,
        queue: Arc<Queue>,
        active: Arc<AtomicUsize>,
        speculation: Speculation,
    ) -> Rounds {
        let slots = (0..model.slots()).map(|_| Slot::new()).collect();
        let piece = (model.in_file() / ROUNDS_TO_BRING_OVER).max(BROUGHT_AFTER_A_ROUND);
        let needs_copies = !model.can_rewind(model.num_ctx() as usize, 1);
        Rounds { model, tokenizer, queue, active, slots, round: 0, batch: Batch::default(), needs_copies, piece, speculation }
    }

    /// Until the queue is closed and all work is done.
    pub fn run(mut self) {
        loop {
            // A panic ends the answers that were in the making, with an error, and no more.
            if let Err(panic) = catch_unwind(AssertUnwindSafe(|| self.round())) {
                let message = format!("a step of inference panicked: {}", text_of(&*panic));
                tracing::error!("{message}");
                self.fail_all(&EngineError::new(Reason::InferenceFailed, message));
            }
            let idle = self.count_active() == 0;
            self.bring_over(idle);
            if idle {
                self.measure();
                if !self.queue.wait() {
                    return;
                }
            }
        }
    }

    fn round(&mut self) {
        self.slots.iter_mut().for_each(Slot::drop_abandoned);
        self.admit();
        self.count_active();
        self.round += 1;
        self.generate();
        self.embed();
    }

    fn bring_over(&mut self, idle: bool) {
        if !idle {
            return self.model.bring_over(self.piece);
        }
        while self.model.in_file() > 0 && self.queue.is_quiet() {
            self.model.bring_over(BROUGHT_WHEN_QUIET);
        }
    }

    /// Where somebody wants to know how fast the model is, as it will be from now on.
    fn measure(&mut self) {
        if self.model.in_file() == 0
            && let Some(measurement) = self.queue.pop_measurement()
        {
            measurement.send(self.try_out("measuring the speed", |model| model.measure_speed())).ok();
        }
    }

    /// What uses slot 0 while nothing is active.
    fn try_out<T>(&mut self, what: &str, run: impl FnOnce(&mut dyn Model) -> Result<T, EngineError>) -> Result<T, EngineError> {
        self.slots.iter_mut().for_each(|slot| slot.cached.clear());
        let result = catch_unwind(AssertUnwindSafe(|| run(&mut *self.model)));
        result.unwrap_or_else(|panic| Err(EngineError::new(Reason::InferenceFailed, format!("{what} panicked: {}", text_of(&*panic)))))
    }

    fn count_active(&self) -> usize {
        let active = self.slots.iter().filter(|slot| !slot.is_free()).count();
        self.active.store(active, Ordering::Relaxed);
        active
    }

    fn admit(&mut self) {
        while self.slots.iter().any(Slot::is_free) {
            let idle = self.slots.iter().all(Slot::is_free);
            let Some(job) = self.queue.pop(idle) else { return };
            match job {
                Job::Generate(job) => {
                    let Some(index) = best_for(&self.slots, &job.request.prompt) else { return };
                    let slot = &mut self.slots[index];
                    let resume = slot.resume(&job.request.prompt, |from, to| self.model.can_rewind(from, to));
                    slot.take_up(&resume);
                    if let Some(copy) = resume.copy {
                        self.model.checkpoint(index as u32, copy, Checkpoint::PutBack);
                    }
                    slot.work = Some(Work::Generate(Box::new(Generation::new(job, resume, self.model.num_ctx()))));
                }
                Job::Embed(job) => {
                    let Some(index) = best_for(&self.slots, &[]) else { return };
                    let slot = &mut self.slots[index];
                    slot.cached.clear();
                    slot.work = Some(Work::Embed(Embedding::new(job, self.model.embedding(), self.model.pooling())));
                }
                Job::SelfTest(reply) => {
                    reply.send(self.try_out("the self-test", |model| model.self_test())).ok();
                }
            }
        }
    }

    /// One step for all that are being answered.
    fn generate(&mut self) {
        let shares = self.fill_batch();
        if shares.is_empty() {
            return;
        }
        let logits = match self.model.step(&self.batch) {
            Ok(logits) => logits,
            Err(error) => {
                shares.iter().for_each(|share| self.slots[share.slot].fail(&error));
                return;
            }
        };
        let vocabulary = logits.len() / self.batch.wanted.len().max(1);
        let mut rows = logits.chunks_exact(vocabulary.max(1));
        let mut read_prompts = Vec::new();
        for share in shares {
            let slot = &mut self.slots[share.slot];
            let read = slot.unread()[..share.count].to_vec();
            slot.cached.extend(read);
            slot.written = slot.written.max(slot.cached.len() + share.guess.len());
            if !share.wants_logits {
                continue;
            }
            if matches!(&slot.work, Some(Work::Generate(generation)) if generation.is_prompt_read(slot.cached.len())) {
                read_prompts.push(share.slot);
            }
            let rows: Vec<&[f32]> = rows.by_ref().take(1 + share.guess.len()).collect();
            slot.advance(&rows, &share.guess, &self.tokenizer);
        }
        self.keep(&read_prompts);
    }

    /// Keeps what can't be gone back to, of slots that have just read their prompts. The answer's first token is not in the cache yet.
    fn keep(&mut self, slots: &[usize]) {
        for &slot in slots.iter().filter(|_| self.needs_copies) {
            let index = self.slots[slot].keep();
            self.model.checkpoint(slot as u32, index, Checkpoint::Keep);
        }
    }

    /// Next tokens first, then prompts; among each the slot that waited longest.
    fn fill_batch(&mut self) -> Vec<Share> {
        self.batch.clear();
        let mut order: Vec<usize> = (0..self.slots.len()).filter(|&i| !self.slots[i].unread().is_empty()).collect();
        order.sort_by_key(|&i| (self.slots[i].unread().len() > 1, self.slots[i].last_round));
        let mut shares = Vec::with_capacity(order.len());
        // Each has a row before any has a guess.
        let mut spare = self.model.max_wanted().min(self.model.num_batch() as usize).saturating_sub(order.len());
        let count_of_all = order.len();
        for (place, index) in order.into_iter().enumerate() {
            let room = self.model.num_batch() as usize - self.batch.tokens.len();
            let slot = &mut self.slots[index];
            let unread = slot.unread();
            let count = unread.len().min(room);
            if count == 0 {
                break;
            }
            let wants_logits = count == unread.len();
            self.batch.push_run(&unread[..count], index as u32, slot.cached.len() as u32, wants_logits);
            let guess = match self.speculation {
                Speculation::PromptLookUp => slot.guess(spare.div_ceil(count_of_all - place), |from, to| self.model.can_rewind(from, to)),
                Speculation::Off => Vec::new(),
            };
            for (token, position) in guess.iter().zip(slot.cached.len() + count..) {
                self.batch.push_wanted(*token, index as u32, position as u32);
            }
            spare -= guess.len();
            slot.last_round = self.round;
            shares.push(Share { slot: index, count, wants_logits, guess });
        }
        shares
    }

    /// A step of its own for one slot that embeds: hidden states are wanted there, not logits.
    fn embed(&mut self) {
        let embeds = |slot: &&mut Slot| matches!(slot.work, Some(Work::Embed(_)));
        let index_and_slot = self.slots.iter_mut().enumerate().filter(|(_, slot)| embeds(slot)).min_by_key(|(_, slot)| slot.last_round);
        let Some((index, slot)) = index_and_slot else { return };
        slot.last_round = self.round;
        let Some(Work::Embed(embedding)) = &mut slot.work else { return };
        let unread = &embedding.input()[slot.cached.len()..];
        let count = unread.len().min(self.model.num_batch() as usize);
        let ended = count == unread.len();
        self.batch.clear();
        self.batch.push_run(&unread[..count], index as u32, slot.cached.len() as u32, false);
        slot.cached.extend_from_slice(&embedding.input()[slot.cached.len()..][..count]);
        slot.written = slot.cached.len();
        match self.model.embed_step(&self.batch) {
            Ok(hidden) => embedding.add(hidden, ended),
            Err(error) => return slot.fail(&error),
        }
        if ended {
            slot.cached.clear();
        }
        if embedding.is_done()
            && let Some(Work::Embed(mut embedding)) = slot.work.take()
        {
            let done = embedding.take_done();
            embedding.finish(Ok(done));
        }
    }

    fn fail_all(&mut self, error: &EngineError) {
        for slot in self.slots.iter_mut().filter(|slot| !slot.is_free()) {
            slot.fail(error);
        }
    }
}

fn text_of(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
    text.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_else(|| "no message".into())
}
