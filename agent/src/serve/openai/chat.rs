//! `POST /v1/chat/completions`

use axum::extract::State;
use axum::response::Response;
use http::HeaderMap;
use stowage_engine::template::Json;

use super::options::{self, Asked};
use super::reply::{Choice, Shape, Writer};
use super::{answer, messages, response_format};
use crate::serve::account::Account;
use crate::serve::error::Fault;
use crate::serve::fields::{Body, Fields, is_empty};
use crate::serve::prompt::{self, Conversation, WhenTooLong};
use crate::serve::worker::WorkerState;

pub async fn chat(State(worker): State<WorkerState>, headers: HeaderMap, body: Body) -> Response {
    let account = worker.account("openai.chat", &headers);
    let result = completed(&worker, &account, body).await;
    answer(&account, result)
}

async fn completed(worker: &WorkerState, account: &Account, body: Body) -> Result<Response, Fault> {
    let mut fields = Fields::parse(body)?;
    let mut asked = options::read(&mut fields, worker, account)?;
    asked.most_tokens = fields.unsigned("max_completion_tokens", 1..=u32::MAX)?.or(asked.most_tokens);
    let top_logprobs = logprobs(&mut fields)?;
    let (tools, one_call) = tools(&mut fields)?;
    let constraint = response_format::read(&mut fields)?;
    if constraint.is_some() && !tools.is_empty() {
        let why = "can't be kept to where `tools` may be called: leave one of the two out, or set `tool_choice` to none";
        return Err(fields.refuse(response_format::FIELD, why));
    }
    without_effect(&mut fields)?;
    let values = fields.array("messages")?.ok_or_else(|| fields.refuse("messages", "is required"))?;
    fields.finish()?;
    let messages = messages::read(values)?;
    asked.grammar = worker.constrain(response_format::FIELD, constraint).await?;
    let with_tools = !tools.is_empty();
    let conversation = Conversation { messages, tools, when_too_long: WhenTooLong::Refuse, context: worker.num_ctx() };
    let name_field = |fault: Fault| Fault { field: fault.field.or(Some("messages".into())), ..fault };
    let tokens = prompt::of_conversation(worker, conversation).await.map_err(name_field)?;
    respond(worker, account, asked, tokens, top_logprobs, Shape::Chat { with_tools, one_call }).await
}

async fn respond(
    worker: &WorkerState,
    account: &Account,
    asked: Asked,
    tokens: Vec<u32>,
    top_logprobs: Option<u32>,
    shape: Shape,
) -> Result<Response, Fault> {
    let choices = (0..asked.choices).map(|index| Choice { index, request: asked.generate_request(tokens.clone(), index, top_logprobs) });
    let choices = choices.collect();
    let writer = Writer::new(worker.clone(), account.clone(), asked.model, shape, asked.include_usage);
    if asked.stream { writer.stream(choices) } else { writer.whole(choices).await }
}

fn logprobs(fields: &mut Fields) -> Result<Option<u32>, Fault> {
    let wanted = fields.boolean("logprobs")?.unwrap_or(false);
    let alternatives = fields.unsigned("top_logprobs", 0..=20)?;
    if alternatives.is_some() && !wanted {
        return Err(fields.refuse("top_logprobs", "needs `logprobs` to be true"));
    }
    Ok(wanted.then(|| alternatives.unwrap_or(0)))
}

/// The tools that the model is told of, and whether it may call only one at a time.
fn tools(fields: &mut Fields) -> Result<(Vec<Json>, bool), Fault> {
    let tools = fields.array("tools")?.unwrap_or_default();
    if let Some(index) = tools.iter().position(|tool| tool.get("type").and_then(Json::as_str) != Some("function")) {
        return Err(fields.refuse(&format!("tools[{index}].type"), "must be function"));
    }
    let one_call = fields.boolean("parallel_tool_calls")? == Some(false);
    let tools = match fields.take("tool_choice") {
        None => tools,
        Some(choice) if choice == "auto" => tools,
        Some(choice) if choice == "none" => Vec::new(),
        Some(_) => return Err(fields.refuse("tool_choice", "must be auto or none: the engine can't force a call")),
    };
    Ok((tools, one_call))
}

/// Fields that are taken where they ask for nothing, or for what is so anyway.
fn without_effect(fields: &mut Fields) -> Result<(), Fault> {
    fields.only("store", is_empty, "is not honoured: nothing is stored")?;
    fields.only("service_tier", |tier| tier == "auto" || tier == "default", "must be auto or default: there is one tier")?;
    fields.only("modalities", |value| value == &serde_json::json!(["text"]), "must be [\"text\"]: this model writes text only")?;
    fields.only("reasoning_effort", |effort| effort == "none", "is not honoured: thinking is not told apart from the answer")?;
    // For the client's own records and for caches; they change no answer.
    fields.object("metadata")?;
    fields.string("safety_identifier")?;
    fields.string("prompt_cache_key")?;
    Ok(())
}
