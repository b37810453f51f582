//! The CustomResourceDefinitions as they are installed.

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::CustomResourceExt;
use serde_json::Value;

use crate::{ModelDeployment, ModelNode};

/// Both kinds, ready to be applied.
pub fn all() -> Result<Vec<CustomResourceDefinition>, serde_json::Error> {
    [ModelDeployment::crd(), ModelNode::crd()].iter().map(with_known_formats).collect()
}

/// Kubernetes knows the formats `int32` and `int64` alone and warns of schemars' `uint32`; the minimum of 0 that comes with it says the rest.
fn with_known_formats(definition: &CustomResourceDefinition) -> Result<CustomResourceDefinition, serde_json::Error> {
    let mut value = serde_json::to_value(definition)?;
    rewrite_formats(&mut value);
    serde_json::from_value(value)
}

fn rewrite_formats(value: &mut Value) {
    match value {
        Value::Object(fields) => {
            if let Some(format) = fields.get_mut("format").filter(|format| format.as_str().is_some_and(|f| f.starts_with("uint"))) {
                *format = "int64".into();
            }
            fields.values_mut().for_each(rewrite_formats);
        }
        Value::Array(items) => items.iter_mut().for_each(rewrite_formats),
        _ => {}
    }
}
