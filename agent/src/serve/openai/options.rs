//! The fields that `/v1/chat/completions` and `/v1/completions` have in common.

use stowage_engine::{GenerateRequest, Grammar, Occasion};

use crate::serve::account::Account;
use crate::serve::defaults::RequestOptions;
use crate::serve::error::Fault;
use crate::serve::fields::{Fields, is_empty};
use crate::serve::worker::Worker;

/// Most answers to one prompt, as OpenAI has it.
const MOST_CHOICES: u32 = 128;

/// Most stop strings, as OpenAI has it for text; Ollama's users are used to more.
const MOST_STOPS: usize = 16;

pub struct Asked {
    pub model: String,
    pub stream: bool,
    /// A last event with the token counts.
    pub include_usage: bool,
    pub choices: u32,
    pub options: RequestOptions,
    pub most_tokens: Option<u32>,
    /// What the answers are held to, and after which text.
    pub grammar: Option<Grammar>,
    pub grammar_after: Option<String>,
    /// What they may come to.
    pub occasions: Vec<Occasion>,
}

pub fn read(fields: &mut Fields, worker: &Worker, account: &Account) -> Result<Asked, Fault> {
    let model = fields.model()?;
    worker.admit(&model, account)?;
    let stream = fields.boolean("stream")?.unwrap_or(false);
    if stream {
        account.streams();
    }
    let include_usage = stream_options(fields, stream)?;
    let choices = fields.unsigned("n", 1..=MOST_CHOICES)?.unwrap_or(1);
    let most_tokens = fields.unsigned("max_tokens", 1..=u32::MAX)?;
    let options = sampling(fields)?.or(&worker.settings().defaults.options).or(&api_defaults());
    fields.only("logit_bias", is_empty, "is not honoured: the engine has no way to favour single tokens")?;
    // Who asks is for the client's own records; it changes no answer.
    fields.string("user")?;
    Ok(Asked { model, stream, include_usage, choices, options, most_tokens, grammar: None, grammar_after: None, occasions: Vec::new() })
}

fn stream_options(fields: &mut Fields, stream: bool) -> Result<bool, Fault> {
    let Some(mut options) = fields.object("stream_options")? else { return Ok(false) };
    if !stream {
        return Err(fields.refuse("stream_options", "needs `stream` to be true"));
    }
    let include_usage = options.boolean("include_usage")?.unwrap_or(false);
    options.only("include_obfuscation", is_empty, "is not honoured: events are not padded; leave it out, or set it to false")?;
    options.finish()?;
    Ok(include_usage)
}

/// OpenAI's ranges; `top_k`, `min_p` and `repeat_penalty` are not OpenAI's, and taken because Ollama's users know them.
fn sampling(fields: &mut Fields) -> Result<RequestOptions, Fault> {
    let stop = fields.strings("stop")?.unwrap_or_default();
    if stop.len() > MOST_STOPS || stop.iter().any(String::is_empty) {
        return Err(fields.refuse("stop", format_args!("takes up to {MOST_STOPS} strings, none of them empty")));
    }
    Ok(RequestOptions {
        temperature: fields.number("temperature", 0.0..=2.0)?,
        top_p: fields.number("top_p", 0.0..=1.0)?,
        top_k: fields.unsigned("top_k", 0..=u32::MAX)?,
        min_p: fields.number("min_p", 0.0..=1.0)?,
        repeat_penalty: fields.number("repeat_penalty", 0.0..=100.0)?,
        presence_penalty: fields.number("presence_penalty", -2.0..=2.0)?,
        frequency_penalty: fields.number("frequency_penalty", -2.0..=2.0)?,
        seed: fields.integer("seed", i64::MIN..=i64::MAX)?,
        stop,
        ..RequestOptions::default()
    })
}

/// What OpenAI's API means by a field left out, where the ModelDeployment doesn't say either.
fn api_defaults() -> RequestOptions {
    RequestOptions { temperature: Some(1.0), top_p: Some(1.0), ..RequestOptions::default() }
}

impl Asked {
    /// What the engine is asked for choice `index`: each choice of one seeded request has a seed of its own, so that they differ.
    pub fn generate_request(&self, prompt: Vec<u32>, index: u32, top_logprobs: Option<u32>) -> GenerateRequest {
        let mut sampling = self.options.sampling();
        sampling.seed = sampling.seed.map(|seed| seed.wrapping_add(u64::from(index)));
        let max_tokens = self.most_tokens.or(self.options.max_tokens());
        GenerateRequest {
            prompt,
            sampling,
            stop: self.options.stop.clone(),
            max_tokens,
            top_logprobs,
            grammar: self.grammar.clone(),
            grammar_after: self.grammar_after.clone(),
            occasions: self.occasions.clone(),
        }
    }
}
