//! `POST /api/chat`

use axum::extract::State;
use axum::response::Response;
use http::HeaderMap;
use stowage_engine::ChatMessage;
use stowage_engine::template::Json;

use super::generate::{loaded, run};
use super::reply::{Shape, Writer};
use super::{answer, asked};
use crate::serve::account::Account;
use crate::serve::error::Fault;
use crate::serve::fields::{Body, Fields, is_empty};
use crate::serve::prompt::{self, Conversation, WhenTooLong};
use crate::serve::strict;
use crate::serve::tools::Tools;
use crate::serve::worker::WorkerState;

pub async fn chat(State(worker): State<WorkerState>, headers: HeaderMap, body: Body) -> Response {
    let account = worker.account("ollama.chat", &headers);
    let result = chatted(&worker, &account, body).await;
    answer(&account, result)
}

async fn chatted(worker: &WorkerState, account: &Account, body: Body) -> Result<Response, Fault> {
    let mut fields = Fields::parse(body)?;
    let mut asked = asked(&mut fields, worker, account)?;
    let messages = fields.array("messages")?.unwrap_or_default();
    let tools = Tools::read(&mut fields, worker)?;
    fields.finish()?;
    let messages: Vec<ChatMessage> =
        messages.into_iter().enumerate().map(|(index, value)| message(index, value)).collect::<Result<_, _>>()?;
    let writer = Writer { model: asked.model.clone(), shape: Shape::Chat, account: account.clone() };
    if messages.is_empty() {
        return loaded(worker, &asked, writer);
    }
    asked.constraint = tools.constraint(asked.constraint);
    let names = tools.names();
    let when_too_long = if asked.truncate { WhenTooLong::DropOldest } else { WhenTooLong::Refuse };
    let held = asked.constraint.is_some();
    asked.occasions = strict::occasions(worker, &tools, held).await?;
    let conversation =
        Conversation { messages, tools: tools.told, think: asked.think.clone(), held, when_too_long, context: asked.context };
    let prompt = prompt::of_conversation(worker, conversation).await?;
    run(worker, asked, prompt, names, writer).await
}

fn message(index: usize, value: Json) -> Result<ChatMessage, Fault> {
    let mut fields = Fields::of(value, &format!("messages[{index}]"))?;
    let role = fields.string("role")?.unwrap_or_default();
    if !["system", "user", "assistant", "tool"].contains(&role.as_str()) {
        return Err(fields.refuse("role", "must be one of system, user, assistant, tool"));
    }
    fields.only("images", is_empty, "is not honoured: this model reads text only")?;
    let message = ChatMessage {
        role,
        content: fields.string("content")?.unwrap_or_default(),
        reasoning_content: fields.string("thinking")?,
        tool_calls: fields.array("tool_calls")?.unwrap_or_default(),
        name: fields.string("tool_name")?,
        tool_call_id: fields.string("tool_call_id")?,
    };
    fields.finish()?;
    Ok(message)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_model_thought_and_called_is_told_to_the_template() {
        let value =
            r#"{"role": "assistant", "thinking": "hm", "tool_calls": [{"function": {"name": "f", "arguments": {"z": 1, "a": 2}}}]}"#;
        let message = message(0, serde_json::from_str(value).unwrap()).unwrap();
        assert_eq!(message.reasoning_content.as_deref(), Some("hm"));
        let told = serde_json::to_string(&message.tool_calls).unwrap();
        assert_eq!(told, r#"[{"function":{"name":"f","arguments":{"z":1,"a":2}}}]"#);
    }
}
