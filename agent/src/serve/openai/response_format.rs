//! `response_format`: what an answer is held to.

use stowage_engine::Constraint;
use stowage_engine::template::Json;

use crate::serve::error::Fault;
use crate::serve::fields::Fields;

/// The field's name, for faults.
pub const FIELD: &str = "response_format";

/// OpenAI's rule for a schema's name, of which nothing depends here.
const LONGEST_NAME: usize = 64;

/// `text` holds an answer to nothing, `json_object` to an object of any shape, `json_schema` to its schema.
pub fn read(fields: &mut Fields) -> Result<Option<Constraint>, Fault> {
    let Some(mut format) = fields.object(FIELD)? else { return Ok(None) };
    let constraint = match format.string("type")?.as_deref() {
        Some("text") => None,
        Some("json_object") => Some(Constraint::JsonObject),
        Some("json_schema") => Some(schema(&mut format)?),
        _ => return Err(format.refuse("type", "must be one of text, json_object, json_schema")),
    };
    format.finish()?;
    Ok(constraint)
}

/// A schema is kept to whether `strict` says so or not: an answer that need not meet it is no use to who asked for it.
fn schema(format: &mut Fields) -> Result<Constraint, Fault> {
    let Some(mut fields) = format.object("json_schema")? else { return Err(format.refuse("json_schema", "is required")) };
    let allowed = |name: &str| name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_' || c == '-');
    match fields.string("name")? {
        Some(name) if !name.is_empty() && name.len() <= LONGEST_NAME && allowed(&name) => {}
        _ => return Err(fields.refuse("name", format_args!("must have 1 to {LONGEST_NAME} letters, digits, underscores or dashes"))),
    }
    fields.string("description")?;
    fields.boolean("strict")?;
    let schema = match fields.take_as_written("schema") {
        Some(schema @ Json::Object(_)) => schema,
        _ => return Err(fields.refuse("schema", "is required: a JSON schema, which is an object")),
    };
    fields.finish()?;
    Ok(Constraint::JsonSchema(schema))
}
