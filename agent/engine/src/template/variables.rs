//! What a chat template is told: the variables that `transformers` passes, in the shapes that it passes them in.

use jiff::Zoned;
use minijinja::value::{Serde, Value};
use minijinja::{Error, ErrorKind};

use super::{ChatTemplate, Json, RenderOptions};
use crate::api::ChatMessage;

/// By which name a template reads what the model thought.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReasoningField {
    /// As most have it.
    ReasoningContent,
    /// As gpt-oss has it.
    Thinking,
}

impl ReasoningField {
    pub fn of(template: &str) -> ReasoningField {
        let named = |name: &str| template.contains(name);
        if !named("reasoning_content") && named("message.thinking") { ReasoningField::Thinking } else { ReasoningField::ReasoningContent }
    }

    fn name(self) -> &'static str {
        match self {
            ReasoningField::ReasoningContent => "reasoning_content",
            ReasoningField::Thinking => "thinking",
        }
    }
}

impl ChatTemplate {
    /// Variables that the caller adds go before those that are always there.
    pub(super) fn variables(&self, messages: &[ChatMessage], tools: &[Json], options: &RenderOptions) -> Value {
        let RenderOptions { add_generation_prompt, extra, now } = options;
        let none = || Value::from(());
        let now = now.clone();
        let always = [
            ("messages", messages.iter().map(|message| self.message(message)).collect()),
            ("tools", if tools.is_empty() { none() } else { Value::from(Serde(tools)) }),
            ("documents", none()),
            ("add_generation_prompt", Value::from(*add_generation_prompt)),
            ("bos_token", Value::from(self.bos.as_str())),
            ("eos_token", Value::from(self.eos.as_str())),
            ("strftime_now", Value::from_function(move |format: String| strftime(&format, now.clone().unwrap_or_else(Zoned::now)))),
        ];
        let extra = extra.iter().map(|(name, value)| (name.clone(), Value::from(Serde(value))));
        Value::from_pairs(always.into_iter().map(|(name, value)| (name.to_owned(), value)).chain(extra))
    }

    /// A message has the fields that were given: templates ask whether one is defined.
    fn message(&self, message: &ChatMessage) -> Value {
        let ChatMessage { role, content, reasoning_content, tool_calls, name, tool_call_id } = message;
        let text = |name: &'static str, text: &Option<String>| text.as_ref().map(|text| (name, Value::from(text.as_str())));
        let always = [("role", Value::from(role.as_str())), ("content", Value::from(content.as_str()))];
        let given = [
            text(self.reasoning.name(), reasoning_content),
            (!tool_calls.is_empty()).then(|| ("tool_calls", Value::from(Serde(tool_calls)))),
            text("name", name),
            text("tool_call_id", tool_call_id),
        ];
        Value::from_pairs(always.into_iter().chain(given.into_iter().flatten()))
    }
}

fn strftime(format: &str, now: Zoned) -> Result<String, Error> {
    let formatted = jiff::fmt::strtime::format(format, &now);
    formatted.map_err(|error| Error::new(ErrorKind::InvalidOperation, format!("strftime_now({format:?}): {error}")))
}
