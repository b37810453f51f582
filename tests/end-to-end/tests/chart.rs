//! The Helm chart: what it renders is what the API server takes, what can't be right it refuses by name, and an upgrade keeps what users made.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};
use k8s_openapi::api::core::v1::Namespace;
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::Api;
use kube::api::{Patch, PatchParams};
use kube::runtime::conditions::is_crd_established;
use kube::runtime::wait::await_condition;
use serde_json::{Value, json};
use stowage_control_plane::processes::wait_for;
use stowage_control_plane::{ControlPlane, Options, binaries};
use stowage_crds::{ModelDeployment, refusal};
use stowage_end_to_end::cluster::program;
use stowage_end_to_end::file_server::FileServer;
use stowage_end_to_end::watch::DEADLINE;
use stowage_end_to_end::{chart, installed, models};
use tempfile::TempDir;

fn folder() -> TempDir {
    tempfile::Builder::new().prefix("stowage-chart-").tempdir().unwrap()
}

async fn control_plane() -> Result<ControlPlane> {
    Ok(ControlPlane::start(Options { controller_manager: false, ..Options::default() }).await?)
}

/// `kubectl apply --server-side` of objects, as text of what it did; an error holds what the API server said. `flags`: for instance to try it only.
fn kubectl_apply(control_plane: &ControlPlane, folder: &Path, objects: &[Value], flags: &[&str]) -> Result<String> {
    let path = folder.join("objects.json");
    let list = json!({"apiVersion": "v1", "kind": "List", "items": objects});
    fs::write(&path, serde_json::to_vec(&list)?)?;
    // A warning of the API server is an error here: of a field that it does not know, or of one that is going away.
    let mut command = control_plane.kubectl();
    command.args(["apply", "--server-side", "--force-conflicts", "--field-manager=helm", "--warnings-as-errors"]).args(flags);
    let output = command.arg("-f").arg(&path).output().context("running kubectl")?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr).trim());
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

fn is(object: &Value, kinds: &[&str]) -> bool {
    kinds.iter().any(|kind| object["kind"] == *kind)
}

