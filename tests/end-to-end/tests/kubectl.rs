//! `kubectl stowage`, as kubectl runs it, against operator and agents that run.
#![allow(clippy::unwrap_used)]

use std::fs;
use std::io::Write;
use std::process::{Command, Output, Stdio};

use k8s_openapi::api::core::v1::ServiceAccount;
use k8s_openapi::api::rbac::v1::{ClusterRole, ClusterRoleBinding, PolicyRule, RoleRef, Subject};
use kube::Api;
use kube::api::{ObjectMeta, PostParams};
use serde_json::Value;
use stowage_control_plane::{ControlPlane, Options};
use stowage_end_to_end::cluster::program;
use stowage_end_to_end::{Cluster, Settings, client, models, watch};
use stowage_placement::Bytes;

/// kubectl, with the plugin in its `PATH`.
fn kubectl(cluster: &Cluster) -> Command {
    let programs = cluster.folder().join("programs");
    if !programs.exists() {
        fs::create_dir_all(&programs).unwrap();
        std::os::unix::fs::symlink(program("stowage-agent").unwrap(), programs.join("kubectl-stowage")).unwrap();
    }
    let mut command = cluster.kubectl();
    command.arg("stowage").env("PATH", format!("{}:{}", programs.display(), std::env::var("PATH").unwrap_or_default()));
    command
}

struct Printed {
    status: Option<i32>,
    out: String,
    err: String,
}

impl From<Output> for Printed {
    fn from(output: Output) -> Printed {
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
        Printed { status: output.status.code(), out: text(output.stdout), err: text(output.stderr) }
    }
}

fn run(cluster: &Cluster, arguments: &[&str]) -> Printed {
    kubectl(cluster).args(arguments).stdin(Stdio::null()).output().unwrap().into()
}

fn json(cluster: &Cluster, arguments: &[&str]) -> Value {
    let Printed { out, err, .. } = run(cluster, &[arguments, &["-o", "json"]].concat());
    serde_json::from_str(&out).unwrap_or_else(|error| panic!("{error}: {out}{err}"))
}

fn manifest(num_ctx: u64) -> String {
    format!(
        "apiVersion: stowage.dev/v1alpha1\nkind: ModelDeployment\nmetadata: {{name: smollm2, namespace: default}}\nspec:\n  \
         model: {{path: {}}}\n  parameters: {{num_ctx: {num_ctx}}}\n",
        models::SMOLLM2
    )
}

