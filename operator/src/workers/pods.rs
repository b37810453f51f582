//! The Pod of one worker, from its assignment and what all have in common. Pure.
//!
//! It is as restricted as it can be: no token, no capability, no writable folder, not root. Where it goes is decided; the scheduler has still to agree, for
//! it knows of the memory that other Pods asked for.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{
    Affinity, Capabilities, Container, ContainerPort, EnvVar, EnvVarSource, HTTPGetAction, NodeAffinity, NodeSelector,
    NodeSelectorRequirement, NodeSelectorTerm, ObjectFieldSelector, Pod, PodSecurityContext, PodSpec, Probe, ResourceRequirements,
    SeccompProfile, SecurityContext, VolumeMount,
};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use sha2::{Digest, Sha256};
use stowage_crds::model_node::Assignment;
use stowage_crds::names;
use stowage_placement::{Bytes, DeviceKind};

use super::settings::Settings;

/// The name of a worker's container.
pub const CONTAINER: &str = "worker";
/// Of a worker's Pod: the node that its replica was placed on.
pub const NODE_ANNOTATION: &str = "stowage.dev/node";
const PORT_NAME: &str = "http";
/// What a Pod may take of memory beyond its plan: a part of it, for the kernel's own accounts of it (page tables), and a fixed amount for sockets and for
/// the pages of the model's file, which the kernel counts to the Pod and takes back when there is need.
const SLACK_DIVISOR: u64 = 32;
const LEAST_SLACK: Bytes = Bytes::mib(64);
/// From the moment at which a worker cuts off what still runs until the kubelet ends it.
const KILL_AFTER_GRACE_SECONDS: i64 = 5;

/// Named after the replica, and apart from a Pod of the same replica that still ends elsewhere.
pub fn name(assignment: &Assignment) -> String {
    let digest = Sha256::digest(assignment.uid.as_bytes());
    format!("{}-{:02x}{:02x}{:02x}", assignment.replica, digest[0], digest[1], digest[2])
}

/// What the Pod is given of the host's memory, as request and as limit: what was planned and some slack, in whole MiB.
pub fn memory(assignment: &Assignment) -> Bytes {
    let host = assignment.plan.devices.iter().filter(|on| on.kind == DeviceKind::Host);
    let planned: Bytes = host.map(|on| on.total_bytes).sum();
    let with_slack = planned.saturating_add(Bytes(planned.0 / SLACK_DIVISOR)).saturating_add(LEAST_SLACK);
    Bytes(with_slack.0.checked_next_multiple_of(1 << 20).unwrap_or(u64::MAX))
}

pub fn labels(assignment: &Assignment, settings: &Settings) -> BTreeMap<String, String> {
    let owner = &assignment.model_deployment;
    let own = [
        (names::ASSIGNMENT_LABEL, assignment.uid.as_str()),
        (names::REPLICA_LABEL, names::label_value(&assignment.replica)),
        (names::MODEL_DEPLOYMENT_LABEL, owner.name.as_str()),
        (names::MODEL_DEPLOYMENT_NAMESPACE_LABEL, owner.namespace.as_str()),
    ];
    let own = own.map(|(name, value)| (name.to_owned(), value.to_owned()));
    settings.labels.clone().into_iter().chain(own).collect()
}

/// The Pod of this assignment's worker on this node.
pub fn pod(assignment: &Assignment, node: &str, namespace: &str, settings: &Settings) -> Pod {
    let mut annotations = settings.annotations.clone();
    annotations.insert(NODE_ANNOTATION.to_owned(), node.to_owned());
    let metadata = ObjectMeta {
        name: Some(name(assignment)),
        namespace: Some(namespace.to_owned()),
        labels: Some(labels(assignment, settings)),
        annotations: Some(annotations),
        ..ObjectMeta::default()
    };
    Pod { metadata, spec: Some(spec(assignment, node, settings)), status: None }
}

fn spec(assignment: &Assignment, node: &str, settings: &Settings) -> PodSpec {
    let gpus = gpus(assignment);
    PodSpec {
        affinity: Some(on_node(node)),
        automount_service_account_token: Some(false),
        containers: vec![container(assignment, &gpus, settings)],
        enable_service_links: Some(false),
        image_pull_secrets: Some(settings.image_pull_secrets.clone()).filter(|secrets| !secrets.is_empty()),
        priority_class_name: settings.priority_class_name.clone(),
        // Whether and when a worker comes again is decided by its agent and the operator.
        restart_policy: Some("Never".into()),
        runtime_class_name: settings.gpu_runtime_class_name.clone().filter(|_| !gpus.is_empty()),
        security_context: Some(PodSecurityContext {
            run_as_non_root: Some(true),
            run_as_user: Some(settings.user),
            run_as_group: Some(settings.group),
            seccomp_profile: Some(SeccompProfile { type_: "RuntimeDefault".into(), localhost_profile: None }),
            ..PodSecurityContext::default()
        }),
        service_account_name: Some(settings.service_account.clone()),
        termination_grace_period_seconds: Some(i64::from(assignment.termination_grace_period_seconds) + KILL_AFTER_GRACE_SECONDS),
        tolerations: Some(settings.tolerations.clone()).filter(|tolerations| !tolerations.is_empty()),
        volumes: Some(settings.volumes.clone()),
        ..PodSpec::default()
    }
}