/// The Pod that a Deployment or a DaemonSet would make, or a Pod itself.
fn pod_of(object: &Value, namespace: &str) -> Option<Value> {
    let (name, component) = (object["metadata"]["name"].as_str()?, object["metadata"]["labels"]["app.kubernetes.io/component"].as_str());
    let spec = match object["kind"].as_str()? {
        "Deployment" | "DaemonSet" => &object["spec"]["template"]["spec"],
        "Pod" => &object["spec"],
        _ => return None,
    };
    let metadata = json!({"name": format!("try-{name}"), "namespace": namespace, "labels": {"component": component}});
    Some(json!({"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec}))
}

/// A namespace that takes no Pods but those of the Pod Security Standard `restricted`, and one that takes all, with what Pods refer to.
async fn namespaces_for(control_plane: &ControlPlane, folder: &Path, set: &str, objects: &[Value]) -> Result<[String; 2]> {
    let made = [("restricted", "restricted"), ("any", "privileged")].map(|(suffix, level)| (format!("{set}-{suffix}"), level));
    for (namespace, level) in &made {
        // What makes Pods is not refused but warned of, which is not asked about here.
        let labels = json!({"pod-security.kubernetes.io/enforce": level, "pod-security.kubernetes.io/warn": "privileged"});
        let object = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": namespace, "labels": labels}});
        let api: Api<Namespace> = Api::all(control_plane.client.clone());
        api.patch(namespace, &PatchParams::apply("test"), &Patch::Apply(object)).await?;
        let pods = objects.iter().filter_map(|object| pod_of(object, namespace));
        let accounts: BTreeSet<String> = pods.filter_map(|pod| Some(pod["spec"]["serviceAccountName"].as_str()?.to_owned())).collect();
        let account = |name| json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": name, "namespace": namespace}});
        let mut referred: Vec<Value> = accounts.into_iter().map(account).collect();
        referred.extend(objects.iter().filter(|object| is(object, &["PriorityClass"])).cloned());
        let class = json!({"apiVersion": "node.k8s.io/v1", "kind": "RuntimeClass", "metadata": {"name": "nvidia"}, "handler": "nvidia"});
        referred.push(class);
        kubectl_apply(control_plane, folder, &referred, &[])?;
    }
    Ok(made.map(|(namespace, _)| namespace))
}

/// Sets of values with which agents, too, run in a namespace that enforces `restricted`.
const RESTRICTED: [&str; 3] = ["restricted", "shared-storage", "uninstalled-whole"];

#[tokio::test(flavor = "multi_thread")]
async fn the_api_server_takes_every_set_of_values_and_pod_security_what_it_should() -> Result<()> {
    let (control_plane, folder) = (control_plane().await?, folder());
    let folder = folder.path();
    for path in binaries::monitoring_definitions()? {
        let output = control_plane.kubectl().args(["apply", "--server-side", "-f"]).arg(&path).output()?;
        ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }
    let kinds: Api<CustomResourceDefinition> = Api::all(control_plane.client.clone());
    for name in ["podmonitors.monitoring.coreos.com", "prometheusrules.monitoring.coreos.com"] {
        await_condition(kinds.clone(), name, is_crd_established()).await?;
    }
    let sets = chart::sets("ci")?;
    ensure!(sets.len() >= 8, "there are only {} sets of values", sets.len());
    for values in sets {
        let set = values.file_name().unwrap().to_str().unwrap().trim_end_matches("-values.yaml").to_owned();
        let values = values.display().to_string();
        let restricted = format!("{set}-restricted");
        let objects = chart::objects(&chart::render(folder, &restricted, &["--values", &values])?)?;
        let [_, any] = namespaces_for(&control_plane, folder, &set, &objects).await?;
        let applied = kubectl_apply(&control_plane, folder, &objects, &["--dry-run=server"]).with_context(|| set.clone())?;
        let count = applied.lines().count();
        ensure!(count == objects.len() && count >= 5, "{set}: {count} of {} objects were tried:\n{applied}", objects.len());
        for object in &objects {
            let Some(pod) = pod_of(object, &restricted) else { continue };
            let component = pod["metadata"]["labels"]["component"].as_str().unwrap_or_default().to_owned();
            let taken = kubectl_apply(&control_plane, folder, &[pod], &["--dry-run=server"]);
            if component != "agent" || RESTRICTED.contains(&set.as_str()) {
                taken.with_context(|| format!("{set}: the Pod of {component} is to be taken where `restricted` is enforced"))?;
                continue;
            }
            let refusal = taken.err().with_context(|| format!("{set}: an agent with folders of the node is not restricted"))?.to_string();
            ensure!(refusal.contains("restricted volume types") && !refusal.contains("privileged"), "{set}: {refusal}");
            let pod = pod_of(object, &any).unwrap();
            kubectl_apply(&control_plane, folder, &[pod], &["--dry-run=server"])
                .with_context(|| format!("{set}: the Pod of {component}"))?;
        }
        println!("{set}: {count} objects");
    }
    control_plane.stop();
    Ok(())
}

#[test]
fn what_can_not_be_right_is_refused_with_the_name_of_the_field() -> Result<()> {
    let folder = folder();
    let mut refused = 0;
    for values in chart::sets("ci-refused")? {
        let text = fs::read_to_string(&values)?;
        let expected = text.lines().next().and_then(|line| line.strip_prefix("# ")).context("the first line says what helm says")?;
        let rendered = chart::render(folder.path(), "stowage-system", &["--values", &values.display().to_string()]);
        let Err(error) = rendered else { bail!("{} is taken", values.display()) };
        ensure!(error.to_string().contains(expected), "{}: {error}", values.display());
        refused += 1;
    }
    ensure!(refused >= 8, "only {refused} sets of values were refused");
    Ok(())
}

/// Every field of the values is in the schema, and what the schema allows nobody has to guess: an unknown field is refused wherever it stands.
#[test]
fn the_schema_refuses_unknown_fields_throughout() -> Result<()> {
    fn open(schema: &Value, path: &str, found: &mut Vec<String>) {
        if schema.get("properties").is_some() && schema["additionalProperties"] != false {
            found.push(path.to_owned());
        }
        match schema {
            Value::Object(members) => members.iter().for_each(|(name, inner)| open(inner, &format!("{path}/{name}"), found)),
            Value::Array(items) => items.iter().for_each(|inner| open(inner, path, found)),
            _ => {}
        }
    }
    let schema: Value = serde_json::from_str(&fs::read_to_string(chart::directory().join("values.schema.json"))?)?;
    let mut found = Vec::new();
    open(&schema, "", &mut found);
    ensure!(found.is_empty(), "these take unknown fields: {found:?}");
    Ok(())
}

fn helm(control_plane: &ControlPlane, folder: &Path) -> Result<Command> {
    let mut helm = chart::helm(folder)?;
    helm.env("KUBECONFIG", control_plane.kubeconfig()).args(["--namespace", "stowage-system"]);
    Ok(helm)
}

/// The chart with this in place of that in its Chart.yaml.
fn copied(folder: &Path, this: &str, that: &str) -> Result<PathBuf> {
    let copy = folder.join("newer");
    let copied = Command::new("cp").arg("-r").arg(chart::directory()).arg(&copy).status()?;
    ensure!(copied.success(), "copying the chart");
    let text = fs::read_to_string(copy.join("Chart.yaml"))?;
    ensure!(text.contains(this), "{this} is not in {text}");
    fs::write(copy.join("Chart.yaml"), text.replace(this, that))?;
    Ok(copy)
}

/// What replaces an agent's Pod unloads its node's models.
#[test]
fn an_upgrade_that_changes_nothing_about_agents_leaves_their_pods_alone() -> Result<()> {
    let folder = folder();
    let newer = copied(folder.path(), "\nversion: 0.1.0", "\nversion: 0.2.0")?;
    let mut pods = Vec::new();
    for (at, replicas) in [(chart::directory(), 2), (newer, 5)] {
        let mut helm = chart::helm(folder.path())?;
        helm.args(["template", "stowage"]).arg(&at).args(["--kube-version", binaries::KUBERNETES_VERSION]);
        helm.args(["--set", &format!("operator.replicas={replicas},placement.moveUpAfterSeconds={replicas},agent.gpu.enabled=true")]);
        let objects = chart::objects(&chart::output(&mut helm)?)?;
        let sets = objects.iter().filter(|object| is(object, &["DaemonSet"]));
        pods.push(sets.map(|set| set["spec"]["template"].clone()).collect::<Vec<Value>>());
    }
    ensure!(pods[0].len() == 2 && pods[0] == pods[1], "{pods:#?}");
    Ok(())
}

/// ModelDeployments and a ModelNode, with what users, administrators and the operator write into them.
const KEPT: &str = "
apiVersion: stowage.dev/v1alpha1
kind: ModelDeployment
metadata: {name: kept, namespace: default, labels: {team: a}}
spec:
  model: {huggingFace: {repository: o/m, file: m.gguf, revision: main}}
  aliases: ['m:latest']
  parameters: {num_ctx: 4096, num_gpu: 12, temperature: 0.5, stop: ['###']}
  system: Be brief.
  kvCacheType: q8_0
  parallel: 4
  placement: {policy: PreferGPU, contextPolicy: ShrinkToFit, minContext: 1024, nodeSelector: {disk: fast}, deviceSelector: {maxDevices: 2}}
  replicas: 3
  updateStrategy: {maxSurge: 0, maxUnavailable: 1, whenNoRoom: Wait}
  progressDeadlineSeconds: 60
  paused: true
  service: {type: NodePort, annotations: {a: b}}
---
apiVersion: stowage.dev/v1alpha1
kind: ModelDeployment
metadata: {name: also-kept, namespace: kube-public}
spec: {model: {path: m.gguf}}
---
apiVersion: stowage.dev/v1alpha1
kind: ModelNode
metadata: {name: node-a}
spec: {devices: [{uuid: GPU-0, managed: false, marginBytes: 1024}]}
";

/// Whether the definition has the column of a field that the earlier chart does not know.
fn shows_speed(definition: &CustomResourceDefinition) -> bool {
    definition.spec.versions[0].additional_printer_columns.iter().flatten().any(|column| column.name == "Speed")
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upgrade_from_an_earlier_chart_keeps_every_object_and_brings_new_fields_and_uninstalling_keeps_what_users_made() -> Result<()> {
    let (control_plane, folder) = (control_plane().await?, folder());
    let run = |arguments: &[&str]| -> Result<String> {
        chart::output(helm(&control_plane, folder.path())?.args(arguments)).with_context(|| format!("helm {}", arguments.join(" ")))
    };
    let path = |path: PathBuf| Ok::<String, anyhow::Error>(path.to_str().context("a path of UTF-8")?.to_owned());
    let (earlier, at, newer) = (
        path(chart::earlier(chart::EARLIER[0]))?,
        path(chart::directory())?,
        path(copied(folder.path(), "ersion: 0.1.0", "ersion: 0.2.0")?)?,
    );
    run(&["install", "stowage", &earlier, "--create-namespace"])?;
    let kinds: Api<CustomResourceDefinition> = Api::all(control_plane.client.clone());
    let kind = "modeldeployments.stowage.dev";
    await_condition(kinds.clone(), kind, is_crd_established()).await?;
    await_condition(kinds.clone(), "modelnodes.stowage.dev", is_crd_established()).await?;
    installed::apply(&control_plane, folder.path(), KEPT)?;
    let deployments: Api<ModelDeployment> = Api::namespaced(control_plane.client.clone(), "default");
    let speed = async || {
        let patch = Patch::Merge(json!({"status": {"summary": {"speed": "9 tokens/s"}}}));
        let written = deployments.patch_status("kept", &PatchParams::default(), &patch).await?;
        Ok::<String, anyhow::Error>(written.status.and_then(|status| status.summary).map(|summary| summary.speed).unwrap_or_default())
    };
    ensure!(!shows_speed(&kinds.get(kind).await?) && speed().await?.is_empty(), "the earlier chart should know nothing of speed");
    let applied = Patch::Apply(json!({
        "apiVersion": "stowage.dev/v1alpha1",
        "kind": "ModelDeployment",
        "metadata": {"name": "kept"},
        "status": {"summary": {"speed": "9 tokens/s"}},
    }));
    let refused = deployments.patch_status("kept", &PatchParams::apply("newer"), &applied).await.err().context("it should be refused")?;
    let told = refusal::told(&refused);
    ensure!(told.contains("older than this program") && told.contains("speed"), "an operator beside older definitions says: {told}");

    let kept = objects(&control_plane)?;
    ensure!(kept.lines().count() == 3, "three were made: {kept}");
    let notes = run(&["upgrade", "stowage", &at, "--set", "operator.replicas=3"])?;
    let last = notes.trim().lines().last().unwrap_or_default().trim();
    ensure!(last == "helm test stowage --namespace stowage-system", "the notes end in a command that works: {notes}");
    ensure!(objects(&control_plane)? == kept, "they were {kept}and are {}", objects(&control_plane)?);
    ensure!(shows_speed(&kinds.get(kind).await?), "the upgrade should bring the new column");
    let known = wait_for(DEADLINE, async || speed().await.ok().filter(|speed| !speed.is_empty())).await;
    ensure!(known.as_deref() == Some("9 tokens/s"), "the new field should be kept: {known:?}");

    run(&["upgrade", "stowage", &newer])?;
    let labels = kinds.get(kind).await?.metadata.labels.unwrap_or_default();
    ensure!(labels["app.kubernetes.io/version"] == "0.2.0", "the label is the new version's: {labels:?}");
    run(&["uninstall", "stowage"])?;
    ensure!(objects(&control_plane)? == kept, "they are there after uninstalling");
    run(&["install", "stowage", &at])?;
    ensure!(objects(&control_plane)? == kept, "and after another install");
    run(&["upgrade", "stowage", &at, "--set", "crds.keep=false"])?;
    run(&["uninstall", "stowage"])?;
    await_condition(kinds.clone(), kind, |found: Option<&CustomResourceDefinition>| found.is_none()).await?;
    control_plane.stop();
    Ok(())
}

/// A line for each object of our kinds: which one it is, and what is asked for in it.
fn objects(control_plane: &ControlPlane) -> Result<String> {
    let each = "jsonpath={range .items[*]}{.kind} {.metadata.name} {.metadata.uid} {.metadata.generation} {.metadata.labels} {.spec}{\"\\n\"}{end}";
    let output =
        control_plane.kubectl().args(["get", "modeldeployments,modelnodes", "-A", "-o", each]).output().context("running kubectl")?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr).trim());
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

#[test]
fn every_alert_is_explained_on_the_page_that_it_links_to() -> Result<()> {
    let folder = folder();
    let objects = chart::objects(&chart::render(folder.path(), "stowage-system", &["--set", "monitoring.prometheusRule.enabled=true"])?)?;
    let rule = objects.iter().find(|object| is(object, &["PrometheusRule"])).context("a PrometheusRule")?;
    let rules = rule["spec"]["groups"].as_array().into_iter().flatten().flat_map(|group| group["rules"].as_array().into_iter().flatten());
    let page = fs::read_to_string(chart::directory().join("../../docs/alerts.md"))?;
    let explained: BTreeSet<&str> = page.lines().filter_map(|line| line.strip_prefix("## ")).collect();
    let mut alerts = BTreeSet::new();
    for rule in rules {
        let name = rule["alert"].as_str().context("a rule is an alert")?;
        for text in [&rule["annotations"]["summary"], &rule["annotations"]["description"], &rule["labels"]["severity"]] {
            ensure!(text.as_str().is_some_and(|text| !text.is_empty()), "{name} lacks a text: {rule}");
        }
        ensure!(rule["annotations"]["runbook_url"].as_str().is_some_and(|url| url.ends_with(&format!("docs/alerts.md#{name}"))), "{rule}");
        alerts.insert(name);
    }
    ensure!(alerts == explained, "alerts: {alerts:?}; the page has {explained:?}");
    Ok(())
}

/// What the chart tells an agent of where to find them, an agent's program finds them by.
#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_a_companys_own_authority_vouches_for_is_read_from_once_the_chart_names_the_authority() -> Result<()> {
    let folder = folder();
    let set = ["--set", "sources.certificateAuthorities.configMap=company"];
    let objects = chart::objects(&chart::render(folder.path(), "stowage-system", &set)?)?;
    let mut names = BTreeSet::new();
    for object in objects.iter().filter(|object| is(object, &["Deployment", "DaemonSet"])) {
        let spec = &object["spec"]["template"]["spec"];
        let container = &spec["containers"][0];
        let find = |list: &Value, key: &str, value: &str| list.as_array().into_iter().flatten().find(|one| one[key] == *value).cloned();
        let volume = find(&spec["volumes"], "name", "authorities").with_context(|| object.to_string())?;
        let mount = find(&container["volumeMounts"], "name", "authorities").with_context(|| object.to_string())?;
        ensure!(volume["configMap"]["name"] == "company", "{volume}");
        let variable = find(&container["env"], "value", mount["mountPath"].as_str().unwrap()).with_context(|| container.to_string())?;
        names.insert(variable["name"].as_str().unwrap().to_owned());
    }
    ensure!(names.len() == 1, "one variable, of operator and agents: {names:?}");

    let (server, certificate) = FileServer::start_https(models::directory()?.join(models::SMOLLM2)).await?;
    let url = format!("https://localhost:{}/{}", server.address.port(), models::SMOLLM2);
    let read = async |authorities: Option<&Path>| -> Result<std::process::Output> {
        let mut command = Command::new(program("stowage-agent")?);
        command.args(["plan", &url, "--num-ctx", "2048", "--memory", "8GiB"]).env_remove("SSL_CERT_FILE").env_remove("SSL_CERT_DIR");
        if let Some(authorities) = authorities {
            command.env(names.first().unwrap(), authorities);
        }
        tokio::task::spawn_blocking(move || command.output()).await?.context("running the agent")
    };
    let refused = read(None).await?;
    let told = String::from_utf8_lossy(&refused.stderr).into_owned();
    ensure!(!refused.status.success() && told.contains("certificate"), "nobody vouches for it yet, but: {told}");
    let authorities = folder.path().join("authorities");
    fs::create_dir(&authorities)?;
    fs::write(authorities.join("company.pem"), certificate)?;
    let taken = read(Some(&authorities)).await?;
    let (out, err) = (String::from_utf8_lossy(&taken.stdout), String::from_utf8_lossy(&taken.stderr));
    ensure!(out.contains("100% CPU") || out.contains("layers"), "it should be planned: {out}{err}");
    Ok(())
}
