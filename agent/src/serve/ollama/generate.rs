//! `POST /api/generate`

use axum::extract::State;
use axum::response::Response;
use http::HeaderMap;
use stowage_engine::{ChatMessage, GenerateRequest};

use super::reply::{Shape, Writer};
use super::{Asked, answer, asked, format};
use crate::serve::account::Account;
use crate::serve::error::Fault;
use crate::serve::fields::{Body, Fields, is_empty};
use crate::serve::prompt::{self, Conversation, WhenTooLong};
use crate::serve::worker::WorkerState;

pub async fn generate(State(worker): State<WorkerState>, headers: HeaderMap, body: Body) -> Response {
    let account = worker.account("ollama.generate", &headers);
    let result = generated(&worker, &account, body).await;
    answer(&account, result)
}

struct Prompt {
    text: String,
    system: Option<String>,
    raw: bool,
}

async fn generated(worker: &WorkerState, account: &Account, body: Body) -> Result<Response, Fault> {
    let mut fields = Fields::parse(body)?;
    let asked = asked(&mut fields, worker, account)?;
    let prompt = read_prompt(&mut fields)?;
    fields.finish()?;
    let writer = Writer { model: asked.model.clone(), shape: Shape::Generate, account: account.clone() };
    if prompt.text.is_empty() {
        return Ok(writer.loaded());
    }
    let tokens = tokens(worker, prompt, asked.context).await?;
    run(worker, asked, tokens, false, writer).await
}

fn read_prompt(fields: &mut Fields) -> Result<Prompt, Fault> {
    fields.only("images", is_empty, "is not honoured: this model reads text only")?;
    fields.only("suffix", is_empty, "is not honoured: this model does not fill in the middle")?;
    fields.only("template", is_empty, "is not honoured in a request: set spec.template of the ModelDeployment, or send a raw prompt")?;
    fields.only("context", is_empty, "is not honoured: send the conversation to /api/chat instead; its cache is used again")?;
    for name in ["width", "height", "steps"] {
        fields.only(name, is_empty, "is not honoured: this model does not draw")?;
    }
    let text = fields.string("prompt")?.unwrap_or_default();
    Ok(Prompt { text, system: fields.string("system")?, raw: fields.boolean("raw")?.unwrap_or(false) })
}

async fn tokens(worker: &WorkerState, prompt: Prompt, context: u64) -> Result<Vec<u32>, Fault> {
    if prompt.raw {
        return prompt::of_text(worker, prompt.text, context).await;
    }
    let message = |role: &str, content: String| ChatMessage { role: role.into(), content, ..Default::default() };
    let system = prompt.system.filter(|system| !system.is_empty()).map(|system| message("system", system));
    let messages = system.into_iter().chain([message("user", prompt.text)]).collect();
    prompt::of_conversation(worker, Conversation { messages, tools: Vec::new(), when_too_long: WhenTooLong::Refuse, context }).await
}

/// Generates and answers: all at once, or as it comes.
pub(super) async fn run(worker: &WorkerState, asked: Asked, prompt: Vec<u32>, with_tools: bool, writer: Writer) -> Result<Response, Fault> {
    // The engine knows the replica's context; a smaller one that was asked for is kept to here.
    let room = u32::try_from(asked.context.saturating_sub(prompt.len() as u64)).unwrap_or(u32::MAX);
    let grammar = worker.constrain(format::FIELD, asked.constraint).await?;
    let request = GenerateRequest {
        prompt,
        sampling: asked.options.sampling(),
        max_tokens: Some(asked.options.max_tokens().map_or(room, |most| most.min(room))),
        stop: asked.options.stop,
        top_logprobs: asked.top_logprobs,
        grammar,
    };
    let generation = worker.start(request, &writer.account, with_tools)?;
    if asked.stream { Ok(writer.stream(generation)) } else { writer.whole(generation).await }
}
