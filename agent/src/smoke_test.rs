//! `agent smoke-test`: what `helm test` runs. It deploys a model, waits until it is ready, asks it, and removes it again: the way that any user goes.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use clap::Args;
use futures::{StreamExt, pin_mut};
use k8s_openapi::api::core::v1::Service;
use kube::api::{DeleteParams, Patch, PatchParams};
use kube::runtime::WatchStreamExt;
use kube::runtime::wait::{await_condition, conditions::is_deleted};
use kube::runtime::watcher::watch_object;
use kube::{Api, Client, ResourceExt};
use serde_json::{Value, json};
use stowage_crds::ModelDeployment;
use stowage_crds::conditions::{self, ConditionType};
use tokio::signal::unix::{SignalKind, signal};
use tokio::time::{Instant, sleep, timeout_at};

use crate::serve::keys_in;

/// Server-side apply's field manager.
const MANAGER: &str = "stowage-smoke-test";
/// Between two tries to reach the Service: its endpoints reach a node's proxy a moment after they are written.
const RETRY_AFTER: Duration = Duration::from_millis(500);
/// For it to be gone in the end.
const REMOVAL: Duration = Duration::from_secs(60);

/// Deploy a model, wait until it is ready, ask it, and remove it.
#[derive(Args, Clone, Debug)]
pub struct SmokeTestArgs {
    /// A ModelDeployment's YAML.
    #[arg(long, value_name = "PATH")]
    pub manifest: PathBuf,
    /// Where it is made.
    #[arg(long, env = "STOWAGE_NAMESPACE", default_value = "default")]
    pub namespace: String,
    #[arg(long, default_value = "The capital of Japan is")]
    pub prompt: String,
    /// Seconds until it must have answered.
    #[arg(long, value_name = "SECONDS", default_value_t = 600)]
    pub deadline: u64,
    /// Ask here instead of at the ModelDeployment's Service.
    #[arg(long, value_name = "URL")]
    pub url: Option<String>,
    /// A folder with a file for each API key, of which one is sent along.
    #[arg(long, env = "STOWAGE_API_KEYS_DIR", value_name = "PATH")]
    pub api_keys_dir: Option<PathBuf>,
}

pub async fn run(args: SmokeTestArgs) -> Result<()> {
    // A second call finds the provider there, which is as good.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let client = Client::try_default().await.context("finding the cluster: there is no kubeconfig and no service account")?;
    let deployment = read(&args)?;
    let key = args.api_keys_dir.as_deref().map(a_key).transpose()?;
    let name = deployment.name_any();
    let api: Api<ModelDeployment> = Api::namespaced(client.clone(), &args.namespace);
    let until = Instant::now() + Duration::from_secs(args.deadline);
    let mut terminate = signal(SignalKind::terminate()).context("listening for SIGTERM")?;
    let outcome = tokio::select! {
        outcome = deploy_and_ask(&client, &api, &deployment, &args, key.as_deref(), until) => outcome,
        _ = terminate.recv() => Err(anyhow::anyhow!("told to end before ModelDeployment {name} had answered")),
    };
    let removed = remove(&api, &name).await;
    outcome.and(removed)
}

fn read(args: &SmokeTestArgs) -> Result<ModelDeployment> {
    let context = || format!("reading a ModelDeployment from {}", args.manifest.display());
    let text = std::fs::read_to_string(&args.manifest).with_context(context)?;
    let mut deployment: ModelDeployment = stowage_crds::yaml::from_str(&text).with_context(context)?;
    ensure!(deployment.metadata.name.is_some(), "the ModelDeployment in {} has no name", args.manifest.display());
    deployment.metadata.namespace = Some(args.namespace.clone());
    Ok(deployment)
}

/// Any of the folder's.
fn a_key(folder: &Path) -> Result<String> {
    keys_in(folder)?.pop().with_context(|| format!("there is no API key in {}", folder.display()))
}

async fn deploy_and_ask(
    client: &Client,
    api: &Api<ModelDeployment>,
    deployment: &ModelDeployment,
    args: &SmokeTestArgs,
    key: Option<&str>,
    until: Instant,
) -> Result<()> {
    let name = deployment.name_any();
    let applied = api.patch(&name, &PatchParams::apply(MANAGER).force(), &Patch::Apply(deployment)).await;
    let generation = applied.with_context(|| format!("applying ModelDeployment {name}"))?.metadata.generation;
    println!("applied ModelDeployment {}/{name}", args.namespace);
    ready(api, &name, generation, until).await?;
    let url = match &args.url {
        Some(url) => url.clone(),
        None => service_url(client, &args.namespace, &name).await?,
    };
    println!("asking it at {url}: {:?}", args.prompt);
    println!("it says: {:?}", answer(&url, key, &name, &args.prompt, until).await?);
    Ok(())
}

