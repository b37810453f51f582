//! One answer in the making.

use std::time::Instant;

use tokio::sync::mpsc;

use crate::api::{EngineError, Finish, FinishReason, GenerateEvent, TokenLogprob};
use crate::sample::{self, Sampler};
use crate::schedule::held::Held;
use crate::schedule::look_up::LookUp;
use crate::schedule::queue::GenerateJob;
use crate::schedule::slot::Resume;
use crate::stop::{Shown, TextStream};
use crate::tokenizer::Tokenizer;

pub struct Generation {
    /// The prompt, and what was generated so far.
    tokens: Vec<u32>,
    prompt_tokens: u32,
    cached_tokens: u32,
    lost_tokens: u32,
    generated: u32,
    max_tokens: Option<u32>,
    top_logprobs: Option<u32>,
    num_ctx: u32,
    sampler: Sampler,
    held: Option<Held>,
    look_up: LookUp,
    text: TextStream,
    events: mpsc::Sender<GenerateEvent>,
    submitted: Instant,
    admitted: Instant,
    /// When the whole prompt had been read.
    prefilled: Option<Instant>,
}

impl Generation {
    pub fn new(job: GenerateJob, resume: Resume, num_ctx: u32) -> Generation {
        let GenerateJob { request, events, submitted } = job;
        let held = Held::of(&request);
        let mut sampler = Sampler::new(request.sampling, num_ctx);
        sampler.accept(&request.prompt);
        Generation {
            prompt_tokens: request.prompt.len() as u32,
            tokens: request.prompt,
            cached_tokens: resume.tokens as u32,
            lost_tokens: resume.lost as u32,
            generated: 0,
            max_tokens: request.max_tokens,
            top_logprobs: request.top_logprobs,
            num_ctx,
            sampler,
            held,
            look_up: LookUp::new(),
            text: TextStream::new(&request.stop),
            events,
            submitted,
            admitted: Instant::now(),
            prefilled: None,
        }
    }

    pub fn tokens(&self) -> &[u32] {
        &self.tokens
    }

    /// Whether so many cached tokens are just the prompt.
    pub fn is_prompt_read(&self, cached: usize) -> bool {
        cached == self.prompt_tokens as usize
    }

    /// What may come next, `most` tokens at most, and no more than leave room for one that is not guessed. Nothing before the answer's first token.
    pub fn guess(&mut self, most: usize) -> Vec<u32> {
        if self.generated == 0 {
            return Vec::new();
        }
        let left = (self.num_ctx as usize).saturating_sub(self.tokens.len());
        let left = self.max_tokens.map_or(left, |max| left.min(max.saturating_sub(self.generated) as usize));
        self.look_up.guess(&self.tokens, most.min(left.saturating_sub(1))).to_vec()
    }

    /// Notes how many tokens of a guess held.
    pub fn note_guess(&mut self, guessed: usize, held: usize) {
        self.look_up.note(guessed, held);
    }

    pub fn is_abandoned(&self) -> bool {
        self.events.is_closed()
    }

    /// Takes the logits after the last token. The answer's end, where this is it.
    ///
    /// Errors: InvalidRequest where what the answer is held to can't be followed.
    pub fn advance(&mut self, logits: &[f32], tokenizer: &Tokenizer) -> Result<Option<FinishReason>, EngineError> {
        self.prefilled.get_or_insert_with(Instant::now);
        if self.max_tokens == Some(0) {
            return Ok(Some(FinishReason::Length));
        }
        let token = self.choose(logits, tokenizer)?;
        if tokenizer.is_end(token) {
            return Ok(Some(self.end(FinishReason::Stop)));
        }
        let complete = self.held.as_mut().map_or(Ok(false), |held| held.take(token, tokenizer))?;
        self.sampler.accept(&[token]);
        self.generated += 1;
        self.tokens.push(token);
        let logprob = self.top_logprobs.map(|top| logprob(logits, token, top, tokenizer));
        let shown = self.text.push(&tokenizer.bytes(token), logprob);
        let stopped = shown.stopped;
        self.show(shown);
        if stopped {
            return Ok(Some(FinishReason::Stop));
        }
        if complete {
            return Ok(Some(self.end(FinishReason::Stop)));
        }
        let full = self.tokens.len() >= self.num_ctx as usize;
        if full || self.max_tokens.is_some_and(|max| self.generated >= max) {
            return Ok(Some(self.end(FinishReason::Length)));
        }
        Ok(None)
    }

    fn choose(&mut self, logits: &[f32], tokenizer: &Tokenizer) -> Result<u32, EngineError> {
        match &mut self.held {
            Some(held) => held.choose(&mut self.sampler, logits, tokenizer),
            None => Ok(self.sampler.sample(logits)),
        }
    }

    /// Shows what was held back.
    fn end(&mut self, reason: FinishReason) -> FinishReason {
        let rest = self.text.rest();
        self.show(rest);
        reason
    }

    pub fn finish(self, reason: FinishReason) {
        let prefilled = self.prefilled.unwrap_or_else(Instant::now);
        let finish = Finish {
            reason,
            prompt_tokens: self.prompt_tokens,
            cached_tokens: self.cached_tokens,
            lost_tokens: self.lost_tokens,
            generated_tokens: self.generated,
            queued: self.admitted - self.submitted,
            prefill: prefilled - self.admitted,
            decode: prefilled.elapsed(),
        };
        self.send(GenerateEvent::Done(finish));
    }

    pub fn fail(self, error: EngineError) {
        self.send(GenerateEvent::Failed(error));
    }

    fn show(&self, Shown { text, logprobs, .. }: Shown) {
        if !text.is_empty() || !logprobs.is_empty() {
            self.send(GenerateEvent::Text { text, logprobs });
        }
    }

    /// The channel has room for all there can be, so this fails only where nobody reads any more.
    fn send(&self, event: GenerateEvent) {
        self.events.try_send(event).ok();
    }
}

fn logprob(logits: &[f32], token: u32, top: u32, tokenizer: &Tokenizer) -> TokenLogprob {
    let (logprob, likeliest) = sample::log_probabilities(logits, token, top as usize);
    let text = |id: u32| String::from_utf8_lossy(&tokenizer.bytes(id)).into_owned();
    let top = likeliest.into_iter().map(|(id, logprob)| (id, text(id), logprob)).collect();
    TokenLogprob { id: token, text: text(token), logprob, top }
}
