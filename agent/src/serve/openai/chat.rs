//! `POST /v1/chat/completions`

use axum::extract::State;
use axum::response::Response;
use http::HeaderMap;

use super::options;
use super::reply::{Choice, Shape, Writer};
use super::{answer, messages, response_format, thinking, tools};
use crate::serve::account::Account;
use crate::serve::error::Fault;
use crate::serve::fields::{Body, Fields, is_empty};
use crate::serve::generation::Reading;
use crate::serve::prompt::{self, Conversation, Prompt, WhenTooLong};
use crate::serve::strict;
use crate::serve::tools::ToolChoice;
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
    let tools = tools::read(&mut fields, worker)?;
    let one_call = fields.boolean("parallel_tool_calls")? == Some(false);
    let constraint = tools.constraint(response_format::read(&mut fields)?);
    let think = thinking::read(&mut fields, worker)?;
    without_effect(&mut fields)?;
    let values = fields.array("messages")?.ok_or_else(|| fields.refuse("messages", "is required"))?;
    fields.finish()?;
    let messages = messages::read(values)?;
    let held_by = if tools.choice == ToolChoice::Auto { response_format::FIELD } else { "tool_choice" };
    asked.grammar = worker.constrain(held_by, constraint).await?;
    asked.occasions = strict::occasions(worker, &tools, asked.grammar.is_some()).await?;
    let (names, context, held) = (tools.names(), worker.num_ctx(), asked.grammar.is_some());
    let conversation = Conversation { messages, tools: tools.told, think, held, when_too_long: WhenTooLong::Refuse, context };
    let name_field = |fault: Fault| Fault { field: fault.field.or(Some("messages".into())), ..fault };
    let Prompt { tokens, thinking, answer_after } = prompt::of_conversation(worker, conversation).await.map_err(name_field)?;
    asked.grammar_after = answer_after;
    let choices = (0..asked.choices).map(|index| Choice { index, request: asked.generate_request(tokens.clone(), index, top_logprobs) });
    let choices = choices.collect();
    let (shape, reading) = (Shape::Chat { one_call }, Reading { thinking, tools: names });
    let writer = Writer::new(worker.clone(), account.clone(), asked.model, shape, asked.include_usage, reading);
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

/// Fields that are taken where they ask for nothing, or for what is so anyway.
fn without_effect(fields: &mut Fields) -> Result<(), Fault> {
    fields.only("store", is_empty, "is not honoured: nothing is stored")?;
    fields.only("service_tier", |tier| tier == "auto" || tier == "default", "must be auto or default: there is one tier")?;
    fields.only("modalities", |value| value == &serde_json::json!(["text"]), "must be [\"text\"]: this model writes text only")?;
    // For the client's own records and for caches; they change no answer.
    fields.object("metadata")?;
    fields.string("safety_identifier")?;
    fields.string("prompt_cache_key")?;
    Ok(())
}