/// Text without its line breaks, which depend on how long words are.
fn flat(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

#[tokio::test(flavor = "multi_thread")]
async fn the_plugin_plans_as_the_operator_decides_and_explains_draws_and_asks() {
    // What moves away while its node is cordoned comes back at once.
    let settings = Settings { operator_flags: vec!["--move-up-after=1".into()], ..Settings::default() };
    let mut cluster = Cluster::start(settings).await.unwrap();
    cluster.start_gpu_nodes(&[("large", Bytes::gib(2)), ("small", Bytes::gib(1))]).await.unwrap();
    let file = cluster.folder().join("smollm2.yaml");
    fs::write(&file, manifest(8192)).unwrap();
    let file = file.to_str().unwrap();

    // Before it is applied, and then what the operator does.
    let planned = run(&cluster, &["plan", file]);
    assert_eq!(planned.status, Some(0), "{}{}", planned.out, planned.err);
    assert!(flat(&planned.out).contains(">large 100% 31/31") || planned.out.contains(">large"), "{}", planned.out);
    let planned = json(&cluster, &["plan", file]);
    cluster.apply(&manifest(8192)).unwrap();
    let ready = cluster.until("smollm2", watch::is_ready).await.unwrap();
    let status = ready.status.clone().unwrap();
    assert_eq!(planned["node"], *status.placements[0].node);
    let (decided, predicted) = (serde_json::to_value(status.fit.unwrap().plan).unwrap(), &planned["report"]["plan"]);
    assert_eq!((&decided["processor"], &decided["gpuLayers"]), (&predicted["processor"], &predicted["gpuLayers"]));

    // The same of what is there already, whose own replicas count as gone; and with a node that is cordoned.
    assert_eq!(json(&cluster, &["plan", "mdl/smollm2"])["node"], "large");
    cluster.kubectl_output(&["cordon", "large"]).unwrap();
    let elsewhere = run(&cluster, &["plan", "mdl/smollm2"]);
    assert_eq!(elsewhere.status, Some(3), "{}{}", elsewhere.out, elsewhere.err);
    let told = flat(&elsewhere.out);
    assert!(told.contains("Not considered: large (NodeUnschedulable)") && told.contains("28.9 MiB are missing"), "{}", elsewhere.out);
    let smaller = json(&cluster, &["plan", "mdl/smollm2", "--kv-cache-type", "q8_0"]);
    assert_eq!((&smaller["fits"], &smaller["node"]), (&true.into(), &"small".into()));
    cluster.kubectl_output(&["uncordon", "large"]).unwrap();

    // Why it is there.
    let settled = |object: &stowage_crds::ModelDeployment| watch::is_ready(object) && watch::processor(object) == "100% GPU";
    cluster.until("smollm2", settled).await.unwrap();
    let explained = run(&cluster, &["explain", "mdl/smollm2", "-n", "default"]);
    assert_eq!(explained.status, Some(0), "{}", explained.err);
    let told = flat(&explained.out);
    for needed in
        ["smollm2 in namespace default: 1/1 ready, 100% GPU at num_ctx 8192", "Replica smollm2-", "small:", "Ready True for", "Events"]
    {
        assert!(told.contains(needed), "`{needed}` is not in:\n{}", explained.out);
    }
    assert_eq!(json(&cluster, &["explain", "mdl/smollm2"])["status"]["ready"], "1/1");

    // Who holds the memory.
    let drawn = run(&cluster, &["top"]);
    let node = &ready.status.unwrap().placements[0].replica;
    assert!(
        drawn.out.contains("####") && drawn.out.contains(&format!("default/{node}")) && drawn.out.contains("simulated"),
        "{}",
        drawn.out
    );
    let top = json(&cluster, &["top", "--once", "large"]);
    assert_eq!(top["nodes"].as_array().unwrap().len(), 1);
    let held: u64 = top["nodes"][0]["devices"][0]["heldBytes"].as_u64().unwrap();
    assert!(held > 0, "{top}");

    asks(&cluster).await;
    refuses(&cluster).await;
    cluster.stop().unwrap();
}

/// A prompt as an argument, one from a pipe, and a conversation.
async fn asks(cluster: &Cluster) {
    let present = cluster.until("smollm2", watch::is_ready).await.unwrap();
    let url = client::worker_url(&present).unwrap();
    let chat = ["chat", "mdl/smollm2", "--address", &url, "--option", "temperature=0"];
    let asked = run(cluster, &[&chat[..], &["--verbose", "What is the capital of Japan?"]].concat());
    assert!(asked.out.contains("Tokyo") && asked.err.contains("eval rate:"), "{}{}", asked.out, asked.err);

    let piped = |text: &str| -> Printed {
        let mut running = kubectl(cluster).args(chat).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        running.stdin.take().unwrap().write_all(text.as_bytes()).unwrap();
        running.wait_with_output().unwrap().into()
    };
    assert!(piped("What is the capital of France?\n").out.contains("Paris"));
    assert_eq!(piped("").status, Some(2), "there is nothing to ask");

    // Without an address it goes through a Pod, which a process is none of.
    let lost = run(cluster, &["chat", "mdl/smollm2", "hello"]);
    assert!(lost.err.contains("no Pod in namespace stowage-system has that address") && lost.err.contains("--address"), "{}", lost.err);
}

/// What is missing, and what an account may not do, is said by name.
async fn refuses(cluster: &Cluster) {
    let missing = run(cluster, &["explain", "mdl/other"]);
    assert_eq!(
        (missing.status, missing.err.trim()),
        (Some(2), "error: there is no ModelDeployment other in namespace default; there are smollm2")
    );
    assert!(run(cluster, &["explain", "pod/other"]).err.contains("names no ModelDeployment"));

    // Whoever may look at ModelDeployments alone is told what status has; whoever may look at ModelNodes too, what is assumed.
    let limited = account(cluster, "reads-deployments", &["modeldeployments"]).await;
    let explained = run(cluster, &["explain", "mdl/smollm2", "--kubeconfig", &limited]);
    assert!(flat(&explained.out).contains("Unseen this account may not list ModelNodes"), "{}{}", explained.out, explained.err);
    let drawn = run(cluster, &["top", "--kubeconfig", &limited]);
    assert!(drawn.status == Some(2) && drawn.err.starts_with("error: this account may not list ModelNodes: "), "{}", drawn.err);
    let viewer = account(cluster, "views", &["modeldeployments", "modelnodes"]).await;
    let planned = run(cluster, &["plan", "mdl/smollm2", "--kubeconfig", &viewer]);
    assert!(
        planned.status == Some(0) && flat(&planned.out).contains("Assumed this account may not list Nodes"),
        "{}{}",
        planned.out,
        planned.err
    );
    let chatted = run(cluster, &["chat", "mdl/smollm2", "hello", "--kubeconfig", &viewer]);
    assert!(chatted.err.contains("this account may not list Pods in namespace stowage-system"), "{}", chatted.err);
}

/// The kubeconfig of an account that may read these kinds.
async fn account(cluster: &Cluster, name: &str, kinds: &[&str]) -> String {
    let metadata = || ObjectMeta { name: Some(name.to_owned()), ..ObjectMeta::default() };
    let account = ServiceAccount { metadata: metadata(), ..ServiceAccount::default() };
    let accounts: Api<ServiceAccount> = Api::namespaced(cluster.client.clone(), "default");
    accounts.create(&PostParams::default(), &account).await.unwrap();
    let list = |words: &[&str]| words.iter().map(|word| (*word).to_owned()).collect::<Vec<String>>();
    let rule = PolicyRule {
        api_groups: Some(list(&["stowage.dev"])),
        resources: Some(list(kinds)),
        verbs: list(&["get", "list", "watch"]),
        ..PolicyRule::default()
    };
    let role = ClusterRole { metadata: metadata(), rules: Some(vec![rule]), ..ClusterRole::default() };
    Api::all(cluster.client.clone()).create(&PostParams::default(), &role).await.unwrap();
    let subject = Subject { kind: "ServiceAccount".into(), name: name.into(), namespace: Some("default".into()), ..Subject::default() };
    let role_ref = RoleRef { api_group: Some("rbac.authorization.k8s.io".into()), kind: "ClusterRole".into(), name: name.into() };
    let binding = ClusterRoleBinding { metadata: metadata(), role_ref, subjects: Some(vec![subject]) };
    Api::all(cluster.client.clone()).create(&PostParams::default(), &binding).await.unwrap();
    let token = cluster.kubectl_output(&["create", "token", name, "-n", "default"]).unwrap();
    let path = cluster.control_plane.as_ref().unwrap().write_kubeconfig(&format!("{name}.kubeconfig"), token.trim()).unwrap();
    path.display().to_string()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cluster_without_stowage_is_said_to_be_one() {
    let control_plane = ControlPlane::start(Options { controller_manager: false, ..Options::default() }).await.unwrap();
    for arguments in [&["top"][..], &["explain", "mdl/a"], &["plan", "mdl/a"], &["chat", "mdl/a", "hello"]] {
        let mut command = Command::new(program("stowage-agent").unwrap());
        command.arg("kubectl").args(arguments).arg("--kubeconfig").arg(control_plane.kubeconfig());
        let printed: Printed = command.output().unwrap().into();
        assert_eq!(printed.status, Some(2), "{arguments:?}");
        assert!(printed.err.contains("of stowage.dev: Stowage is not installed there"), "{arguments:?}: {}", printed.err);
    }
    control_plane.stop();
}
