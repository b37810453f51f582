//! Writes the CustomResourceDefinitions to `crds/generated/`, or with `--check` fails where what is there is stale.

use std::path::Path;
use std::process::ExitCode;

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::CustomResourceExt;
use stowage_crds::{ModelDeployment, ModelNode, yaml};

fn main() -> ExitCode {
    let check = std::env::args().nth(1).as_deref() == Some("--check");
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("generated");
    match [ModelDeployment::crd(), ModelNode::crd()].iter().try_for_each(|crd| emit(crd, &directory, check)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(message) => {
            eprintln!("crdgen: {message}");
            ExitCode::FAILURE
        }
    }
}

fn emit(crd: &CustomResourceDefinition, directory: &Path, check: bool) -> Result<(), String> {
    let crd = &with_known_formats(crd)?;
    let path = directory.join(format!("{}.yaml", crd.spec.names.plural));
    let text = yaml::to_string(crd).map_err(|error| format!("writing {} as YAML: {error}", crd.spec.names.kind))?;
    if check {
        let present = std::fs::read_to_string(&path).map_err(|error| format!("reading {}: {error}; run `make crds`", path.display()))?;
        return if present == text { Ok(()) } else { Err(format!("{} is stale: run `make crds`", path.display())) };
    }
    std::fs::create_dir_all(directory).and_then(|()| std::fs::write(&path, text)).map_err(|error| format!("writing {}: {error}", path.display()))
}

/// Kubernetes knows the formats `int32` and `int64` alone and warns of schemars' `uint32`; the minimum of 0 that comes with it says the rest.
fn with_known_formats(crd: &CustomResourceDefinition) -> Result<CustomResourceDefinition, String> {
    fn rewrite(value: &mut serde_json::Value) {
        match value {
            serde_json::Value::Object(fields) => {
                if let Some(format) = fields.get_mut("format").filter(|format| format.as_str().is_some_and(|f| f.starts_with("uint"))) {
                    *format = "int64".into();
                }
                fields.values_mut().for_each(rewrite);
            }
            serde_json::Value::Array(items) => items.iter_mut().for_each(rewrite),
            _ => {}
        }
    }
    let mut value = serde_json::to_value(crd).map_err(|error| format!("reading the schema: {error}"))?;
    rewrite(&mut value);
    serde_json::from_value(value).map_err(|error| format!("reading the rewritten schema: {error}"))
}
