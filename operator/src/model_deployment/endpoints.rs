//! The address by which a ModelDeployment is reached: a Service without a selector, and an EndpointSlice for each replica that serves.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;

use k8s_openapi::api::core::v1::{Service, ServicePort, ServiceSpec};
use k8s_openapi::api::discovery::v1::{Endpoint, EndpointConditions, EndpointPort, EndpointSlice};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};
use kube::{Resource, ResourceExt};
use serde_json::Value;
use stowage_crds::model_deployment::{PlacementState, PlacementStatus, ServiceType};
use stowage_crds::{ModelDeployment, names};

use crate::cache::Key;
use crate::state::{State, is_live};
use crate::step::{Step, Write};

/// Ollama's own port.
const PORT: i32 = 11434;
const PORT_NAME: &str = "http";
const SERVICE_NAME_LABEL: &str = "kubernetes.io/service-name";
const MANAGED_BY_LABEL: &str = "endpointslice.kubernetes.io/managed-by";

/// ModelDeployments, and what is left of those that are gone.
pub fn keys(state: &State) -> std::collections::BTreeSet<Key> {
    let of_slices = state
        .slices
        .iter()
        .filter_map(|(key, slice)| slice.labels().get(names::MODEL_DEPLOYMENT_LABEL).map(|name| Key::new(&key.namespace, name)));
    state.deployments.keys().into_iter().chain(of_slices).collect()
}

/// Who comes is let in before who goes is taken out: between the two, whoever follows the slices would find nobody, and say so for as long as it takes to look again.
pub fn step(state: &State, key: &Key) -> Step {
    let deployment = state.deployments.get(key).filter(|deployment| is_live(deployment));
    let wanted: BTreeMap<String, EndpointSlice> = deployment.map(|deployment| slices(deployment)).unwrap_or_default();
    let removal = removal(state, key, &wanted);
    let service = deployment.map(|deployment| service(deployment)).filter(|service| !is_there(state.services.get(key), service));
    if let Some(service) = service {
        // Without it nobody is let in.
        let version = state.services.get(key).and_then(|found| found.resource_version());
        return removal.unwrap_or_else(|| Step::write(Write::Service { key: key.clone(), version, service: Box::new(service) }));
    }
    let slices = wanted.into_iter().map(|(name, slice)| (Key::new(&key.namespace, &name), slice));
    for (key, slice) in slices {
        let known = state.slices.get(&key);
        if !is_there(known, &slice) {
            let version = known.and_then(|found| found.resource_version());
            return Step::write(Write::Slice { key, version, slice: Box::new(slice) });
        }
    }
    removal.unwrap_or(Step::Done)
}

/// Of a slice that is there and not wanted.
fn removal(state: &State, key: &Key, wanted: &BTreeMap<String, EndpointSlice>) -> Option<Step> {
    let belongs = |slice: &EndpointSlice| slice.labels().get(names::MODEL_DEPLOYMENT_LABEL) == Some(&key.name);
    let mut present = state.slices.iter().filter(|(found, slice)| found.namespace == key.namespace && belongs(slice));
    let (found, slice) = present.find(|(found, _)| !wanted.contains_key(&found.name))?;
    let (uid, version) = (slice.uid().unwrap_or_default(), slice.resource_version().unwrap_or_default());
    Some(Step::write(Write::RemoveSlice { key: found.clone(), uid, version }))
}

fn is_there<K: serde::Serialize>(known: Option<&Arc<K>>, wanted: &K) -> bool {
    known.is_some_and(|found| has_all(found.as_ref(), wanted))
}

fn owner(deployment: &ModelDeployment) -> OwnerReference {
    OwnerReference { controller: Some(true), ..deployment.controller_owner_ref(&()).unwrap_or_default() }
}

