//! What the accounts of the chart may do, asked of the API server with tokens as their Pods have them.
#![allow(clippy::unwrap_used)]

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context, Result, bail, ensure};
use futures::future::try_join_all;
use k8s_openapi::api::authorization::v1::{ResourceAttributes, SelfSubjectAccessReview, SelfSubjectAccessReviewSpec};
use kube::api::{ApiResource, DeleteParams, DynamicObject, GroupVersionKind, ListParams, Patch, PatchParams, PostParams};
use kube::{Api, Client};
use serde_json::{Value, json};
use stowage_control_plane::processes::wait_for;
use stowage_control_plane::{ControlPlane, Options};
use stowage_end_to_end::installed::{self, Account};
use tempfile::TempDir;
use tokio::time::Duration;

/// For what the API server's caches of roles and policies take to hear of a change.
const PROPAGATION: Duration = Duration::from_secs(60);

struct Installed {
    control_plane: ControlPlane,
    folder: TempDir,
}

impl Installed {
    async fn start() -> Result<Installed> {
        let control_plane = ControlPlane::start(Options { controller_manager: false, ..Options::default() }).await?;
        let folder = tempfile::Builder::new().prefix("stowage-permissions-").tempdir()?;
        installed::install::<&str>(&control_plane, folder.path(), &[]).await?;
        for node in ["node-a", "node-b"] {
            let node = json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": node}});
            installed::apply(&control_plane, folder.path(), &node.to_string())?;
        }
        Ok(Installed { control_plane, folder })
    }

    fn admin(&self) -> &Client {
        &self.control_plane.client
    }

    fn apply(&self, object: &Value) -> Result<()> {
        installed::apply(&self.control_plane, self.folder.path(), &object.to_string())
    }

    async fn acting_by(&self, token: &str, name: &str) -> Result<Client> {
        let path = self.folder.path().join(format!("{name}.kubeconfig"));
        installed::client(self.control_plane.kubeconfig(), token, path).await
    }

    async fn acting_as(&self, account: Account, node: Option<&str>) -> Result<Client> {
        let token = installed::bound_token(self.admin(), account, node).await?;
        self.acting_by(&token, &format!("{}-{}", account.name(), node.unwrap_or_default())).await
    }
}

const VERBS: [&str; 8] = ["get", "list", "watch", "create", "update", "patch", "delete", "deletecollection"];

/// Group, resource with its subresource, and where it matters, the name of an object.
const RESOURCES: &[(&str, &str, &str)] = &[
    ("stowage.dev", "modeldeployments", ""),
    ("stowage.dev", "modeldeployments", "stowage-smoke-test"),
    ("stowage.dev", "modeldeployments/status", ""),
    ("stowage.dev", "modeldeployments/scale", ""),
    ("stowage.dev", "modeldeployments/finalizers", ""),
    ("stowage.dev", "modelnodes", ""),
    ("stowage.dev", "modelnodes/status", ""),
    ("", "secrets", ""),
    ("", "configmaps", ""),
    ("", "pods", ""),
    ("", "pods/exec", ""),
    ("", "pods/log", ""),
    ("", "pods/ephemeralcontainers", ""),
    ("", "nodes", ""),
    ("", "nodes/status", ""),
    ("", "nodes/proxy", ""),
    ("", "services", ""),
    ("", "services", "stowage-smoke-test"),
    ("", "serviceaccounts", ""),
    ("", "serviceaccounts", "stowage-worker"),
    ("", "serviceaccounts/token", ""),
    ("", "events", ""),
    ("", "namespaces", ""),
    ("", "persistentvolumeclaims", ""),
    ("events.k8s.io", "events", ""),
    ("coordination.k8s.io", "leases", ""),
    ("coordination.k8s.io", "leases", "stowage-operator"),
    ("coordination.k8s.io", "leases", "node-node-a"),
    ("discovery.k8s.io", "endpointslices", ""),
    ("scheduling.k8s.io", "priorityclasses", ""),
    ("apps", "deployments", ""),
    ("apps", "daemonsets", ""),
    ("batch", "jobs", ""),
    ("rbac.authorization.k8s.io", "roles", ""),
    ("rbac.authorization.k8s.io", "clusterroles", ""),
    ("rbac.authorization.k8s.io", "clusterrolebindings", ""),
    ("apiextensions.k8s.io", "customresourcedefinitions", ""),
    ("admissionregistration.k8s.io", "validatingadmissionpolicies", ""),
    ("*", "*", ""),
];

const SCOPES: [&str; 3] = ["stowage-system", "default", "elsewhere"];

async fn may(client: &Client, verb: &str, (group, resource, name): (&str, &str, &str), namespace: &str) -> Result<bool> {
    let (resource, subresource) = resource.split_once('/').unwrap_or((resource, ""));
    let some = |text: &str| Some(text.to_owned());
    let attributes = ResourceAttributes {
        group: some(group),
        resource: some(resource),
        subresource: some(subresource),
        name: some(name),
        namespace: some(namespace),
        verb: some(verb),
        ..ResourceAttributes::default()
    };
    let spec = SelfSubjectAccessReviewSpec { resource_attributes: Some(attributes), ..Default::default() };
    let review = SelfSubjectAccessReview { spec, ..Default::default() };
    let answer = Api::<SelfSubjectAccessReview>::all(client.clone()).create(&PostParams::default(), &review).await?;
    Ok(answer.status.context("a review without an answer")?.allowed)
}