/// Waits until it is ready, and says meanwhile what it waits for.
async fn ready(api: &Api<ModelDeployment>, name: &str, generation: Option<i64>, until: Instant) -> Result<()> {
    let mut said = String::new();
    let objects = watch_object(api.clone(), name).default_backoff();
    pin_mut!(objects);
    loop {
        let event = timeout_at(until, objects.next()).await;
        let event = event.map_err(|_| anyhow::anyhow!("ModelDeployment {name} did not become ready in time; last: {said}"))?;
        // The watch says of its errors that it goes on, and does.
        let Some(Ok(Some(object))) = event else { continue };
        let current = object.status.as_ref().is_some_and(|status| status.observed_generation == generation);
        let conditions = object.status.as_ref().map(|status| status.conditions.as_slice()).unwrap_or_default();
        let Some(ready) = conditions::find(conditions, ConditionType::Ready).filter(|_| current) else { continue };
        let news = format!("{}: {}", ready.reason, ready.message);
        if news != said {
            println!("{news}");
            said = news;
        }
        if ready.status == "True" {
            return Ok(());
        }
    }
}

/// By its address, so that it works where a cluster has no DNS of its own.
async fn service_url(client: &Client, namespace: &str, name: &str) -> Result<String> {
    let api: Api<Service> = Api::namespaced(client.clone(), namespace);
    let service = api.get(name).await.with_context(|| format!("reading Service {name}"))?;
    let spec = service.spec.unwrap_or_default();
    let port = spec.ports.iter().flatten().next().with_context(|| format!("Service {name} has no port"))?.port;
    let address = spec.cluster_ip.filter(|address| !address.is_empty() && address != "None");
    Ok(match address {
        Some(address) if address.contains(':') => format!("http://[{address}]:{port}"),
        Some(address) => format!("http://{address}:{port}"),
        None => format!("http://{name}.{namespace}.svc:{port}"),
    })
}

/// A few words, once it can be reached. Not what it says counts but that it does.
async fn answer(url: &str, key: Option<&str>, model: &str, prompt: &str, until: Instant) -> Result<String> {
    let client = reqwest::Client::new();
    let body = json!({"model": model, "prompt": prompt, "stream": false, "options": {"temperature": 0, "num_predict": 16}});
    let mut last;
    loop {
        match ask(&client, url, key, &body).await {
            Ok(text) => return Ok(text),
            Err(error) => last = error,
        }
        if Instant::now() + RETRY_AFTER >= until {
            return Err(last.context("no answer in time"));
        }
        sleep(RETRY_AFTER).await;
    }
}

async fn ask(client: &reqwest::Client, url: &str, key: Option<&str>, body: &Value) -> Result<String> {
    let request = client.post(format!("{url}/api/generate")).json(body);
    let request = key.into_iter().fold(request, |request, key| request.bearer_auth(key));
    let response = request.send().await.with_context(|| format!("asking {url}"))?;
    let status = response.status();
    let answer: Value = response.json().await.with_context(|| format!("reading the answer of {url}, {status}"))?;
    match answer.get("response").and_then(Value::as_str) {
        Some(text) if status.is_success() && !text.is_empty() => Ok(text.to_owned()),
        _ => bail!("{url} answered {status}: {answer}"),
    }
}

async fn remove(api: &Api<ModelDeployment>, name: &str) -> Result<()> {
    let removed = api.delete(name, &DeleteParams::default()).await;
    let uid = match removed {
        Ok(either) => either.left().and_then(|object| object.metadata.uid),
        Err(kube::Error::Api(status)) if status.code == 404 => None,
        Err(error) => return Err(error).with_context(|| format!("removing ModelDeployment {name}")),
    };
    if let Some(uid) = uid {
        let gone = tokio::time::timeout(REMOVAL, await_condition(api.clone(), name, is_deleted(&uid))).await;
        gone.with_context(|| format!("ModelDeployment {name} is not gone {} s after it was removed", REMOVAL.as_secs()))??;
    }
    println!("removed ModelDeployment {name}");
    Ok(())
}
