//! Writes the CustomResourceDefinitions to `crds/generated/`, or with `--check` fails where what is there is stale.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::ExitCode;

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use serde_json::Value;
use stowage_crds::{definitions, yaml};

fn main() -> ExitCode {
    let check = std::env::args().nth(1).as_deref() == Some("--check");
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("generated");
    let definitions = definitions::all().map_err(|error| format!("making the definitions: {error}"));
    match definitions.and_then(|all| all.iter().try_for_each(|definition| emit(definition, &directory, check))) {
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
    let path = directory.join(format!("{}.yaml", names.plural));
    let value = serde_json::to_value(definition).map_err(|error| format!("writing {} as JSON: {error}", names.kind))?;
    let text = yaml::to_string(&sorted(value)).map_err(|error| format!("writing {} as YAML: {error}", names.kind))?;
    if check {
        let present = std::fs::read_to_string(&path).map_err(|error| format!("reading {}: {error}; run `make crds`", path.display()))?;
        return if present == text { Ok(()) } else { Err(format!("{} is stale: run `make crds`", path.display())) };
    }
    std::fs::create_dir_all(directory)
        .and_then(|()| std::fs::write(&path, text))
        .map_err(|error| format!("writing {}: {error}", path.display()))
}
