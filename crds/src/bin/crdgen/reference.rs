//! The API reference, as Markdown, of the definitions' schemas: every field with its type, default, constraints and description.

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::{
    CustomResourceColumnDefinition, CustomResourceDefinition, CustomResourceDefinitionVersion, JSONSchemaProps, JSONSchemaPropsOrArray,
};
use serde_json::Value;

const INTRODUCTION: &str = "\
# API reference

<!-- Written by `make crds`. -->

The kinds of the group `stowage.dev`. `kubectl explain modeldeployment.spec` tells the same on the command line. What the kinds are for is in
[Concepts](concepts.md); the reasons that stand in their status are in [Reasons](reasons.md).

Bytes are plain numbers, tokens too. A field in **bold** must be set. Rules are checked by the API server when an object is written, and refused with the message
that stands here.
";

/// The page.
pub fn page(definitions: &[CustomResourceDefinition]) -> String {
    let kinds = definitions.iter().flat_map(|definition| definition.spec.versions.iter().map(|version| kind(definition, version)));
    INTRODUCTION.to_owned() + &kinds.collect::<String>()
}

fn kind(definition: &CustomResourceDefinition, version: &CustomResourceDefinitionVersion) -> String {
    let (names, spec) = (&definition.spec.names, &definition.spec);
    let Some(schema) = version.schema.as_ref().and_then(|schema| schema.open_api_v3_schema.as_ref()) else { return String::new() };
    let short: Vec<String> = names.short_names.iter().flatten().map(|name| format!("`{name}`")).collect();
    let scale = if version.subresources.as_ref().is_some_and(|subresources| subresources.scale.is_some()) {
        ", with the subresource `scale`"
    } else {
        ""
    };
    let mut text = format!(
        "\n## {}\n\n{}\n\n`apiVersion: {}/{}`, `kind: {}`; {}, short name {}{scale}.\n",
        names.kind,
        described(schema),
        spec.group,
        version.name,
        names.kind,
        if spec.scope == "Namespaced" { "in a namespace" } else { "of the whole cluster" },
        short.join(", "),
    );
    text += &rules(schema);
    text += &columns(version.additional_printer_columns.as_deref().unwrap_or_default());
    for part in ["spec", "status"] {
        let found = schema.properties.iter().flatten().find(|(name, _)| name.as_str() == part);
        text += &found.map(|(_, schema)| object(&names.kind, part, schema)).unwrap_or_default();
    }
    text
}

/// What `kubectl get` prints; with `-o wide`, all of it.
fn columns(columns: &[CustomResourceColumnDefinition]) -> String {
    let row = |column: &CustomResourceColumnDefinition| {
        let wide = if column.priority.unwrap_or(0) > 0 { " (`-o wide`)" } else { "" };
        let told = column.description.as_deref().unwrap_or_default();
        format!("| {}{wide} | `{}` | {} |\n", column.name.to_uppercase(), column.json_path, cell(told))
    };
    format!("\n| column | field | |\n|---|---|---|\n{}", columns.iter().map(row).collect::<String>())
}

/// An object's fields, then the objects among them.
fn object(kind: &str, path: &str, schema: &JSONSchemaProps) -> String {
    let mut text = format!("\n### {kind}: {path}\n\n{}\n", described(schema));
    text += &rules(schema);
    text += "\n| field | type | default | constraints | |\n|---|---|---|---|---|\n";
    let required: Vec<&String> = schema.required.iter().flatten().collect();
    let fields: Vec<(&String, &JSONSchemaProps)> = schema.properties.iter().flatten().collect();
    for (name, field) in &fields {
        text += &row(kind, path, name, field, required.contains(name));
    }
    for (name, field) in fields {
        if let Some((suffix, inner)) = inner(field) {
            text += &object(kind, &format!("{path}.{name}{suffix}"), inner);
        }
    }
    text
}

fn row(kind: &str, path: &str, name: &str, field: &JSONSchemaProps, required: bool) -> String {
    let shown = if required { format!("**`{name}`**") } else { format!("`{name}`") };
    let kind_of = match inner(field) {
        Some((suffix, _)) => format!("[{}](#{})", type_of(field), anchor(kind, &format!("{path}.{name}{suffix}"))),
        None => type_of(field),
    };
    // A default object only says that its own fields have defaults.
    let default =
        field.default.as_ref().map(|default| &default.0).filter(|default| !default.is_object() && **default != Value::Array(Vec::new()));
    let default = default.map(|default| format!("`{}`", plain(default))).unwrap_or_default();
    let about = described(field);
    format!("| {shown} | {kind_of} | {default} | {} | {} |\n", cell(&constraints(field)), cell(&about))
}

/// The object behind a field: the field itself, or each of a list. A map has none.
fn inner(field: &JSONSchemaProps) -> Option<(&'static str, &JSONSchemaProps)> {
    let has_fields = |schema: &&JSONSchemaProps| schema.properties.as_ref().is_some_and(|properties| !properties.is_empty());
    match items(field) {
        Some(each) => Some(each).filter(has_fields).map(|each| ("[]", each)),
        None => Some(field).filter(has_fields).map(|field| ("", field)),
    }
}

fn items(field: &JSONSchemaProps) -> Option<&JSONSchemaProps> {
    match field.items.as_ref()? {
        JSONSchemaPropsOrArray::Schema(each) => Some(each),
        JSONSchemaPropsOrArray::Schemas(_) => None,
    }
}

