//! An agent with the token of its node's Pod tries everything against another node, and is refused by the policy's name.

use anyhow::{Context, Result, ensure};
use kube::Client;
use kube::api::{DeleteParams, DynamicObject, ListParams, Patch, PatchParams, PostParams};
use serde_json::{Value, json};
use stowage_control_plane::processes::wait_for;
use stowage_end_to_end::installed::{self, Account};

use crate::roles::may;
use crate::{Installed, PROPAGATION, VERBS, api, refusal};

const STOWAGE: &str = "stowage.dev/v1alpha1";
const LEASES: &str = "coordination.k8s.io/v1";
const EVENTS: &str = "events.k8s.io/v1";
const POLICY: &str = "ValidatingAdmissionPolicy 'stowage-agent' with binding 'stowage-agent' denied request: ";

/// Something that an agent could try to write.
enum Try {
    Create(&'static str, Value),
    Apply(&'static str, Value),
    Merge(&'static str, &'static str, &'static str, &'static str, Value),
    /// Of the status.
    Status(&'static str),
    Delete(&'static str, &'static str, &'static str, &'static str),
    DeleteAll(&'static str, &'static str, &'static str),
}

impl Try {
    async fn by(&self, client: &Client) -> Result<(), kube::Error> {
        let of = |object: &Value, namespace: &str| {
            let api = api(client, object["apiVersion"].as_str().unwrap(), object["kind"].as_str().unwrap(), namespace);
            (api, serde_json::from_value::<DynamicObject>(object.clone()).unwrap())
        };
        let force = PatchParams::apply("stowage-agent").force();
        match self {
            Try::Create(namespace, object) => {
                let (api, object) = of(object, namespace);
                api.create(&PostParams::default(), &object).await.map(drop)
            }
            Try::Apply(namespace, object) => {
                let (api, object) = of(object, namespace);
                api.patch(object.metadata.name.as_deref().unwrap(), &force, &Patch::Apply(&object)).await.map(drop)
            }
            Try::Merge(version, kind, namespace, name, patch) => {
                api(client, version, kind, namespace).patch(name, &PatchParams::default(), &Patch::Merge(patch)).await.map(drop)
            }
            Try::Status(name) => {
                let object = json!({"apiVersion": STOWAGE, "kind": "ModelNode", "metadata": {"name": name}, "status": {"address": "192.0.2.1", "version": "0"}});
                api(client, STOWAGE, "ModelNode", "").patch_status(name, &force, &Patch::Apply(&object)).await.map(drop)
            }
            Try::Delete(version, kind, namespace, name) => {
                api(client, version, kind, namespace).delete(name, &DeleteParams::default()).await.map(drop)
            }
            Try::DeleteAll(version, kind, namespace) => {
                api(client, version, kind, namespace).delete_collection(&DeleteParams::default(), &ListParams::default()).await.map(drop)
            }
        }
    }
}

fn lease(name: &str, holder: &str, label: &str) -> Value {
    let metadata = json!({"name": name, "labels": {"stowage.dev/node-lease": label}});
    json!({"apiVersion": LEASES, "kind": "Lease", "metadata": metadata, "spec": {"holderIdentity": holder, "leaseDurationSeconds": 40}})
}

fn event(name: &str, kind: &str, about: &str, instance: &str) -> Value {
    json!({
        "apiVersion": EVENTS, "kind": "Event", "metadata": {"name": name}, "eventTime": "2026-01-01T00:00:00.000000Z",
        "regarding": {"apiVersion": STOWAGE, "kind": kind, "name": about}, "reason": "Loaded", "action": "Load", "type": "Normal", "note": "n",
        "reportingController": "stowage-agent", "reportingInstance": instance,
    })
}

fn model_node(name: &str) -> Value {
    json!({"apiVersion": STOWAGE, "kind": "ModelNode", "metadata": {"name": name}, "spec": {}})
}

fn deployment(name: &str) -> Value {
    json!({"apiVersion": STOWAGE, "kind": "ModelDeployment", "metadata": {"name": name}, "spec": {"model": {"path": "m.gguf"}}})
}

/// What an agent does all day: with the token of its own node.
fn own(node: &'static str) -> Vec<Try> {
    let (lease_name, event_name): (String, String) = (format!("node-{node}"), format!("{node}-loaded"));
    let again = json!({"series": {"count": 2, "lastObservedTime": "2026-01-01T00:00:01.000000Z"}});
    let event_of: &'static str = if node == "node-a" { "node-a-loaded" } else { "node-b-loaded" };
    vec![
        Try::Status(node),
        Try::Apply("stowage-system", lease(&lease_name, node, node)),
        Try::Apply("stowage-system", lease(&lease_name, node, node)),
        Try::Create("default", event(&event_name, "ModelNode", node, node)),
        Try::Merge(EVENTS, "Event", "default", event_of, again),
    ]
}

/// What the agent of node A must not, though its role lets it: another node's objects, or its own in another's name.
fn others_by_the_chart() -> Vec<Try> {
    vec![
        Try::Status("node-b"),
        Try::Create("stowage-system", lease("node-node-c", "node-c", "node-c")),
        Try::Create("stowage-system", lease("node-node-c", "node-a", "node-a")),
        Try::Apply("stowage-system", lease("node-node-b", "node-b", "node-b")),
        Try::Apply("stowage-system", lease("node-node-a", "node-b", "node-a")),
        Try::Apply("stowage-system", lease("node-node-a", "node-a", "node-b")),
        Try::Apply("stowage-system", lease("stowage-operator", "node-a", "node-a")),
        Try::Create("default", event("other", "ModelNode", "node-b", "node-a")),
        Try::Create("default", event("other", "ModelNode", "node-a", "node-b")),
        Try::Create("default", event("other", "ModelDeployment", "m", "node-a")),
        Try::Merge(EVENTS, "Event", "default", "node-b-loaded", json!({"series": null})),
    ]
}

/// What its role does not let it either: were the role ever wider, the policy would still hold.
fn others_by_any_role() -> Vec<Try> {
    let plain = json!({
        "apiVersion": "v1", "kind": "Event", "metadata": {"name": "plain"}, "reason": "Loaded", "type": "Normal", "message": "m",
        "involvedObject": {"apiVersion": STOWAGE, "kind": "ModelNode", "name": "node-a"},
    });
    vec![
        Try::Create("", model_node("node-c")),
        Try::Merge(STOWAGE, "ModelNode", "", "node-a", json!({"spec": {"devices": []}})),
        Try::Merge(STOWAGE, "ModelNode", "", "node-b", json!({"metadata": {"labels": {"a": "b"}}})),
        Try::Delete(STOWAGE, "ModelNode", "", "node-a"),
        Try::Delete(STOWAGE, "ModelNode", "", "node-b"),
        Try::DeleteAll(STOWAGE, "ModelNode", ""),
        Try::Create("default", deployment("mine")),
        Try::Merge(STOWAGE, "ModelDeployment", "default", "m", json!({"spec": {"replicas": 9}})),
        Try::Delete(STOWAGE, "ModelDeployment", "default", "m"),
        Try::DeleteAll(STOWAGE, "ModelDeployment", "default"),
        Try::Create("default", lease("node-node-a", "node-a", "node-a")),
        Try::Delete(LEASES, "Lease", "stowage-system", "node-node-b"),
        Try::DeleteAll(LEASES, "Lease", "stowage-system"),
        Try::Delete(EVENTS, "Event", "default", "node-b-loaded"),
        Try::Create("default", plain),
    ]
}

async fn all_are_refused(tries: &[Try], client: &Client, because: &str) -> Result<()> {
    for (number, what) in tries.iter().enumerate() {
        let message = refusal(what.by(client).await).with_context(|| format!("try {number}"))?;
        ensure!(message.contains(POLICY) && message.contains(because), "try {number} was refused otherwise: {message}");
    }
    Ok(())
}

async fn all_are_taken(tries: &[Try], client: &Client) -> Result<()> {
    for (number, what) in tries.iter().enumerate() {
        what.by(client).await.with_context(|| format!("try {number}"))?;
    }
    Ok(())
}

/// Every verb on all that the policy is about, for agents: what RBAC would be if somebody were careless.
fn careless_role() -> Vec<Value> {
    let verbs = json!(VERBS);
    let rule = |groups: Value, resources: Value| json!({"apiGroups": groups, "resources": resources, "verbs": verbs});
    let rules = [
        rule(json!(["stowage.dev"]), json!(["*"])),
        rule(json!(["coordination.k8s.io"]), json!(["leases"])),
        rule(json!(["", "events.k8s.io"]), json!(["events"])),
    ];
    let role = |kind: &str| json!({"apiVersion": "rbac.authorization.k8s.io/v1", "kind": kind, "metadata": {"name": "careless"}});
    let (mut allowed, mut bound) = (role("ClusterRole"), role("ClusterRoleBinding"));
    allowed["rules"] = json!(rules);
    bound["roleRef"] = json!({"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "careless"});
    bound["subjects"] = json!([{"kind": "ServiceAccount", "name": "stowage-agent", "namespace": "stowage-system"}]);
    vec![allowed, bound]
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_is_held_to_its_own_node_by_the_policy() -> Result<()> {
    let installed = Installed::start().await?;
    for object in [model_node("node-a"), model_node("node-b")] {
        installed.apply(&object)?;
    }
    Try::Create("default", deployment("m")).by(installed.admin()).await?;
    let a = installed.acting_as(Account::Agent, Some("node-a")).await?;
    let b = installed.acting_as(Account::Agent, Some("node-b")).await?;
    // The policy holds from a moment after it was made.
    let held = wait_for(PROPAGATION, async || refusal(Try::Status("node-b").by(&a).await).ok().filter(|message| message.contains(POLICY)));
    let message = held.await.context("the policy never held")?;
    let expected = "the agent of node node-a writes the status of ModelNode node-a and nothing else of stowage.dev; \
                    this was UPDATE of modelnodes/status node-b";
    ensure!(message.ends_with(expected), "{message}");

    all_are_taken(&own("node-b"), &b).await.context("the agent of node-b, its own")?;
    all_are_taken(&own("node-a"), &a).await.context("the agent of node-a, its own")?;
    all_are_refused(&others_by_the_chart(), &a, "the agent of node node-a writes").await?;
    for (number, what) in others_by_any_role().iter().enumerate() {
        let message = refusal(what.by(&a).await).with_context(|| format!("try {number}"))?;
        ensure!(message.contains("forbidden"), "try {number} was refused otherwise: {message}");
    }

    // A token of the account that names no node: bound to nothing, or to a Pod without a place.
    let unbound = installed::token(installed.admin(), Account::Agent, None).await?;
    let unbound = installed.acting_by(&unbound, "unbound").await?;
    let without_a_place = installed.acting_as(Account::Agent, None).await?;
    for client in [&unbound, &without_a_place] {
        all_are_refused(&own("node-a")[..4], client, "this token names no node").await?;
        all_are_refused(&others_by_the_chart(), client, "this token names no node").await?;
    }

    for object in careless_role() {
        installed.apply(&object)?;
    }
    let leases = ("coordination.k8s.io", "leases", "");
    wait_for(PROPAGATION, async || may(&a, "deletecollection", leases, "default").await.ok().filter(|yes| *yes))
        .await
        .context("no role")?;
    all_are_refused(&others_by_any_role(), &a, "the agent of node node-a writes").await?;
    all_are_refused(&others_by_the_chart(), &a, "the agent of node node-a writes").await?;
    all_are_refused(&others_by_any_role(), &unbound, "this token names no node").await?;
    // Its own Lease it may remove, where a role lets it; when it tried to remove all, that one went.
    let made = Try::Apply("stowage-system", lease("node-node-a", "node-a", "node-a"));
    all_are_taken(&[made, Try::Delete(LEASES, "Lease", "stowage-system", "node-node-a")], &a).await?;
    // Nobody else is held to anything.
    Try::Status("node-b").by(installed.admin()).await?;
    installed.control_plane.stop();
    Ok(())
}
