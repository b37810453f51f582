//! Stowage by the chart's own accounts: what its roles and its policy let operator, agents and the smoke test do is enough for all that they do.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use k8s_openapi::api::events::v1::Event;
use kube::Api;
use serde_json::{Value, json};
use stowage_control_plane::processes::{Process, free_port};
use stowage_crds::ModelDeployment;
use stowage_end_to_end::cluster::program;
use stowage_end_to_end::installed::{self, Account};
use stowage_end_to_end::{AgentOptions, Cluster, Settings, SimulatedGpu, api, chart, client, manifest, models, watch};
use stowage_placement::Bytes;

const GPU: Bytes = Bytes::gib(2);

async fn text(url: &str) -> Result<String> {
    Ok(reqwest::get(url).await.with_context(|| format!("asking {url}"))?.error_for_status()?.text().await?)
}

/// Names of metrics in expressions: with what Prometheus makes of counters and histograms taken off.
fn families(expressions: &str) -> BTreeSet<String> {
    let words = expressions.split(|c: char| !(c.is_ascii_alphanumeric() || c == '_'));
    let base =
        |word: &str| ["_total", "_bucket", "_sum", "_count"].iter().find_map(|end| word.strip_suffix(end)).unwrap_or(word).to_owned();
    words.filter(|word| word.starts_with("stowage_")).map(base).collect()
}

/// Names of families that a program says something of.
fn described(text: &str) -> BTreeSet<String> {
    text.lines().filter_map(|line| Some(line.strip_prefix("# TYPE ")?.split(' ').next()?.to_owned())).collect()
}

/// All expressions of the chart: of its alerts and of its dashboard.
fn expressions(cluster: &Cluster) -> Result<Vec<String>> {
    fn gather(value: &Value, found: &mut Vec<String>) {
        match value {
            Value::Object(members) => {
                let text = |name: &str| members.get(name).and_then(Value::as_str).map(str::to_owned);
                found.extend(["expr", "definition"].into_iter().filter_map(text));
                members.values().for_each(|inner| gather(inner, found));
            }
            Value::Array(items) => items.iter().for_each(|inner| gather(inner, found)),
            _ => {}
        }
    }
    let mut found = Vec::new();
    let rendered = chart::render(cluster.folder(), "stowage-system", &["--set", "monitoring.prometheusRule.enabled=true"])?;
    chart::objects(&rendered)?.iter().filter(|object| object["kind"] == "PrometheusRule").for_each(|rule| gather(rule, &mut found));
    let alerts = found.len();
    gather(&serde_json::from_str(&fs::read_to_string(chart::directory().join("dashboards/stowage.json"))?)?, &mut found);
    ensure!(alerts > 8 && found.len() > alerts + 12, "{alerts} alerts, {} expressions in all", found.len());
    Ok(found)
}

/// The smoke test as `helm test` runs it with these values, but for the address: no proxy serves a Service here, so the node's door is asked instead.
fn smoke_test(cluster: &Cluster, door: &str, kubeconfig: &Path, values: Value) -> Result<Command> {
    let rendered = chart::render(cluster.folder(), "stowage-system", &["--set-json".to_owned(), format!("test={values}")])?;
    let rendered = chart::objects(&rendered)?;
    let named = |object: &&Value, kind: &str| object["kind"] == kind && object["metadata"]["name"] == "stowage-smoke-test";
    let map = rendered.iter().find(|object| named(object, "ConfigMap")).context("a ConfigMap with the ModelDeployment")?;
    let path = cluster.folder().join("model-deployment.yaml");
    fs::write(&path, map["data"]["model-deployment.yaml"].as_str().context("the ModelDeployment")?)?;
    let pod = rendered.iter().find(|object| named(object, "Pod")).context("the test's Pod")?;
    let arguments = pod["spec"]["containers"][0]["args"].as_array().context("its arguments")?;
    let mut command = Command::new(program("stowage-agent")?);
    for argument in arguments.iter().filter_map(Value::as_str) {
        match argument.starts_with("--manifest=") {
            true => command.arg("--manifest").arg(&path),
            false => command.arg(argument),
        };
    }
    command.args(["--url", door]).env("STOWAGE_NAMESPACE", "stowage-system").env("KUBECONFIG", kubeconfig).stdin(Stdio::null());
    Ok(command)
}

async fn output(mut command: Command) -> Result<Output> {
    tokio::task::spawn_blocking(move || command.output()).await?.context("running the smoke test")
}

