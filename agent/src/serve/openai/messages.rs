//! OpenAI's messages, as chat templates expect them.

use stowage_engine::ChatMessage;
use stowage_engine::template::Json;

use crate::serve::error::Fault;
use crate::serve::fields::{Fields, is_empty};

pub fn read(values: Vec<Json>) -> Result<Vec<ChatMessage>, Fault> {
    if values.is_empty() {
        return Err(Fault::field("messages", "`messages` must have at least one message"));
    }
    values.into_iter().enumerate().map(|(index, value)| message(&format!("messages[{index}]"), value)).collect()
}

fn message(path: &str, value: Json) -> Result<ChatMessage, Fault> {
    let mut fields = Fields::of(value, path)?;
    let role = match fields.string("role")?.unwrap_or_default().as_str() {
        // What OpenAI's newer models call the system.
        "developer" => "system".to_owned(),
        role @ ("system" | "user" | "assistant" | "tool") => role.to_owned(),
        _ => return Err(fields.refuse("role", "must be one of system, developer, user, assistant, tool")),
    };
    let content = content(&mut fields)?;
    let calls = fields.array("tool_calls")?.unwrap_or_default();
    let tool_calls = calls.into_iter().enumerate().map(|(index, call)| tool_call(&format!("{path}.tool_calls[{index}]"), call));
    let tool_calls: Vec<Json> = tool_calls.collect::<Result<_, _>>()?;
    for name in ["refusal", "audio", "function_call", "annotations"] {
        fields.only(name, is_empty, "is not honoured: this model reads text and tool calls")?;
    }
    // Not OpenAI's; clients send back by these names what they were sent by vLLM, DeepSeek and others.
    let newer = fields.string("reasoning")?;
    let message = ChatMessage {
        role,
        content,
        reasoning_content: fields.string("reasoning_content")?.or(newer),
        tool_calls,
        name: fields.string("name")?,
        tool_call_id: fields.string("tool_call_id")?,
    };
    fields.finish()?;
    Ok(message)
}

/// A string, or parts of which all are text.
fn content(fields: &mut Fields) -> Result<String, Fault> {
    let path = fields.path("content");
    match fields.take_as_written("content") {
        None => Ok(String::new()),
        Some(Json::String(text)) => Ok(text),
        Some(Json::Array(parts)) => {
            parts.into_iter().enumerate().map(|(index, part)| text_part(&format!("{path}[{index}]"), part)).collect()
        }
        Some(_) => Err(fields.refuse("content", "must be a string or an array of parts")),
    }
}

fn text_part(path: &str, part: Json) -> Result<String, Fault> {
    let mut fields = Fields::of(part, path)?;
    match fields.string("type")?.as_deref() {
        Some("text") => fields.string("text")?.ok_or_else(|| fields.refuse("text", "is required in a part of type text")),
        _ => Err(fields.refuse("type", "must be text: this model reads no images, audio or files")),
    }
}

/// OpenAI writes arguments as a string of JSON, templates expect the object.
fn tool_call(path: &str, call: Json) -> Result<Json, Fault> {
    let mut fields = Fields::of(call, path)?;
    let id = fields.string("id")?.unwrap_or_default();
    let Some(mut function) = fields.object("function")? else {
        return Err(fields.refuse("function", "is required"));
    };
    let Some(name) = function.string("name")? else {
        return Err(function.refuse("name", "is required"));
    };
    let text = function.string("arguments")?.unwrap_or_default();
    let arguments = serde_json::from_str(&text).unwrap_or(Json::String(text));
    let object = |fields: Vec<(&str, Json)>| Json::Object(fields.into_iter().map(|(name, value)| (name.to_owned(), value)).collect());
    let function = object(vec![("name", Json::String(name)), ("arguments", arguments)]);
    Ok(object(vec![("id", Json::String(id)), ("type", Json::String("function".into())), ("function", function)]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_call_is_told_to_the_template_as_an_object_whose_fields_keep_their_order() {
        let call = r#"{"id": "c", "function": {"name": "f", "arguments": "{\"z\":1,\"a\":2}"}}"#;
        let value =
            serde_json::from_str(&format!(r#"[{{"role": "assistant", "reasoning_content": "hm", "tool_calls": [{call}]}}]"#)).unwrap();
        let messages = read(value).unwrap();
        assert_eq!(messages[0].reasoning_content.as_deref(), Some("hm"));
        let told = serde_json::to_string(&messages[0].tool_calls).unwrap();
        assert_eq!(told, r#"[{"id":"c","type":"function","function":{"name":"f","arguments":{"z":1,"a":2}}}]"#);
    }
}