/// As the Pods of DaemonSets: the scheduler sees the Pod, and has one node to choose from.
fn on_node(node: &str) -> Affinity {
    let this = NodeSelectorRequirement { key: "metadata.name".into(), operator: "In".into(), values: Some(vec![node.to_owned()]) };
    let term = NodeSelectorTerm { match_fields: Some(vec![this]), ..NodeSelectorTerm::default() };
    let required = NodeSelector { node_selector_terms: vec![term] };
    let affinity = NodeAffinity { required_during_scheduling_ignored_during_execution: Some(required), ..NodeAffinity::default() };
    Affinity { node_affinity: Some(affinity), ..Affinity::default() }
}

/// UUIDs of the GPUs that the plan has something on.
fn gpus(assignment: &Assignment) -> Vec<&str> {
    let devices = assignment.plan.devices.iter();
    devices.filter(|on| on.kind == DeviceKind::Gpu && on.total_bytes > Bytes::ZERO).map(|on| on.id.as_str()).collect()
}

fn container(assignment: &Assignment, gpus: &[&str], settings: &Settings) -> Container {
    let port = settings.port;
    Container {
        name: CONTAINER.into(),
        image: Some(settings.image.clone()),
        image_pull_policy: settings.image_pull_policy.clone(),
        args: Some(vec![
            "worker".into(),
            format!("--socket={}", settings.socket),
            format!("--assignment={}", assignment.uid),
            format!("--port={port}"),
        ]),
        env: Some(env(gpus, settings)),
        ports: Some(vec![ContainerPort {
            name: Some(PORT_NAME.into()),
            container_port: port.into(),
            protocol: Some("TCP".into()),
            ..ContainerPort::default()
        }]),
        // For whoever looks at Pods: which replicas serve is heard from agents, and sooner.
        readiness_probe: Some(Probe {
            http_get: Some(HTTPGetAction {
                path: Some("/readyz".into()),
                port: IntOrString::String(PORT_NAME.into()),
                ..HTTPGetAction::default()
            }),
            period_seconds: Some(5),
            timeout_seconds: Some(5),
            ..Probe::default()
        }),
        resources: Some(resources(assignment, settings)),
        security_context: Some(SecurityContext {
            allow_privilege_escalation: Some(false),
            capabilities: Some(Capabilities { drop: Some(vec!["ALL".into()]), add: None }),
            read_only_root_filesystem: Some(true),
            ..SecurityContext::default()
        }),
        // Its last words then stand in the Pod's status.
        termination_message_policy: Some("FallbackToLogsOnError".into()),
        volume_mounts: Some(settings.volume_mounts.iter().cloned().map(read_only).collect()),
        ..Container::default()
    }
}

fn env(gpus: &[&str], settings: &Settings) -> Vec<EnvVar> {
    let field = |name: &str, path: &str| EnvVar {
        name: name.into(),
        value_from: Some(EnvVarSource {
            field_ref: Some(ObjectFieldSelector { field_path: path.into(), api_version: None }),
            ..EnvVarSource::default()
        }),
        ..EnvVar::default()
    };
    let value = |name: &str, value: String| EnvVar { name: name.into(), value: Some(value), ..EnvVar::default() };
    let mut env = vec![field("STOWAGE_POD_UID", "metadata.uid"), field("STOWAGE_POD_ADDRESS", "status.podIP")];
    if !gpus.is_empty() {
        env.push(value("NVIDIA_VISIBLE_DEVICES", gpus.join(",")));
        env.push(value("NVIDIA_DRIVER_CAPABILITIES", "compute,utility".into()));
    }
    env.extend(settings.env.iter().cloned());
    env
}

fn resources(assignment: &Assignment, settings: &Settings) -> ResourceRequirements {
    let memory = Quantity(format!("{}Mi", memory(assignment).0 >> 20));
    let with_memory = |of: &Option<BTreeMap<String, Quantity>>| {
        let mut resources = of.clone().unwrap_or_default();
        resources.insert("memory".into(), memory.clone());
        Some(resources)
    };
    let (limits, requests) = (with_memory(&settings.resources.limits), with_memory(&settings.resources.requests));
    ResourceRequirements { limits, requests, ..settings.resources.clone() }
}

fn read_only(mount: VolumeMount) -> VolumeMount {
    VolumeMount { read_only: Some(true), ..mount }
}

#[cfg(test)]
mod tests {
    use serde_json::json;
    use stowage_placement::{DeviceAllocation, HOST};

