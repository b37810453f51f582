//! A request's fields, taken one by one, so that what is malformed or left over can be refused by name.

use std::collections::BTreeMap;
use std::ops::RangeInclusive;

use axum::extract::rejection::BytesRejection;
use bytes::Bytes;
use http::StatusCode;
use serde_json::Value;
use stowage_engine::template::Json;

use super::error::{Fault, FaultKind};
use super::server;

/// What an extractor makes of a body: its bytes, or why not.
pub type Body = Result<Bytes, BytesRejection>;

/// A JSON object being read. `null` counts as absent, as clients send it for what they leave unset.
#[derive(Debug)]
pub struct Fields {
    map: BTreeMap<String, Json>,
    /// Where in the request this object stands, as `options.`; empty for the request itself.
    path: String,
}

/// The bytes of a body, or the fault that says why it could not be read.
pub fn read(body: Body) -> Result<Bytes, Fault> {
    body.map_err(|rejection| match rejection.status() {
        StatusCode::PAYLOAD_TOO_LARGE => Fault::new(FaultKind::BodyTooLarge, "the request's body is larger than this server accepts"),
        _ if server::was_slow(&rejection) => Fault::new(FaultKind::BodyTooSlow, "the request's body stopped coming before it was whole"),
        _ => Fault::new(FaultKind::InvalidRequest, format!("the request's body could not be read: {}", rejection.body_text())),
    })
}

/// The model that a request names. Ollama's older clients call it `name`, and its command-line client still does in places, beside an empty `model`.
pub fn model_named(model: Option<String>, name: Option<String>) -> Result<String, Fault> {
    let named = [model, name].into_iter().flatten().find(|named| !named.is_empty());
    named.ok_or_else(|| Fault::field("model", "`model` is required: the name of the model to ask"))
}

fn type_of(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "an array",
        Value::Object(_) => "an object",
    }
}

impl Fields {
    pub fn parse(body: Body) -> Result<Fields, Fault> {
        let bytes = read(body)?;
        match serde_json::from_slice(&bytes) {
            Ok(Json::Object(fields)) => Ok(Fields { map: fields.into_iter().collect(), path: String::new() }),
            Ok(other) => {
                let found = type_of(&other.into());
                Err(Fault::new(FaultKind::InvalidRequest, format!("the body must be a JSON object, and is {found}")))
            }
            Err(error) => Err(Fault::new(FaultKind::InvalidRequest, format!("the body is not valid JSON: {error}"))),
        }
    }

    /// An object inside a request. `path` is how a person would name it: `messages[2]`.
    pub fn of(value: Json, path: &str) -> Result<Fields, Fault> {
        match value {
            Json::Object(fields) => Ok(Fields { map: fields.into_iter().collect(), path: format!("{path}.") }),
            other => Err(Fault::field(path, format!("`{path}` must be an object, and is {}", type_of(&other.into())))),
        }
    }

    /// The field's name as a person would write it, with where it stands.
    pub fn path(&self, name: &str) -> String {
        format!("{}{name}", self.path)
    }

    pub fn take(&mut self, name: &str) -> Option<Value> {
        self.take_as_written(name).map(Value::from)
    }

    /// With the order of its fields, for what the model gets to read.
    pub fn take_as_written(&mut self, name: &str) -> Option<Json> {
        self.map.remove(name).filter(|value| *value != Json::Null)
    }

    /// A fault that names this field.
    pub fn refuse(&self, name: &str, why: impl std::fmt::Display) -> Fault {
        let path = self.path(name);
        let message = format!("`{path}` {why}");
        Fault::field(path, message)
    }

    pub fn string(&mut self, name: &str) -> Result<Option<String>, Fault> {
        match self.take(name) {
            None => Ok(None),
            Some(Value::String(text)) => Ok(Some(text)),
            Some(other) => Err(self.refuse(name, format_args!("must be a string, and is {}", type_of(&other)))),
        }
    }

    pub fn boolean(&mut self, name: &str) -> Result<Option<bool>, Fault> {
        match self.take(name) {
            None => Ok(None),
            Some(Value::Bool(value)) => Ok(Some(value)),
            Some(other) => Err(self.refuse(name, format_args!("must be true or false, and is {}", type_of(&other)))),
        }
    }

    pub fn number(&mut self, name: &str, range: RangeInclusive<f64>) -> Result<Option<f64>, Fault> {
        let Some(value) = self.take(name) else { return Ok(None) };
        let (least, most) = (range.start(), range.end());
        match value.as_f64() {
            Some(number) if range.contains(&number) => Ok(Some(number)),
            Some(number) => Err(self.refuse(name, format_args!("must be a number from {least} to {most}, and is {number}"))),
            None => Err(self.refuse(name, format_args!("must be a number from {least} to {most}, and is {}", type_of(&value)))),
        }
    }