async fn smoke_tests(cluster: &Cluster, door: &str) -> Result<()> {
    let token = installed::bound_token(&cluster.client, Account::SmokeTest, None).await?;
    let kubeconfig = installed::kubeconfig(cluster.kubeconfig(), &token, cluster.folder().join("smoke-test.kubeconfig"))?;
    let passed = output(smoke_test(cluster, door, &kubeconfig, json!({"model": {"path": models::SMOLLM2}}))?).await?;
    let said = String::from_utf8_lossy(&passed.stdout);
    ensure!(passed.status.success(), "the smoke test failed: {said}\n{}", String::from_utf8_lossy(&passed.stderr));
    for line in ["applied ModelDeployment stowage-system/stowage-smoke-test", "it says: ", "removed ModelDeployment stowage-smoke-test"] {
        ensure!(said.contains(line), "{line} is not in {said}");
    }
    let nowhere = |deadline: u32| json!({"model": {"path": "nowhere.gguf"}, "deadlineSeconds": deadline});
    let failed = output(smoke_test(cluster, door, &kubeconfig, nowhere(2))?).await?;
    let (said, why) = (String::from_utf8_lossy(&failed.stdout), String::from_utf8_lossy(&failed.stderr));
    ensure!(!failed.status.success(), "a model that is nowhere answered: {said}");
    ensure!(why.contains("did not become ready in time") && why.contains("nowhere.gguf"), "it should say why: {why}");
    ensure!(said.contains("removed ModelDeployment stowage-smoke-test"), "it should leave nothing behind: {said}");

    // Helm ends the Pod of a test that takes too long for it.
    let deployments: Api<ModelDeployment> = Api::namespaced(cluster.client.clone(), "stowage-system");
    let log = cluster.folder().join("smoke-test.log");
    let mut process = Process::start("smoke-test", smoke_test(cluster, door, &kubeconfig, nowhere(600))?, &log)?;
    watch::first(deployments.clone(), |deployment| deployment.metadata.name.as_deref() == Some("stowage-smoke-test")).await?;
    tokio::task::spawn_blocking(move || process.stop(Duration::from_secs(60))).await?;
    let said = fs::read_to_string(&log)?;
    ensure!(said.contains("told to end before ModelDeployment stowage-smoke-test had answered"), "{said}");
    ensure!(deployments.get_opt("stowage-smoke-test").await?.is_none(), "it left its ModelDeployment behind: {said}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn by_the_charts_own_accounts_a_model_is_placed_served_and_removed_and_the_charts_metrics_are_there() -> Result<()> {
    let metrics = free_port()?;
    let settings = Settings { installed: true, metrics_address: Some(([127, 0, 0, 1], metrics).into()), ..Settings::default() };
    let mut cluster = Cluster::start(settings).await?;
    let gpus = vec![SimulatedGpu::new("node-a", 0, GPU)];
    let agent = cluster.start_agent(AgentOptions { gpus, ..AgentOptions::new("node-a", models::directory()?) }).await?;
    let door = format!("http://127.0.0.1:{}", agent.door);
    cluster.until_node("node-a", api::reports).await?;
    cluster.create(&manifest::on_gpu("m")).await?;
    cluster.until("m", watch::is_ready).await?;

    smoke_tests(&cluster, &door).await.with_context(|| cluster.logs())?;

    let events: Api<Event> = Api::namespaced(cluster.client.clone(), "default");
    let by_agent =
        |event: &Event| event.reporting_controller.as_deref() == Some("stowage-agent") && event.reason.as_deref() == Some("Loaded");
    watch::first(events, by_agent).await.context("waiting for an Event of the agent")?;

    // What was never counted is not told.
    client::Stream::start(&door, "m", "The capital of Japan is", 4).await?.rest().await?;
    let ready = text(&format!("http://127.0.0.1:{metrics}/readyz")).await?;
    ensure!(ready == "ok", "{ready}");
    let pages = [format!("http://127.0.0.1:{metrics}/metrics"), format!("{door}/metrics"), format!("{door}/metrics/workers")];
    let mut told = BTreeSet::new();
    for page in &pages {
        told.extend(described(&text(page).await?));
    }
    for expression in expressions(&cluster)? {
        let unknown: Vec<String> = families(&expression).difference(&told).cloned().collect();
        ensure!(unknown.is_empty(), "{expression} asks for {unknown:?}, which nobody tells; there are {told:?}");
    }
    let operator = text(&pages[0]).await?;
    let condition = r#"stowage_operator_condition{model="default/m",type="Ready",reason="Serving"} 1"#;
    ensure!(operator.contains(condition), "{condition} is not in\n{operator}");

    cluster.delete("m").await?;
    cluster.until_node("node-a", |node| node.spec.assignments.is_empty()).await?;
    let logs = [cluster.operators[0].log(), cluster.agents[0].process.log()].map(fs::read_to_string).map(Result::unwrap);
    for log in &logs {
        let refused: Vec<&str> = log.lines().filter(|line| line.to_lowercase().contains("forbidden")).collect();
        ensure!(refused.is_empty(), "something was forbidden: {refused:#?}");
    }
    cluster.stop()
}