fn metadata(deployment: &ModelDeployment, name: &str, labels: &[(&str, &str)]) -> ObjectMeta {
    let mut all = BTreeMap::from([(names::MODEL_DEPLOYMENT_LABEL.to_owned(), deployment.name_any())]);
    all.extend(labels.iter().map(|(label, value)| ((*label).to_owned(), (*value).to_owned())));
    ObjectMeta {
        name: Some(name.to_owned()),
        namespace: deployment.namespace(),
        labels: Some(all),
        owner_references: Some(vec![owner(deployment)]),
        ..ObjectMeta::default()
    }
}

fn service(deployment: &ModelDeployment) -> Service {
    let wanted = &deployment.spec.service;
    let type_ = match wanted.type_ {
        ServiceType::ClusterIP => "ClusterIP",
        ServiceType::NodePort => "NodePort",
        ServiceType::LoadBalancer => "LoadBalancer",
    };
    let annotations = (!wanted.annotations.is_empty()).then(|| wanted.annotations.clone());
    Service {
        metadata: ObjectMeta { annotations, ..metadata(deployment, &deployment.name_any(), &[]) },
        spec: Some(ServiceSpec {
            type_: Some(type_.into()),
            ports: Some(vec![ServicePort {
                name: Some(PORT_NAME.into()),
                port: PORT,
                protocol: Some("TCP".into()),
                ..ServicePort::default()
            }]),
            ..ServiceSpec::default()
        }),
        status: None,
    }
}

fn slices(deployment: &ModelDeployment) -> BTreeMap<String, EndpointSlice> {
    let placements = deployment.status.iter().flat_map(|status| &status.placements);
    let ready = placements.filter(|placement| placement.state == PlacementState::Ready);
    ready.filter_map(|placement| Some((placement.replica.clone(), slice(deployment, placement)?))).collect()
}

fn slice(deployment: &ModelDeployment, placement: &PlacementStatus) -> Option<EndpointSlice> {
    let address: SocketAddr = placement.endpoint.parse().ok()?;
    let name = deployment.name_any();
    let replica = names::label_value(&placement.replica);
    let labels = [(SERVICE_NAME_LABEL, name.as_str()), (MANAGED_BY_LABEL, names::ENDPOINT_SLICE_MANAGER), (names::REPLICA_LABEL, replica)];
    let conditions = EndpointConditions { ready: Some(true), serving: Some(true), terminating: Some(false) };
    Some(EndpointSlice {
        metadata: metadata(deployment, &placement.replica, &labels),
        address_type: if address.is_ipv4() { "IPv4" } else { "IPv6" }.into(),
        endpoints: Some(vec![Endpoint {
            addresses: vec![address.ip().to_string()],
            conditions: Some(conditions),
            node_name: Some(placement.node.clone()),
            ..Endpoint::default()
        }]),
        ports: Some(vec![EndpointPort {
            name: Some(PORT_NAME.into()),
            port: Some(address.port().into()),
            protocol: Some("TCP".into()),
            ..EndpointPort::default()
        }]),
    })
}

/// Whether all that is wanted is there; what others added is theirs.
fn has_all<K: serde::Serialize>(found: &K, wanted: &K) -> bool {
    match (serde_json::to_value(found), serde_json::to_value(wanted)) {
        (Ok(found), Ok(wanted)) => contains(&found, &wanted),
        _ => false,
    }
}

fn contains(found: &Value, wanted: &Value) -> bool {
    match (found, wanted) {
        (Value::Object(found), Value::Object(wanted)) => {
            wanted.iter().all(|(name, wanted)| found.get(name).is_some_and(|found| contains(found, wanted)))
        }
        (Value::Array(found), Value::Array(wanted)) => {
            found.len() == wanted.len() && found.iter().zip(wanted).all(|(found, wanted)| contains(found, wanted))
        }
        _ => found == wanted,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_others_added_does_not_count_as_a_change() {
        assert!(contains(&json!({"a": [{"b": 1, "nodePort": 30000}], "c": 2}), &json!({"a": [{"b": 1}]})));
        assert!(!contains(&json!({"a": [{"b": 1}, {"b": 2}]}), &json!({"a": [{"b": 1}]})));
        assert!(!contains(&json!({"a": 1}), &json!({"b": 1})));
    }
}