    /// An integer; `4.0` is one too, since some clients know no others.
    pub fn integer(&mut self, name: &str, range: RangeInclusive<i64>) -> Result<Option<i64>, Fault> {
        let Some(value) = self.take(name) else { return Ok(None) };
        let whole = |number: &f64| number.fract() == 0.0 && number.abs() < 9.0e15;
        let found = value.as_i64().or_else(|| value.as_f64().filter(whole).map(|number| number as i64));
        match found {
            Some(number) if range.contains(&number) => Ok(Some(number)),
            _ => {
                let found = if value.is_number() { value.to_string() } else { type_of(&value).to_owned() };
                let (least, most) = (range.start(), range.end());
                Err(self.refuse(name, format_args!("must be an integer from {least} to {most}, and is {found}")))
            }
        }
    }

    pub fn unsigned(&mut self, name: &str, range: RangeInclusive<u32>) -> Result<Option<u32>, Fault> {
        let range = i64::from(*range.start())..=i64::from(*range.end());
        Ok(self.integer(name, range)?.and_then(|value| u32::try_from(value).ok()))
    }

    /// One string, or an array of them.
    pub fn strings(&mut self, name: &str) -> Result<Option<Vec<String>>, Fault> {
        let Some(value) = self.take(name) else { return Ok(None) };
        let strings = match value {
            Value::String(text) => Some(vec![text]),
            Value::Array(items) => items.into_iter().map(|item| if let Value::String(text) = item { Some(text) } else { None }).collect(),
            _ => None,
        };
        strings.map(Some).ok_or_else(|| self.refuse(name, "must be a string or an array of strings"))
    }

    pub fn array(&mut self, name: &str) -> Result<Option<Vec<Json>>, Fault> {
        match self.take_as_written(name) {
            None => Ok(None),
            Some(Json::Array(items)) => Ok(Some(items)),
            Some(other) => Err(self.refuse(name, format_args!("must be an array, and is {}", type_of(&other.into())))),
        }
    }

    pub fn object(&mut self, name: &str) -> Result<Option<Fields>, Fault> {
        let path = self.path(name);
        self.take_as_written(name).map(|value| Fields::of(value, &path)).transpose()
    }

    pub fn model(&mut self) -> Result<String, Fault> {
        let older = self.string("name")?;
        model_named(self.string("model")?, older)
    }

    /// A field that can only be left out, or be what it means anyway. `harmless` says which values change nothing.
    pub fn only(&mut self, name: &str, harmless: impl Fn(&Value) -> bool, why: impl std::fmt::Display) -> Result<(), Fault> {
        match self.take(name) {
            Some(value) if !harmless(&value) => Err(self.refuse(name, why)),
            _ => Ok(()),
        }
    }

    /// Nothing may be left: what nobody took can't be honoured.
    pub fn finish(self) -> Result<(), Fault> {
        match self.map.iter().find(|(_, value)| **value != Json::Null) {
            Some((name, _)) => Err(self.refuse(name, "is not a field that this API honours")),
            None => Ok(()),
        }
    }
}

/// False, zero, or empty: values by which a client says that it does not ask for something.
pub fn is_empty(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Bool(value) => !value,
        Value::Number(number) => number.as_f64() == Some(0.0),
        Value::String(text) => text.is_empty(),
        Value::Array(items) => items.is_empty(),
        Value::Object(map) => map.is_empty(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn fields(value: Value) -> Fields {
        Fields::parse(Ok(Bytes::from(value.to_string()))).unwrap()
    }

    #[test]
    fn a_bad_field_is_refused_by_its_name_and_place() {
        let mut request = fields(json!({"options": {"temperature": "hot", "top_k": 4.0, "seed": 1.5}}));
        let mut options = request.object("options").unwrap().unwrap();
        let fault = options.number("temperature", 0.0..=2.0).unwrap_err();
        assert_eq!(fault.field.as_deref(), Some("options.temperature"));
        assert_eq!(fault.message, "`options.temperature` must be a number from 0 to 2, and is a string");
        assert_eq!(options.integer("top_k", 0..=10).unwrap(), Some(4));
        assert!(options.integer("seed", 0..=10).unwrap_err().message.contains("1.5"));
    }

    #[test]
    fn a_field_that_nobody_took_is_refused_and_null_is_absent() {
        let mut request = fields(json!({"model": "m", "audio": null, "suffix": "x"}));
        assert_eq!(request.model().unwrap(), "m");
        assert_eq!(request.finish().unwrap_err().field.as_deref(), Some("suffix"));
    }

    #[test]
    fn what_the_model_reads_keeps_the_order_in_which_it_was_written() {
        let text = r#"[{"type":"function","function":{"name":"f","description":"d","parameters":{"z":1,"a":2}}}]"#;
        let mut request = Fields::parse(Ok(Bytes::from(format!(r#"{{"tools":{text}}}"#)))).unwrap();
        assert_eq!(serde_json::to_string(&request.array("tools").unwrap()).unwrap(), text);
    }

    #[test]
    fn what_is_no_object_is_no_request() {
        for body in ["", "[]", "{", "\"x\"", "nul"] {
            assert_eq!(Fields::parse(Ok(Bytes::from(body))).unwrap_err().kind, FaultKind::InvalidRequest, "{body}");
        }
    }
}
