//! A JSON schema as llguidance takes it.

use llguidance::JsonCompileOptions;
use serde_json::Value;

use super::{alternatives, invalid, short_enough};
use crate::api::{EngineError, FramedJson};
use crate::template::Json;

/// Between two parts of the JSON there may be one of these: a space, or one or two ends of line with an indentation. More would let a model that has
/// lost its way go on for ever. Source: `json.gbnf` of llama.cpp.
const SPACE: &str = r" |\n{1,2}[ \t]{0,20}";

/// Errors: InvalidRequest where it is no schema, or too long.
pub fn prepared(schema: &Json) -> Result<Value, EngineError> {
    let mut value = Value::from(schema.clone());
    short_enough("the JSON schema", value.to_string().len())?;
    alternatives::write_out(&mut value);
    match value {
        Value::Bool(true) => Ok(with_options(Value::Object(serde_json::Map::new()))),
        Value::Bool(false) => Err(invalid("the JSON schema is `false`, which nothing meets".into())),
        Value::Object(_) => Ok(with_options(value)),
        _ => Err(invalid("a JSON schema is an object, or true".into())),
    }
}

/// With how it is to be written, whatever the schema itself says of that. `schema` is an object.
pub fn with_options(mut schema: Value) -> Value {
    options().apply_to(&mut schema);
    schema
}

/// A grammar in Lark, a rule for each: so each schema's references stay its own.
///
/// Errors: InvalidRequest where there are none, or one's schema is none.
pub fn one_of(alternatives: &[FramedJson]) -> Result<String, EngineError> {
    if alternatives.is_empty() {
        return Err(invalid("of nothing there is nothing to choose".into()));
    }
    let names: Vec<String> = (0..alternatives.len()).map(|index| format!("alternative{index}")).collect();
    let mut grammar = format!("start: {}\n", names.join(" | "));
    for (name, FramedJson { before, schema, after }) in names.iter().zip(alternatives) {
        let text = |text: &String| if text.is_empty() { String::new() } else { Value::from(text.as_str()).to_string() };
        grammar += &format!("{name}: {} {name}_json {}\n{name}_json: %json {}\n", text(before), text(after), prepared(schema)?);
    }
    Ok(grammar)
}

pub fn options() -> JsonCompileOptions {
    JsonCompileOptions { whitespace_pattern: Some(SPACE.into()), ..JsonCompileOptions::default() }
}
