//! Writes the CustomResourceDefinitions to `crds/generated/` and, as templates, to the Helm chart, and their fields as a page to `docs/`; or with `--check`
//! fails where what is there is stale.
#![cfg_attr(test, allow(clippy::unwrap_used))]

mod reference;

use std::collections::BTreeMap;
use std::path::Path;
use std::process::ExitCode;

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use serde_json::Value;
use stowage_crds::{definitions, yaml};

/// From this crate.
const GENERATED: &str = "generated";
const CHART: &str = "../charts/stowage/templates/crds";
const REFERENCE: &str = "../docs/api-reference.md";

fn main() -> ExitCode {
    let check = std::env::args().nth(1).as_deref() == Some("--check");
    let directory = Path::new(env!("CARGO_MANIFEST_DIR"));
    let definitions = definitions::all().map_err(|error| format!("making the definitions: {error}"));
    let emitted = definitions.and_then(|all| {
        all.iter().try_for_each(|definition| emit(definition, directory, check))?;
        put(&reference::page(&all), &directory.join(REFERENCE), check)
    });
    match emitted {
        Ok(()) => ExitCode::SUCCESS,
        Err(message) => {
            eprintln!("crdgen: {message}");
            ExitCode::FAILURE
        }
    }
}

/// The same with its keys in order: how JSON keeps them depends on what else is built along.
fn sorted(value: Value) -> Value {
    match value {
        Value::Object(members) => {
            let members: BTreeMap<String, Value> = members.into_iter().map(|(name, value)| (name, sorted(value))).collect();
            Value::Object(members.into_iter().collect())
        }
        Value::Array(values) => Value::Array(values.into_iter().map(sorted).collect()),
        other => other,
    }
}

fn emit(definition: &CustomResourceDefinition, directory: &Path, check: bool) -> Result<(), String> {
    let names = &definition.spec.names;
    let file = format!("{}.yaml", names.plural);
    let value = serde_json::to_value(definition).map_err(|error| format!("writing {} as JSON: {error}", names.kind))?;
    let text = yaml::to_string(&sorted(value)).map_err(|error| format!("writing {} as YAML: {error}", names.kind))?;
    put(&template(&text)?, &directory.join(CHART).join(&file), check)?;
    put(&text, &directory.join(GENERATED).join(&file), check)
}

/// As the chart has it: installed and brought up to date with the release, which Helm does for templates and not for what lies in its `crds` folder.
fn template(text: &str) -> Result<String, String> {
    // What a description says in double braces is text, no action of a template.
    let text = text.replace("{{", "{{ `{{` }}");
    let metadata = "\nmetadata:\n";
    let (before, after) = text.split_once(metadata).ok_or("a definition without metadata")?;
    let included = "  {{- include \"stowage.crdMetadata\" . | nindent 2 }}\n";
    Ok(format!(
        "{{{{- /* Written by `make crds`. */ -}}}}\n{{{{- if .Values.crds.install }}}}\n{before}{metadata}{included}{after}{{{{- end }}}}\n"
    ))
}

fn put(text: &str, path: &Path, check: bool) -> Result<(), String> {
    if check {
        let present = std::fs::read_to_string(path).map_err(|error| format!("reading {}: {error}; run `make crds`", path.display()))?;
        return if present == text { Ok(()) } else { Err(format!("{} is stale: run `make crds`", path.display())) };
    }
    let directory = path.parent().unwrap_or(path);
    std::fs::create_dir_all(directory)
        .and_then(|()| std::fs::write(path, text))
        .map_err(|error| format!("writing {}: {error}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_template_says_when_it_is_installed_and_keeps_braces_as_they_are() {
        let made = template("kind: A\nmetadata:\n  name: a\nspec: '{{ x }}'\n").unwrap();
        let expected = "{{- /* Written by `make crds`. */ -}}\n{{- if .Values.crds.install }}\nkind: A\nmetadata:\n  \
                        {{- include \"stowage.crdMetadata\" . | nindent 2 }}\n  name: a\nspec: '{{ `{{` }} x }}'\n{{- end }}\n";
        assert_eq!(made, expected);
    }
}
