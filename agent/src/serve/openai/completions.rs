//! `POST /v1/completions`

use axum::extract::State;
use axum::response::Response;
use http::HeaderMap;
use serde_json::Value;

use super::reply::{Choice, Shape, Writer};
use super::{answer, options};
use crate::serve::account::Account;
use crate::serve::embedding::Input;
use crate::serve::error::Fault;
use crate::serve::fields::{Body, Fields, is_empty};
use crate::serve::generation::Reading;
use crate::serve::prompt::{self, Prompt};
use crate::serve::worker::WorkerState;

/// OpenAI's own default for this old call.
const DEFAULT_MOST_TOKENS: u32 = 16;

/// Most answers in one request, all prompts together.
const MOST_CHOICES: usize = 128;

pub async fn completions(State(worker): State<WorkerState>, headers: HeaderMap, body: Body) -> Response {
    let account = worker.account("openai.completions", &headers);
    let result = completed(&worker, &account, body).await;
    answer(&account, result)
}

async fn completed(worker: &WorkerState, account: &Account, body: Body) -> Result<Response, Fault> {
    let mut fields = Fields::parse(body)?;
    let mut asked = options::read(&mut fields, worker, account)?;
    asked.most_tokens = asked.most_tokens.or(asked.options.max_tokens()).or(Some(DEFAULT_MOST_TOKENS));
    let top_logprobs = fields.unsigned("logprobs", 0..=5)?;
    fields.only("echo", is_empty, "is not honoured: the prompt is not repeated")?;
    fields.only("suffix", is_empty, "is not honoured: this model does not fill in the middle")?;
    let choices = i64::from(asked.choices);
    fields.only("best_of", |value| value.as_i64() == Some(choices), "must equal `n`: no answers are thrown away")?;
    let prompts = inputs(&mut fields, "prompt", "prompt")?;
    fields.finish()?;
    if prompts.len() * asked.choices as usize > MOST_CHOICES {
        let message = format!(
            "`prompt` has {} entries, each to be answered {} times, and at most {MOST_CHOICES} answers are given at once",
            prompts.len(),
            asked.choices
        );
        return Err(Fault::field("prompt", message));
    }
    let mut choices = Vec::new();
    for prompt in prompts {
        let tokens = tokens(worker, prompt).await.map_err(|fault| Fault { field: Some("prompt".into()), ..fault })?;
        for repetition in 0..asked.choices {
            let index = choices.len() as u32;
            choices.push(Choice { index, request: asked.generate_request(tokens.clone(), repetition, top_logprobs) });
        }
    }
    let writer = Writer::new(worker.clone(), account.clone(), asked.model, Shape::Completion, asked.include_usage, Reading::default());
    if asked.stream { writer.stream(choices) } else { writer.whole(choices).await }
}

async fn tokens(worker: &WorkerState, prompt: Input) -> Result<Vec<u32>, Fault> {
    match prompt {
        Input::Text(text) => prompt::of_text(worker, text, worker.num_ctx()).await,
        Input::Tokens(tokens) => prompt::within(Prompt::plain(tokens), worker.num_ctx()),
    }
    .map(|prompt| prompt.tokens)
}

/// OpenAI's four ways to write an input: a string, strings, tokens, or lists of tokens.
pub(super) fn inputs(fields: &mut Fields, name: &str, what: &str) -> Result<Vec<Input>, Fault> {
    let value = fields.take(name).ok_or_else(|| fields.refuse(name, format_args!("is required: the {what}")))?;
    let read = match value {
        Value::String(text) => Some(vec![Input::Text(text)]),
        Value::Array(items) if items.is_empty() => None,
        Value::Array(items) if items.iter().all(Value::is_number) => tokens_of(&items).map(|tokens| vec![Input::Tokens(tokens)]),
        Value::Array(items) => items.into_iter().map(one).collect(),
        _ => None,
    };
    read.ok_or_else(|| {
        fields.refuse(name, "must be a string, an array of strings, an array of token ids, or an array of such arrays, not empty")
    })
}

fn one(value: Value) -> Option<Input> {
    match value {
        Value::String(text) => Some(Input::Text(text)),
        Value::Array(items) => tokens_of(&items).map(Input::Tokens),
        _ => None,
    }
}

fn tokens_of(items: &[Value]) -> Option<Vec<u32>> {
    items.iter().map(|item| item.as_u64().and_then(|id| u32::try_from(id).ok())).collect()
}
