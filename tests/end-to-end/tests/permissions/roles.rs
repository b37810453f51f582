//! Every verb on every resource of ours, and on what matters of Kubernetes' own, for each account.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context, Result, ensure};
use futures::future::try_join_all;
use k8s_openapi::api::authorization::v1::{ResourceAttributes, SelfSubjectAccessReview, SelfSubjectAccessReviewSpec};
use kube::api::PostParams;
use kube::{Api, Client};
use stowage_end_to_end::installed::Account;

use crate::{Installed, VERBS};

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

pub async fn may(client: &Client, verb: &str, (group, resource, name): (&str, &str, &str), namespace: &str) -> Result<bool> {
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

/// Had it a token, it could do nothing with it.
const WORKER: &str = "";

const SMOKE_TEST: &str = "\
stowage-system: services stowage-smoke-test: get
stowage-system: stowage.dev modeldeployments stowage-smoke-test: list watch create patch delete
stowage-system: stowage.dev modeldeployments: list watch create
";

#[tokio::test(flavor = "multi_thread")]
async fn each_account_may_do_what_it_needs_and_nothing_else() -> Result<()> {
    let installed = Installed::start().await?;
    let accounts = [(Account::Operator, OPERATOR), (Account::Agent, AGENT), (Account::Worker, WORKER), (Account::SmokeTest, SMOKE_TEST)];
    for (account, expected) in accounts {
        let client = installed.acting_as(account, Some("node-a")).await?;
        let found = table(&client).await?;
        ensure!(found == expected, "{} may do this:\n{found}and should be allowed this:\n{expected}", account.name());
    }
    installed.control_plane.stop();
    Ok(())
}