    use super::*;
    use crate::testing::{assignment, worker_settings};

    fn planned(gpu: Bytes, host: Bytes) -> Assignment {
        let mut assignment = assignment("0f8fad5b-d9cb-469f-a165-70867728950e", gpu);
        assignment.plan.devices[0].kind = DeviceKind::Gpu;
        assignment.plan.devices[1] =
            DeviceAllocation { id: HOST.into(), kind: DeviceKind::Host, total_bytes: host, ..DeviceAllocation::default() };
        assignment
    }

    #[test]
    fn a_workers_pod_is_restricted_has_its_plans_memory_and_goes_to_its_node_alone() {
        let assignment = planned(Bytes::ZERO, Bytes::mib(1000));
        let pod = serde_json::to_value(pod(&assignment, "n1", "stowage-system", &worker_settings())).unwrap();
        let replica = &assignment.replica;
        assert_eq!(
            pod,
            json!({
                "apiVersion": "v1",
                "kind": "Pod",
                "metadata": {
                    "name": name(&assignment),
                    "namespace": "stowage-system",
                    "labels": {
                        "app.kubernetes.io/component": "worker",
                        "stowage.dev/assignment": assignment.uid,
                        "stowage.dev/model-deployment": "",
                        "stowage.dev/model-deployment-namespace": "",
                        "stowage.dev/replica": replica,
                    },
                    "annotations": {"stowage.dev/node": "n1"},
                },
                "spec": {
                    "affinity": {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": [
                        {"matchFields": [{"key": "metadata.name", "operator": "In", "values": ["n1"]}]},
                    ]}}},
                    "automountServiceAccountToken": false,
                    "containers": [{
                        "name": "worker",
                        "image": "registry/stowage-agent:1",
                        "args": [
                            "worker", "--socket=/run/stowage/pods/agent.sock", format!("--assignment={}", assignment.uid), "--port=11434",
                        ],
                        "env": [
                            {"name": "STOWAGE_POD_UID", "valueFrom": {"fieldRef": {"fieldPath": "metadata.uid"}}},
                            {"name": "STOWAGE_POD_ADDRESS", "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}},
                            {"name": "RUST_LOG", "value": "info"},
                        ],
                        "ports": [{"name": "http", "containerPort": 11434, "protocol": "TCP"}],
                        "readinessProbe": {"httpGet": {"path": "/readyz", "port": "http"}, "periodSeconds": 5, "timeoutSeconds": 5},
                        // 1000 MiB, a 32nd of it and 64 MiB.
                        "resources": {"limits": {"memory": "1096Mi"}, "requests": {"cpu": "500m", "memory": "1096Mi"}},
                        "securityContext": {
                            "allowPrivilegeEscalation": false, "capabilities": {"drop": ["ALL"]}, "readOnlyRootFilesystem": true,
                        },
                        "terminationMessagePolicy": "FallbackToLogsOnError",
                        "volumeMounts": [
                            {"name": "models", "mountPath": "/var/lib/stowage/models", "readOnly": true},
                            {"name": "socket", "mountPath": "/run/stowage/pods", "readOnly": true},
                        ],
                    }],
                    "enableServiceLinks": false,
                    "restartPolicy": "Never",
                    "securityContext": {
                        "runAsNonRoot": true, "runAsUser": 65532, "runAsGroup": 65532, "seccompProfile": {"type": "RuntimeDefault"},
                    },
                    "serviceAccountName": "stowage-worker",
                    "terminationGracePeriodSeconds": 35,
                    "volumes": [
                        {"name": "models", "hostPath": {"path": "/var/lib/stowage/models"}},
                        {"name": "socket", "hostPath": {"path": "/run/stowage/pods", "type": "Directory"}},
                    ],
                },
            })
        );
    }

    #[test]
    fn a_plan_with_layers_on_gpus_gets_those_gpus_and_the_runtime_that_gives_them() {
        let spec = pod(&planned(Bytes::gib(1), Bytes::mib(100)), "n1", "s", &worker_settings()).spec.unwrap();
        let env = spec.containers[0].env.clone().unwrap();
        let of = |name: &str| env.iter().find(|variable| variable.name == name).and_then(|variable| variable.value.clone());
        assert_eq!((of("NVIDIA_VISIBLE_DEVICES").unwrap(), spec.runtime_class_name.unwrap()), (crate::testing::gpu("n1"), "nvidia".into()));
    }

    #[test]
    fn pods_of_one_replica_are_told_apart_by_their_assignments() {
        let (one, mut other) = (assignment("a", Bytes::ZERO), assignment("b", Bytes::ZERO));
        other.replica.clone_from(&one.replica);
        assert_eq!(name(&one), name(&one));
        assert_ne!(name(&one), name(&other));
        let long = Assignment { replica: format!("{}-0123456789-100", "m".repeat(50)), ..one };
        assert!(labels(&long, &worker_settings()).values().all(|value| value.len() <= 63));
    }
}
