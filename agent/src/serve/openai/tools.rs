//! `tools` and `tool_choice`.

use serde_json::Value;

use crate::serve::error::Fault;
use crate::serve::fields::Fields;
use crate::serve::tools::{ToolChoice, Tools};
use crate::serve::worker::Worker;

const CHOICE: &str = "tool_choice";

/// What the model is told of and has to do. With a choice of none it is told of nothing.
pub fn read(fields: &mut Fields, worker: &Worker) -> Result<Tools, Fault> {
    let mut tools = Tools::read(fields, worker)?;
    tools.choice = match fields.take(CHOICE) {
        None => return Ok(tools),
        Some(choice) if choice == "auto" => return Ok(tools),
        Some(choice) if choice == "none" => return Ok(Tools::default()),
        Some(choice) if choice == "required" => ToolChoice::Required,
        Some(Value::Object(choice)) => ToolChoice::Named(named(fields, &choice)?),
        Some(_) => return Err(fields.refuse(CHOICE, "must be none, auto, required, or name a function")),
    };
    match &tools.choice {
        _ if tools.is_empty() => Err(fields.refuse(CHOICE, "needs `tools` to have one")),
        ToolChoice::Named(name) if !tools.has(name) => Err(fields.refuse(CHOICE, format_args!("names {name:?}, which is none of `tools`"))),
        _ => Ok(tools),
    }
}

/// `{"type": "function", "function": {"name": ...}}`
fn named(fields: &Fields, choice: &serde_json::Map<String, Value>) -> Result<String, Fault> {
    let function = choice.get("function").filter(|_| choice.get("type").is_some_and(|kind| kind == "function"));
    let name = function.and_then(|function| function.get("name")).and_then(Value::as_str);
    let why = "must be {\"type\": \"function\", \"function\": {\"name\": ...}} where it is an object";
    name.map(str::to_owned).ok_or_else(|| fields.refuse(CHOICE, why))
}
