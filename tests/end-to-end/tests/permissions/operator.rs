//! The operator makes Pods of workers alone, and those confined.

use anyhow::{Context, Result, ensure};
use kube::api::{DeleteParams, DynamicObject, PostParams};
use serde_json::{Value, json};
use stowage_control_plane::processes::wait_for;
use stowage_end_to_end::installed::Account;

use crate::{Installed, PROPAGATION, api, refusal};

/// A worker's Pod as the operator would make it, in the chart's terms.
fn worker_pod() -> Value {
    let folder = |name: &str, path: &str| json!({"name": name, "hostPath": {"path": path}});
    let mount = |name: &str, path: &str| json!({"name": name, "mountPath": path, "readOnly": true});
    json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": "m-0", "labels": {"stowage.dev/assignment": "a"}},
        "spec": {
            "serviceAccountName": "stowage-worker", "automountServiceAccountToken": false,
            "securityContext": {"runAsNonRoot": true, "runAsUser": 65532, "seccompProfile": {"type": "RuntimeDefault"}},
            "volumes": [folder("socket", "/run/stowage/pods"), folder("models", "/var/lib/stowage/models")],
            "containers": [{
                "name": "worker", "image": "any",
                "env": [{"name": "STOWAGE_POD_UID", "valueFrom": {"fieldRef": {"fieldPath": "metadata.uid"}}}, {"name": "RUST_LOG", "value": "info"}],
                "securityContext": {
                    "allowPrivilegeEscalation": false, "readOnlyRootFilesystem": true, "capabilities": {"drop": ["ALL"]},
                },
                "volumeMounts": [mount("socket", "/run/stowage/pods"), mount("models", "/var/lib/stowage/models")],
            }],
        },
    })
}

/// Pods that somebody would make who had got hold of the operator, and what the policy says of each.
fn other_pods() -> Vec<(&'static str, Value)> {
    let with = |pointer: &str, name: &str, value: Value| {
        let mut pod = worker_pod();
        pod.pointer_mut(pointer).unwrap()[name] = value;
        pod
    };
    let (account, container, folders) = ("has the workers' account", "has one container", "has the folders of models");
    let root =
        json!({"allowPrivilegeEscalation": false, "readOnlyRootFilesystem": true, "capabilities": {"drop": ["ALL"]}, "runAsUser": 0});
    let secret = json!([{"name": "KEY", "valueFrom": {"secretKeyRef": {"name": "keys", "key": "key"}}}]);
    vec![
        ("Pods of workers in stowage-system", with("/metadata", "labels", json!({}))),
        (account, with("/spec", "serviceAccountName", json!("stowage-operator"))),
        (account, with("/spec", "automountServiceAccountToken", json!(true))),
        (account, with("/spec", "hostPID", json!(true))),
        (account, with("/spec", "hostNetwork", json!(true))),
        (account, with("/spec/securityContext", "runAsUser", json!(1))),
        (account, with("/spec/securityContext", "seccompProfile", json!({"type": "Unconfined"}))),
        (container, with("/spec/containers/0/securityContext", "allowPrivilegeEscalation", json!(true))),
        (container, with("/spec/containers/0", "securityContext", root)),
        (container, with("/spec/containers/0/securityContext", "capabilities", json!({"drop": ["ALL"], "add": ["NET_RAW"]}))),
        (container, with("/spec/containers/0", "env", secret)),
        (container, with("/spec/containers/0", "envFrom", json!([{"secretRef": {"name": "keys"}}]))),
        (container, with("/spec/containers/0/volumeMounts/1", "readOnly", json!(false))),
        (container, with("/spec", "initContainers", json!([{"name": "first", "image": "any"}]))),
        (folders, with("/spec", "volumes", json!([{"name": "socket", "hostPath": {"path": "/"}}, {"name": "models", "emptyDir": {}}]))),
        (
            folders,
            with("/spec", "volumes", json!([{"name": "socket", "secret": {"secretName": "keys"}}, {"name": "models", "emptyDir": {}}])),
        ),
    ]
}

#[tokio::test(flavor = "multi_thread")]
async fn the_operator_makes_no_pods_but_those_of_workers() -> Result<()> {
    const POLICY: &str = "ValidatingAdmissionPolicy 'stowage-operator' with binding 'stowage-operator' denied request: ";
    let installed = Installed::start().await?;
    let operator = installed.acting_as(Account::Operator, Some("node-a")).await?;
    let pods = api(&operator, "v1", "Pod", "stowage-system");
    let make = async |pod: &Value| {
        let pod = serde_json::from_value::<DynamicObject>(pod.clone()).unwrap();
        pods.create(&PostParams { dry_run: true, ..PostParams::default() }, &pod).await.map(drop)
    };
    let others = other_pods();
    // The policy holds from a moment after it was made.
    let held = wait_for(PROPAGATION, async || refusal(make(&others[0].1).await).ok().filter(|message| message.contains(POLICY)));
    held.await.context("the policy never held")?;
    for (number, (because, pod)) in others.iter().enumerate() {
        let message = refusal(make(pod).await).with_context(|| format!("Pod {number}"))?;
        ensure!(message.contains(POLICY) && message.contains(because), "Pod {number} was refused otherwise: {message}");
    }
    make(&worker_pod()).await.context("a worker's Pod")?;
    let own = "stowage-operator-node-a";
    let message = refusal(pods.delete(own, &DeleteParams::default()).await.map(drop))?;
    ensure!(message.contains(POLICY), "a Pod of another kind is not the operator's to remove: {message}");
    installed.control_plane.stop();
    Ok(())
}
