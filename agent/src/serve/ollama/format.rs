//! `format`: what an answer is held to.

use stowage_engine::Constraint;
use stowage_engine::template::Json;

use crate::serve::error::Fault;
use crate::serve::fields::Fields;

/// The field's name, for faults.
pub const FIELD: &str = "format";

/// `"json"` stands for an object of any shape, an object for the schema that it is. Older clients send an empty string for nothing.
pub fn read(fields: &mut Fields) -> Result<Option<Constraint>, Fault> {
    match fields.take_as_written(FIELD) {
        None => Ok(None),
        Some(Json::String(text)) if text.is_empty() => Ok(None),
        Some(Json::String(text)) if text == "json" => Ok(Some(Constraint::JsonObject)),
        Some(schema @ Json::Object(_)) => Ok(Some(Constraint::JsonSchema(schema))),
        Some(_) => Err(fields.refuse(FIELD, "must be \"json\", or a JSON schema, which is an object")),
    }
}
