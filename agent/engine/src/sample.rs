//! Chooses the next token from logits, with Ollama's options in the order in which Ollama applies them.
//!
//! Penalties, then top-k, typical-p, top-p and min-p, each on what the one before left, then temperature: llama.cpp's default chain of samplers, which
//! Ollama uses. Formulas: `llama-sampler.cpp` of llama.cpp.

mod candidates;

use rand::rngs::Xoshiro256PlusPlus;
use rand::{RngExt, SeedableRng};

use stowage_placement::Reason;

use crate::api::{EngineError, SamplingOptions};
use candidates::Candidates;

/// The sampler of one generation. The same options, seed, prompt and logits give the same tokens.
pub struct Sampler {
    options: SamplingOptions,
    random: Xoshiro256PlusPlus,
    /// Tokens that penalties look at, the prompt's included.
    recent: Vec<u32>,
    num_ctx: u32,
    /// Those at hand, penalised.
    logits: Vec<f32>,
    candidates: Candidates,
}

impl Sampler {
    /// `num_ctx` is what a `repeat_last_n` of -1 stands for.
    pub fn new(options: SamplingOptions, num_ctx: u32) -> Sampler {
        let seed = options.seed.unwrap_or_else(|| rand::rng().random());
        let random = Xoshiro256PlusPlus::seed_from_u64(seed);
        Sampler { options, random, recent: Vec::new(), num_ctx, logits: Vec::new(), candidates: Candidates::default() }
    }

    /// Notes tokens of the prompt, or one that was generated.
    pub fn accept(&mut self, tokens: &[u32]) {
        let window = self.window();
        let kept = &tokens[tokens.len().saturating_sub(window)..];
        self.recent.extend_from_slice(kept);
        let surplus = self.recent.len().saturating_sub(window);
        self.recent.drain(..surplus);
    }

    fn window(&self) -> usize {
        usize::try_from(self.options.repeat_last_n).unwrap_or(self.num_ctx as usize)
    }

    /// The next token. A temperature of 0 takes the likeliest, the lowest id of several.
    pub fn sample(&mut self, logits: &[f32]) -> u32 {
        self.penalise(logits);
        let likeliest = if self.is_greedy() { 1 } else { self.options.top_k as usize };
        self.candidates.fill_likeliest(&self.logits, likeliest);
        self.choose()
    }

    /// The next token of those that are allowed, of which there must be one. What is not allowed is left out before anything else is done.
    pub fn sample_allowed(&mut self, logits: &[f32], allowed: impl Fn(u32) -> bool) -> u32 {
        self.penalise(logits);
        self.candidates.fill_with(&self.logits, allowed);
        self.choose()
    }

    fn is_greedy(&self) -> bool {
        self.options.temperature <= 0.0
    }

    fn choose(&mut self) -> u32 {
        let SamplingOptions { temperature, top_k, top_p, min_p, typical_p, .. } = self.options;
        if self.is_greedy() {
            return self.candidates.likeliest();
        }
        self.candidates.keep_top_k(top_k as usize);
        self.candidates.keep_typical(typical_p);
        self.candidates.keep_top_p(top_p);
        self.candidates.keep_min_p(min_p);
        self.candidates.draw(temperature, self.random.random::<f64>())
    }

    /// Takes logits in which tokens seen are less likely, more so the more often they were seen.
    fn penalise(&mut self, logits: &[f32]) {
        self.logits.clear();
        self.logits.extend_from_slice(logits);
        let SamplingOptions { repeat_penalty, presence_penalty, frequency_penalty, .. } = self.options;
        if repeat_penalty == 1.0 && presence_penalty == 0.0 && frequency_penalty == 0.0 {
            return;
        }
        let mut seen = self.recent.clone();
        seen.sort_unstable();
        for same in seen.chunk_by(|a, b| a == b) {
            if let Some(logit) = self.logits.get_mut(same[0] as usize) {
                *logit = if *logit <= 0.0 { *logit * repeat_penalty } else { *logit / repeat_penalty };
                *logit -= same.len() as f32 * frequency_penalty + presence_penalty;
            }
        }
    }
}

/// Whether these options have a meaning; the error names the one that has none.
pub fn check(options: &SamplingOptions) -> Result<(), EngineError> {
    let SamplingOptions {
        temperature,
        top_p,
        min_p,
        typical_p,
        repeat_penalty,
        presence_penalty,
        frequency_penalty,
        repeat_last_n,
        top_k: _,
        seed: _,
    } = *options;
    let range = |name: &str, value: f32, from: f32, to: f32| {
        if (from..=to).contains(&value) {
            return Ok(());
        }
        let wanted = if to == f32::MAX { format!("at least {from}") } else { format!("from {from} to {to}") };
        Err(EngineError::new(Reason::InvalidRequest, format!("{name} is {value}; it must be {wanted}")))
    };
    range("temperature", temperature, 0.0, f32::MAX)?;
    range("top_p", top_p, 0.0, 1.0)?;
    range("min_p", min_p, 0.0, 1.0)?;
    range("typical_p", typical_p, 0.0, 1.0)?;
    range("repeat_penalty", repeat_penalty, f32::MIN_POSITIVE, f32::MAX)?;
    range("presence_penalty", presence_penalty, -100.0, 100.0)?;
    range("frequency_penalty", frequency_penalty, -100.0, 100.0)?;
    if repeat_last_n < -1 {
        return Err(EngineError::new(
            Reason::InvalidRequest,
            format!("repeat_last_n is {repeat_last_n}; it must be at least -1 (the whole context)"),
        ));
    }
    Ok(())
}

/// Natural logarithms of probabilities, straight from the logits: of the token that was taken, and the `top` likeliest with theirs.
pub fn log_probabilities(logits: &[f32], taken: u32, top: usize) -> (f32, Vec<(u32, f32)>) {
    let largest = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let sum: f64 = logits.iter().map(|&logit| f64::from(logit - largest).exp()).sum();
    let normaliser = largest + sum.ln() as f32;
    let of = |id: u32| logits.get(id as usize).map_or(f32::NEG_INFINITY, |logit| logit - normaliser);
    let mut candidates = Candidates::default();
    candidates.fill_likeliest(logits, top);
    let likeliest = if top == 0 { Vec::new() } else { candidates.top(top) };
    (of(taken), likeliest.into_iter().map(|id| (id, of(id))).collect())
}

#[cfg(test)]
mod tests;