/// A line for each resource that something may be done with: where, what, and which verbs. What holds in every namespace holds `everywhere`.
async fn table(client: &Client) -> Result<String> {
    let mut lines = BTreeSet::new();
    for resource in RESOURCES {
        let mut by_scope = BTreeMap::new();
        for scope in SCOPES {
            let answers = try_join_all(VERBS.iter().map(|verb| may(client, verb, *resource, scope))).await?;
            let allowed: Vec<&str> = VERBS.iter().zip(answers).filter(|(_, yes)| *yes).map(|(verb, _)| *verb).collect();
            by_scope.insert(scope, allowed.join(" "));
        }
        let (group, kind, name) = resource;
        let what = [*group, *kind, *name].iter().filter(|part| !part.is_empty()).copied().collect::<Vec<_>>().join(" ");
        let mut say = |scope: &str, verbs: &str| {
            if !verbs.is_empty() {
                lines.insert(format!("{scope}: {what}: {verbs}"));
            }
        };
        if by_scope.values().collect::<BTreeSet<_>>().len() == 1 {
            say("everywhere", &by_scope[SCOPES[0]]);
        } else {
            by_scope.iter().for_each(|(scope, verbs)| say(scope, verbs));
        }
    }
    Ok(lines.into_iter().map(|line| line + "\n").collect())
}

const OPERATOR: &str = "\
everywhere: discovery.k8s.io endpointslices: get list watch create patch delete
everywhere: events.k8s.io events: create patch
everywhere: nodes: list watch
everywhere: scheduling.k8s.io priorityclasses: list watch
everywhere: services stowage-smoke-test: get list watch create patch
everywhere: services: get list watch create patch
everywhere: stowage.dev modeldeployments stowage-smoke-test: get list watch
everywhere: stowage.dev modeldeployments/finalizers: update
everywhere: stowage.dev modeldeployments/status: patch
everywhere: stowage.dev modeldeployments: get list watch
everywhere: stowage.dev modelnodes: get list watch create patch delete
stowage-system: coordination.k8s.io leases node-node-a: list watch create
stowage-system: coordination.k8s.io leases stowage-operator: get list watch create update
stowage-system: coordination.k8s.io leases: list watch create
stowage-system: pods: get list watch create delete
stowage-system: serviceaccounts stowage-worker: get
";

const AGENT: &str = "\
default: events.k8s.io events: create patch
everywhere: stowage.dev modelnodes/status: patch
everywhere: stowage.dev modelnodes: list watch
stowage-system: coordination.k8s.io leases node-node-a: create patch
stowage-system: coordination.k8s.io leases stowage-operator: create patch
stowage-system: coordination.k8s.io leases: create patch
";

const SMOKE_TEST: &str = "\
stowage-system: services stowage-smoke-test: get
stowage-system: stowage.dev modeldeployments stowage-smoke-test: list watch create patch delete
stowage-system: stowage.dev modeldeployments: list watch create
";

#[tokio::test(flavor = "multi_thread")]
async fn each_account_may_do_what_it_needs_and_nothing_else() -> Result<()> {
    let installed = Installed::start().await?;
    for (account, expected) in [(Account::Operator, OPERATOR), (Account::Agent, AGENT), (Account::SmokeTest, SMOKE_TEST)] {
        let client = installed.acting_as(account, Some("node-a")).await?;
        let found = table(&client).await?;
        ensure!(found == expected, "{} may do this:\n{found}and should be allowed this:\n{expected}", account.name());
    }
    installed.control_plane.stop();
    Ok(())
}

const STOWAGE: &str = "stowage.dev/v1alpha1";
const LEASES: &str = "coordination.k8s.io/v1";
const EVENTS: &str = "events.k8s.io/v1";
const POLICY: &str = "ValidatingAdmissionPolicy 'stowage-agent' with binding 'stowage-agent' denied request: ";

/// Objects of a kind, in a namespace or in none.
fn api(client: &Client, version: &str, kind: &str, namespace: &str) -> Api<DynamicObject> {
    let (group, version) = version.split_once('/').unwrap_or(("", version));
    let resource = ApiResource::from_gvk(&GroupVersionKind::gvk(group, version, kind));
    if namespace.is_empty() { Api::all_with(client.clone(), &resource) } else { Api::namespaced_with(client.clone(), namespace, &resource) }
}

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

fn refusal(result: Result<(), kube::Error>) -> Result<String> {
    match result {
        Err(kube::Error::Api(status)) => Ok(status.message.clone()),
        Err(other) => Err(other.into()),
        Ok(()) => bail!("it was taken"),
    }
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
