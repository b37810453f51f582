//! `stowage-operator`: parses, wires, runs.

use std::io::IsTerminal;
use std::sync::Arc;

use anyhow::{Context, Result};
use clap::Parser;
use http::HeaderValue;
use http::header::USER_AGENT;
use kube::config::{Config, KubeConfigOptions, Kubeconfig};
use stowage_operator::clock::SystemClock;
use stowage_operator::leader::Election;
use stowage_operator::metrics::{self, Metrics};
use stowage_operator::model_deployment::fetch::FromSources;
use stowage_operator::options::Options;
use stowage_operator::roll_call::OverHttp;
use stowage_operator::{events, term};
use stowage_sources::AddressPolicy;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;

#[tokio::main]
async fn main() -> Result<()> {
    let options = Options::parse();
    log(&options);
    let periods = options.periods().map_err(anyhow::Error::msg)?;
    let workers = options.workers().map_err(anyhow::Error::msg)?.map(Arc::new);
    let policy = AddressPolicy::parse(&options.allow_source_addresses)?;
    let identity = options.identity.clone().unwrap_or_else(identity);
    let mut config = config(&options).await?;
    config.headers.push((USER_AGENT, user_agent(&identity)?));
    let client = kube::Client::try_from(config).context("making the client of the API server")?;
    let metrics = Arc::new(Metrics::default());
    let (notices, told) = mpsc::unbounded_channel();
    let telling = tokio::spawn(events::run(client.clone(), identity.clone(), told));
    let clock = Arc::new(SystemClock);
    let election = Election::new(client.clone(), &options.system_namespace, identity, periods, clock.clone());
    if let Some(address) = options.metrics_address {
        let serving = metrics::serve(address, metrics.clone(), election.contact());
        tokio::spawn(async move {
            if let Err(error) = serving.await {
                tracing::error!("serving metrics on {address}: {error}");
            }
        });
    }
    let (defaults, move_up_after, system_namespace) = (options.defaults(), options.move_up_after, options.system_namespace);
    let (reader, asker) = (Arc::new(FromSources { policy }), Arc::new(OverHttp::new(options.replica_host)));
    let terms = term::Terms { client, clock, system_namespace, defaults, move_up_after, workers, reader, asker, notices, metrics };
    terms.serve(election, told_to_end()?).await;
    // The last Events are on their way.
    drop(terms);
    telling.await.context("publishing the last Events")
}

fn log(options: &Options) {
    let filter = tracing_subscriber::EnvFilter::try_from_default_env().unwrap_or_else(|_| "info".into());
    let log = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).with_ansi(std::io::stderr().is_terminal());
    if options.log_json { log.json().init() } else { log.init() }
}

async fn config(options: &Options) -> Result<Config> {
    let Some(path) = &options.kubeconfig else { return Config::infer().await.context("looking for a kubeconfig or a Pod's account") };
    let kubeconfig = Kubeconfig::read_from(path).with_context(|| format!("reading the kubeconfig {}", path.display()))?;
    let config = Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await;
    config.with_context(|| format!("using the kubeconfig {}", path.display()))
}

/// By which the API server's audit log tells one operator's writes from another's.
fn user_agent(identity: &str) -> Result<HeaderValue> {
    let text = format!("stowage-operator/{} ({identity})", env!("CARGO_PKG_VERSION"));
    HeaderValue::from_str(&text).with_context(|| format!("the identity {identity:?} can't stand in an HTTP header"))
}

/// Host name and process id: no two processes have both in common at the same time.
fn identity() -> String {
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    format!("{}-{}", host.trim(), std::process::id())
}

fn told_to_end() -> Result<impl Future<Output = ()>> {
    let mut terminate = signal(SignalKind::terminate()).context("listening for SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("listening for SIGINT")?;
    Ok(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
    })
}
