//! Where in a schema it is that llguidance refuses something: it says what, and mostly not where.

use std::fmt;
use std::time::{Duration, Instant};

use llguidance::GrammarBuilder;
use serde_json::Value;

use super::{limits, said, schema};

/// Parts of a schema that are looked at one by one, and how long. Of larger ones the place is not said.
const MOST_PARTS: usize = 200;
const LONGEST_SEARCH: Duration = Duration::from_secs(1);

/// Keys of which the value is a schema, is a list of schemas, or has schemas by name.
const ONE: &[&str] = &["items", "additionalProperties", "additionalItems"];
const LISTS: &[&str] = &["anyOf", "oneOf", "allOf", "prefixItems"];
const BY_NAME: &[&str] = &["properties", "patternProperties", "$defs", "definitions"];
/// What parts may refer to.
const DEFINITIONS: &[&str] = &["$defs", "definitions"];

/// ` at /properties/x`: the smallest part that is refused for the same reason by itself. Empty where that is the whole.
pub fn of(error: &dyn fmt::Display, whole: Value) -> String {
    let reason = first_line(error);
    let (mut part, mut place, mut looked_at) = (whole.clone(), String::new(), 0);
    let begin = Instant::now();
    let goes_on = |looked_at: usize| looked_at <= MOST_PARTS && begin.elapsed() < LONGEST_SEARCH;
    loop {
        let refused = parts(&part).into_iter().find(|(_, part)| {
            looked_at += 1;
            goes_on(looked_at) && is_refused(part, &whole, &reason)
        });
        match refused {
            Some((name, smaller)) => (part, place) = (smaller, place + &name),
            None if place.is_empty() || !goes_on(looked_at) => return String::new(),
            None => return format!(" at {place}"),
        }
    }
}

fn first_line(error: &dyn fmt::Display) -> String {
    said(error).lines().next().unwrap_or_default().to_owned()
}

fn is_refused(part: &Value, whole: &Value, reason: &str) -> bool {
    let mut part = part.clone();
    let Some(fields) = part.as_object_mut() else { return false };
    for name in DEFINITIONS {
        if let Some(definitions) = whole.get(*name) {
            fields.entry(*name).or_insert_with(|| definitions.clone());
        }
    }
    let compiled = schema::options().json_to_llg(GrammarBuilder::new(None, limits()), part);
    compiled.err().is_some_and(|error| first_line(&error) == reason)
}

/// The schemas in a schema, each with its place there.
fn parts(schema: &Value) -> Vec<(String, Value)> {
    let Some(fields) = schema.as_object() else { return Vec::new() };
    let mut parts = Vec::new();
    for (name, value) in fields {
        let listed = LISTS.contains(&name.as_str()) || name == "items";
        match value {
            Value::Array(items) if listed => {
                parts.extend(items.iter().enumerate().map(|(index, item)| (format!("/{name}/{index}"), item.clone())));
            }
            Value::Object(_) if ONE.contains(&name.as_str()) => parts.push((format!("/{name}"), value.clone())),
            Value::Object(named) if BY_NAME.contains(&name.as_str()) => {
                parts.extend(named.iter().map(|(key, item)| (format!("/{name}/{}", escaped(key)), item.clone())));
            }
            _ => {}
        }
    }
    parts
}

/// As JSON pointers have it.
fn escaped(key: &str) -> String {
    key.replace('~', "~0").replace('/', "~1")
}