fn type_of(field: &JSONSchemaProps) -> String {
    match (field.type_.as_deref(), items(field)) {
        (Some("array"), Some(each)) => format!("list of {}", type_of(each)),
        (Some("object"), _) if field.additional_properties.is_some() => "map".to_owned(),
        (Some("string"), _) if field.format.as_deref() == Some("date-time") => "time".to_owned(),
        (Some(type_), _) => type_.to_owned(),
        (None, _) => "any".to_owned(),
    }
}

/// GitHub's anchor of the heading `KIND: PATH`.
fn anchor(kind: &str, path: &str) -> String {
    let kept = |c: char| match c {
        ' ' => Some('-'),
        c if c.is_alphanumeric() || "-_".contains(c) => Some(c.to_ascii_lowercase()),
        _ => None,
    };
    format!("{kind}: {path}").chars().filter_map(kept).collect()
}

fn constraints(field: &JSONSchemaProps) -> String {
    let mut found = limits(field);
    if let Some(each) = items(field) {
        found.extend(limits(each).into_iter().map(|limit| format!("each {limit}")));
        found.extend(messages(each));
    }
    // Rules of an object stand with its own fields.
    if inner(field).is_none() {
        found.extend(messages(field));
    }
    match field.x_kubernetes_list_map_keys.as_deref() {
        Some(keys) => found.push(format!("one for each `{}`", keys.join("`, `"))),
        None if field.x_kubernetes_list_type.as_deref() == Some("set") => found.push("no two the same".to_owned()),
        None => {}
    }
    found.join("; ")
}

/// What the schema itself limits.
fn limits(field: &JSONSchemaProps) -> Vec<String> {
    let values: Vec<String> = field.enum_.iter().flatten().map(|value| format!("`{}`", plain(&value.0))).collect();
    let counted = |number: Option<i64>, words: &str| number.map(|number| words.replace('N', &number.to_string()));
    let found = [
        Some(values.join(", ")).filter(|values| !values.is_empty()),
        field.minimum.map(|least| format!("at least {least}")),
        field.maximum.map(|most| format!("at most {most}")),
        match field.min_length {
            Some(1) => Some("not empty".to_owned()),
            least => counted(least, "at least N characters"),
        },
        counted(field.max_length, "at most N characters"),
        counted(field.min_items, "at least N of them"),
        counted(field.max_items, "at most N of them"),
        field.pattern.as_ref().map(|pattern| format!("matches `{pattern}`")),
    ];
    found.into_iter().flatten().collect()
}

fn messages(field: &JSONSchemaProps) -> Vec<String> {
    let rules = field.x_kubernetes_validations.iter().flatten();
    rules.map(|rule| rule.message.clone().unwrap_or_else(|| format!("`{}`", rule.rule))).collect()
}

/// The rules of a whole object, each with its message.
fn rules(schema: &JSONSchemaProps) -> String {
    let messages = messages(schema);
    if messages.is_empty() {
        String::new()
    } else {
        format!("\n{}\n", messages.iter().map(|message| format!("- {message}")).collect::<Vec<_>>().join("\n"))
    }
}

/// What the field says of itself; where it says nothing, what each of the list or the choice says.
fn described(field: &JSONSchemaProps) -> String {
    let own = field.description.as_deref().or_else(|| items(field)?.description.as_deref());
    own.unwrap_or_default().split_whitespace().collect::<Vec<_>>().join(" ")
}

fn plain(value: &Value) -> String {
    value.as_str().filter(|text| !text.is_empty()).map_or_else(|| value.to_string(), str::to_owned)
}

/// As a cell of a table takes it.
fn cell(text: &str) -> String {
    text.replace('|', "\\|")
}

#[cfg(test)]
mod tests {
    use stowage_crds::definitions;

    use super::*;

    fn made() -> String {
        page(&definitions::all().unwrap())
    }

    #[test]
    fn every_link_leads_to_a_heading_of_the_page() {
        let page = made();
        let headings: Vec<String> =
            page.lines().filter_map(|line| line.strip_prefix("### ")?.split_once(": ")).map(|(kind, path)| anchor(kind, path)).collect();
        let links: Vec<&str> = page.split("](#").skip(1).filter_map(|rest| rest.split(')').next()).collect();
        assert!(links.len() > 20, "{links:?}");
        let broken: Vec<&&str> = links.iter().filter(|link| !headings.iter().any(|heading| heading == *link)).collect();
        assert_eq!(broken, Vec::<&&str>::new());
    }

    #[test]
    fn every_field_is_described() {
        let page = made();
        let bare: Vec<&str> =
            page.lines().filter(|line| line.starts_with("| `") || line.starts_with("| **")).filter(|line| line.ends_with("|  |")).collect();
        assert_eq!(bare, Vec::<&str>::new());
    }

    #[test]
    fn a_field_shows_its_default_its_constraints_and_the_messages_of_its_rules() {
        let page = made();
        let row = |start: &str| page.lines().find(|line| line.starts_with(start)).unwrap().to_owned();
        let cache = row("| `kvCacheType` |");
        assert!(cache.contains("| `f16` | `f16`, `q8_0`, `q4_0` |"), "{cache}");
        let context = row("| `num_ctx` |");
        assert!(context.contains("num_ctx must be at least 1"), "{context}");
        assert!(row("| **`model`** |").contains("[object](#modeldeployment-specmodel)"), "{page}");
        assert!(page.contains("- model needs exactly one source: huggingFace, http or path\n"));
    }
}
