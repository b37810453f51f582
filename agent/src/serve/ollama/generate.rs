//! `POST /api/generate`

use axum::extract::State;
use axum::response::Response;
use http::HeaderMap;
use stowage_engine::{ChatMessage, GenerateRequest};

use super::reply::{Shape, Writer};
use super::{Asked, answer, asked, format, manage};
use crate::serve::account::Account;
use crate::serve::error::Fault;
use crate::serve::fields::{Body, Fields, is_empty};
use crate::serve::generation::Reading;
use crate::serve::prompt::{self, Conversation, Prompt, WhenTooLong};
use crate::serve::thinking::Think;
use crate::serve::worker::{Worker, WorkerState};

pub async fn generate(State(worker): State<WorkerState>, headers: HeaderMap, body: Body) -> Response {
    let account = worker.account("ollama.generate", &headers);
    let result = generated(&worker, &account, body).await;
    answer(&account, result)
}

struct Prompted {
    text: String,
    system: Option<String>,
    raw: bool,
}

async fn generated(worker: &WorkerState, account: &Account, body: Body) -> Result<Response, Fault> {
    let mut fields = Fields::parse(body)?;
    let asked = asked(&mut fields, worker, account)?;
    let prompt = read_prompt(&mut fields)?;
    if prompt.raw && !matches!(asked.think, Think::Unsaid | Think::Off) {
        return Err(fields.refuse("think", "can't be honoured where `raw` is true: a raw prompt says itself whether the model is to think"));
    }
    fields.finish()?;
    let writer = Writer { model: asked.model.clone(), shape: Shape::Generate, account: account.clone() };
    if prompt.text.is_empty() {
        return loaded(worker, &asked, writer);
    }
    let prompt = prompt_of(worker, prompt, &asked).await?;
    run(worker, asked, prompt, Vec::new(), writer).await
}

/// To a request that asks for no answer: clients have a model loaded by it, which it is, or unloaded.
pub(super) fn loaded(worker: &Worker, asked: &Asked, writer: Writer) -> Result<Response, Fault> {
    if asked.unload { Err(manage::unloaded(&worker.deployment())) } else { Ok(writer.loaded()) }
}

fn read_prompt(fields: &mut Fields) -> Result<Prompted, Fault> {
    fields.only("images", is_empty, "is not honoured: this model reads text only")?;
    fields.only("suffix", is_empty, "is not honoured: this model does not fill in the middle")?;
    fields.only("template", is_empty, "is not honoured in a request: set spec.template of the ModelDeployment, or send a raw prompt")?;
    fields.only("context", is_empty, "is not honoured: send the conversation to /api/chat instead; its cache is used again")?;
    for name in ["width", "height", "steps"] {
        fields.only(name, is_empty, "is not honoured: this model does not draw")?;
    }
    let text = fields.string("prompt")?.unwrap_or_default();
    Ok(Prompted { text, system: fields.string("system")?, raw: fields.boolean("raw")?.unwrap_or(false) })
}

async fn prompt_of(worker: &WorkerState, prompt: Prompted, asked: &Asked) -> Result<Prompt, Fault> {
    let context = asked.context;
    if prompt.raw {
        return prompt::of_text(worker, prompt.text, context).await;
    }
    let message = |role: &str, content: String| ChatMessage { role: role.into(), content, ..Default::default() };
    let system = prompt.system.filter(|system| !system.is_empty()).map(|system| message("system", system));
    let messages = system.into_iter().chain([message("user", prompt.text)]).collect();
    let held = asked.constraint.is_some();
    let when_too_long = WhenTooLong::Refuse;
    let conversation = Conversation { messages, tools: Vec::new(), think: asked.think.clone(), held, when_too_long, context };
    prompt::of_conversation(worker, conversation).await
}

/// Generates and answers: all at once, or as it comes.
pub(super) async fn run(worker: &WorkerState, asked: Asked, prompt: Prompt, tools: Vec<String>, writer: Writer) -> Result<Response, Fault> {
    let Prompt { tokens, thinking, answer_after } = prompt;
    // The engine knows the replica's context; a smaller one that was asked for is kept to here.
    let room = u32::try_from(asked.context.saturating_sub(tokens.len() as u64)).unwrap_or(u32::MAX);
    let request = GenerateRequest {
        prompt: tokens,
        sampling: asked.options.sampling(),
        max_tokens: Some(asked.options.max_tokens().map_or(room, |most| most.min(room))),
        stop: asked.options.stop,
        top_logprobs: asked.top_logprobs,
        grammar: worker.constrain(format::FIELD, asked.constraint).await?,
        grammar_after: answer_after,
        occasions: asked.occasions,
    };
    let generation = worker.start(request, &writer.account, &Reading { thinking, tools })?;
    if asked.stream { Ok(writer.stream(generation)) } else { writer.whole(generation).await }
}
