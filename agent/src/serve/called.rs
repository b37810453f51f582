//! A tool call as a model writes it between its marks, read.

use serde_json::{Map, Value};

/// A function that the model wants called.
#[derive(Clone, Debug, PartialEq)]
pub struct ToolCall {
    pub name: String,
    pub arguments: Map<String, Value>,
}

impl ToolCall {
    /// All calls in a text that is nothing else: JSON, or the tags of Qwen3-Coder or GLM.
    pub fn all_in(text: &str) -> Option<Vec<ToolCall>> {
        let text = text.trim();
        json(text).or_else(|| qwen_coder(text)).or_else(|| glm(text))
    }

    /// `{"name": ..., "arguments": {...}}`, or `parameters` as Llama 3 has it.
    fn from_value(value: &Value) -> Option<ToolCall> {
        let call = value.get("function").filter(|function| function.is_object()).unwrap_or(value);
        let name = call.get("name")?.as_str()?.to_owned();
        let arguments = match call.get("arguments").or_else(|| call.get("parameters")) {
            Some(Value::Object(arguments)) => arguments.clone(),
            Some(Value::String(text)) => serde_json::from_str(text).ok()?,
            Some(_) => return None,
            None => Map::new(),
        };
        Some(ToolCall { name, arguments })
    }
}

fn json(text: &str) -> Option<Vec<ToolCall>> {
    let calls: Vec<Value> = match serde_json::from_str(text).ok()? {
        Value::Array(items) => items,
        value @ Value::Object(_) => vec![value],
        _ => return None,
    };
    let calls: Option<Vec<ToolCall>> = calls.iter().map(ToolCall::from_value).collect();
    calls.filter(|calls| !calls.is_empty())
}

/// `<function=NAME>`, then `<parameter=KEY>`, its value and `</parameter>` for each.
fn qwen_coder(text: &str) -> Option<Vec<ToolCall>> {
    let (name, mut rest) = text.strip_prefix("<function=")?.split_once('>')?;
    let mut arguments = Map::new();
    while let Some((_, parameter)) = rest.split_once("<parameter=") {
        let (key, value) = parameter.split_once('>')?;
        let (value, after) = value.split_once("</parameter>")?;
        arguments.insert(key.to_owned(), value_of(value));
        rest = after;
    }
    rest.contains("</function>").then(|| vec![ToolCall { name: name.trim().to_owned(), arguments }])
}

/// The name, then `<arg_key>KEY</arg_key>` and `<arg_value>VALUE</arg_value>` for each.
fn glm(text: &str) -> Option<Vec<ToolCall>> {
    let (name, mut rest) = text.split_at(text.find("<arg_key>")?);
    let mut arguments = Map::new();
    while let Some(key) = rest.trim_start().strip_prefix("<arg_key>") {
        let (key, value) = key.split_once("</arg_key>")?;
        let (value, after) = value.trim_start().strip_prefix("<arg_value>")?.split_once("</arg_value>")?;
        arguments.insert(key.to_owned(), value_of(value));
        rest = after;
    }
    let name = name.trim();
    (!name.is_empty() && rest.trim().is_empty()).then(|| vec![ToolCall { name: name.to_owned(), arguments }])
}

/// JSON where it is, else the text, without the line ends that its tags stand on.
fn value_of(text: &str) -> Value {
    let text = text.strip_prefix('\n').unwrap_or(text);
    let text = text.strip_suffix('\n').unwrap_or(text);
    serde_json::from_str(text).unwrap_or_else(|_| text.into())
}
