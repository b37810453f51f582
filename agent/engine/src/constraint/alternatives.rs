//! Alternatives of which exactly one is to be met (`oneOf`), written out where they are references.
//!
//! llguidance takes alternatives where it sees that they exclude each other, as tagged kinds of objects do, but does not look behind a reference; and
//! references are what most programs write there. So each `oneOf` becomes a definition of its own, in which what is referred to stands. Within that, other
//! `oneOf` are references to theirs: a schema that refers to itself comes to an end.

use serde_json::{Map, Value, json};

use super::LONGEST_TEXT;

/// Keys of which the values are schemas by name.
const BY_NAME: &[&str] = &["properties", "patternProperties", "$defs", "definitions"];
/// Keys of which the values are no schemas.
const VALUES: &[&str] = &["const", "enum", "default", "examples"];

/// Leaves a schema as it is where it has no such alternatives. What is written out may be as long as a schema may be; the rest stays references.
pub fn write_out(schema: &mut Value) {
    let mut moved = Vec::new();
    move_within(schema, false, &mut moved);
    let root_has_some = has_references(schema);
    if moved.is_empty() && !root_has_some {
        return;
    }
    let Some(fields) = schema.as_object_mut() else { return };
    let Some(definitions) = fields.entry("$defs").or_insert_with(|| json!({})).as_object_mut() else { return };
    for (number, alternatives) in moved.iter().enumerate() {
        definitions.insert(name(number), alternatives.clone());
    }
    let whole = schema.clone();
    let mut room = LONGEST_TEXT;
    let places = (0..moved.len()).map(|number| format!("/$defs/{}", name(number))).chain(root_has_some.then(String::new));
    for place in places {
        let alternatives = schema.pointer_mut(&place).and_then(|part| part.get_mut("oneOf")?.as_array_mut());
        alternatives.into_iter().flatten().for_each(|alternative| replace(alternative, &whole, &mut room));
    }
}

fn name(number: usize) -> String {
    format!("x-one-of-{number}")
}

/// Puts a reference in the place of each part of `value` that has alternatives behind references. `named`: its fields are names.
fn move_within(value: &mut Value, named: bool, moved: &mut Vec<Value>) {
    let mut one = |value: &mut Value, named: bool| {
        move_within(value, named, moved);
        if !named && has_references(value) {
            let reference = json!({"$ref": format!("#/$defs/{}", name(moved.len()))});
            moved.push(std::mem::replace(value, reference));
        }
    };
    match value {
        Value::Object(fields) if named => fields.values_mut().for_each(|value| one(value, false)),
        Value::Object(fields) => {
            let schemas = fields.iter_mut().filter(|(name, _)| !VALUES.contains(&name.as_str()));
            schemas.for_each(|(name, value)| one(value, BY_NAME.contains(&name.as_str())));
        }
        Value::Array(items) => items.iter_mut().for_each(|item| one(item, false)),
        _ => {}
    }
}

fn has_references(schema: &Value) -> bool {
    let alternatives = schema.get("oneOf").and_then(Value::as_array);
    alternatives.is_some_and(|alternatives| alternatives.iter().any(|alternative| reference(alternative).is_some()))
}

/// What a schema that is only a reference refers to, as a JSON pointer.
fn reference(schema: &Value) -> Option<&str> {
    let alone = |fields: &&Map<String, Value>| fields.len() == 1;
    schema.as_object().filter(alone)?.get("$ref")?.as_str()?.strip_prefix('#')
}

fn replace(alternative: &mut Value, whole: &Value, room: &mut usize) {
    let Some(meant) = reference(alternative).and_then(|pointer| whole.pointer(pointer)) else { return };
    let length = meant.to_string().len();
    if length > *room {
        *room = 0;
        return;
    }
    *room -= length;
    *alternative = meant.clone();
}
