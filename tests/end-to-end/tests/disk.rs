//! Disks that are too small or fill, directories that vanish, files that change under a loaded model: each is told with its numbers, what serves serves on,
//! and nothing is left lying about.
#![allow(clippy::unwrap_used)]

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use rustix::process::Signal;
use serde_json::{Value, json};
use stowage_crds::ModelDeployment;
use stowage_crds::conditions::ConditionType;
use stowage_end_to_end::client::{Stream, worker_url};
use stowage_end_to_end::file_server::FileServer;
use stowage_end_to_end::{AgentOptions, Cluster, Settings, manifest, models, watch, workers};
use stowage_placement::{Bytes, Reason};

/// The small model on CPU, from a file of the model directory.
fn of_file(name: &str, path: &str) -> ModelDeployment {
    let mut deployment = manifest::with_policy(name, "RequireCPU");
    deployment.spec.model.path = Some(path.to_owned());
    deployment
}

/// The small model on CPU, from a URL.
fn of_url(name: &str, url: &str) -> Result<ModelDeployment> {
    let mut deployment = manifest::with_policy(name, "RequireCPU");
    deployment.spec.model = serde_json::from_value(json!({"http": {"url": url}}))?;
    Ok(deployment)
}

async fn answers(deployment: &ModelDeployment, name: &str) -> Result<Value> {
    Stream::start(&worker_url(deployment)?, name, "1, 2, 3, 4,", 4).await?.rest().await
}

/// Serves, with everything as it should be.
fn is_well(deployment: &ModelDeployment) -> bool {
    watch::is_ready(deployment) && watch::is(deployment, ConditionType::Degraded, "False")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_download_that_the_disk_has_no_room_for_says_so_leaves_nothing_and_goes_on_when_there_is_room() -> Result<()> {
    let server = FileServer::start(models::directory()?.join(models::SMOLLM2)).await?;
    let loopback = ["--allow-source-address".to_owned(), "127.0.0.0/8".to_owned()].to_vec();
    let mut cluster = Cluster::start(Settings { operator_flags: loopback.clone(), ..Settings::default() }).await?;
    let disk = Bytes::mib(150);
    let options = AgentOptions { flags: loopback, cache_disk: Some(disk), ..AgentOptions::new("node-a", models::directory()?) };
    cluster.start_agent(options).await?;
    let cache = on_its_disk(&cluster);
    cluster.create(&of_file("other", models::SMOLLM2)).await?;
    let before = cluster.until("other", is_well).await?;

    // Somebody else fills the disk: what is left is less than the model needs.
    fs::write(cache.join("somebody-elses"), vec![1; 100 << 20]).context("filling the disk")?;
    cluster.create(&of_url("m", &server.url("a.gguf"))?).await?;
    let words = cluster.says("m", Reason::InsufficientDisk, "").await?;
    ensure!(words.contains("93.8 MiB more are needed in") && words.contains("and 50.0 MiB are free"), "{words}");
    ensure!(left_in(&cache)? == ["somebody-elses"], "{:?}", left_in(&cache)?);

    fs::remove_file(cache.join("somebody-elses"))?;
    let ready = cluster.until("m", is_well).await?;
    answers(&ready, "m").await?;
    // A second one has no room beside it, and takes nothing from it.
    cluster.create(&of_url("second", &server.url("b.gguf"))?).await?;
    let words = cluster.says("second", Reason::InsufficientDisk, "").await?;
    ensure!(words.contains("56.2 MiB are free"), "{words}");
    ensure!(left_in(&cache)?.len() == 1, "{:?}", left_in(&cache)?);

    let after = cluster.until("other", is_well).await?;
    ensure!(watch::assignments(&after) == watch::assignments(&before), "it was touched");
    cluster.stop()
}

/// The agent's downloads, as seen from outside of its mount namespace.
fn on_its_disk(cluster: &Cluster) -> PathBuf {
    let cache = cluster.node_folder("node-a").join("cache");
    let inside = Path::new("/proc").join(cluster.agents[0].process.pid().to_string()).join("root");
    inside.join(cache.strip_prefix("/").unwrap_or(&cache))
}

/// The names of what lies there.
fn left_in(folder: &Path) -> Result<Vec<String>> {
    let entries = fs::read_dir(folder).with_context(|| format!("listing {}", folder.display()))?;
    entries.map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned())).collect()
}

/// A node whose model directory has two copies of the small model, each with a replica of its own: `m` and `other`.
async fn two_files() -> Result<(Cluster, tempfile::TempDir, PathBuf)> {
    let folder = tempfile::tempdir()?;
    let directory = folder.path().join("models");
    fs::create_dir(&directory)?;
    for name in ["m.gguf", "other.gguf"] {
        fs::copy(models::directory()?.join(models::SMOLLM2), directory.join(name))?;
    }
    let mut cluster = Cluster::start(Settings::default()).await?;
    cluster.start_agent(AgentOptions::new("node-a", &directory)).await?;
    for (name, path) in [("m", "m.gguf"), ("other", "other.gguf")] {
        cluster.create(&of_file(name, path)).await?;
        cluster.until(name, is_well).await?;
    }
    Ok((cluster, folder, directory))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_model_directory_that_vanishes_is_told_and_what_was_loaded_from_it_serves_on() -> Result<()> {
    let (cluster, folder, directory) = two_files().await?;
    let before = cluster.until("m", is_well).await?;
    let away = folder.path().join("away");
    fs::rename(&directory, &away)?;
    let words = cluster.says("m", Reason::ModelFileChanged, "").await?;
    ensure!(words.contains("m.gguf (93.8 MiB) can't be reached any more: No such file"), "{words}");
    let degraded = cluster.until("m", |m| watch::is(m, ConditionType::Degraded, "True")).await?;
    ensure!(watch::is_ready(&degraded) && watch::assignments(&degraded) == watch::assignments(&before), "it serves on");
    answers(&degraded, "m").await?;
    cluster.create(&of_file("late", "m.gguf")).await?;
    // Refused by the node's agent first, where the operator does not know yet.
    let words = cluster.says("late", Reason::ModelNotFound, "on node-a the model directory").await?;
    ensure!(words.contains("can't be read: No such file"), "{words}");

    fs::rename(&away, &directory)?;
    for name in ["m", "late", "other"] {
        cluster.until(name, is_well).await?;
    }
    ensure!(watch::assignments(&cluster.until("m", is_well).await?) == watch::assignments(&before), "it was never taken away");
    cluster.stop()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_that_changes_under_a_loaded_model_is_told_and_not_loaded_again_until_it_is_whole() -> Result<()> {
    let (cluster, _folder, directory) = two_files().await?;
    let (before, other) = (cluster.until("m", is_well).await?, cluster.until("other", is_well).await?);
    let file = fs::File::options().write(true).open(directory.join("m.gguf"))?;
    file.set_len(50 << 20)?;
    let words = cluster.says("m", Reason::ModelFileChanged, "").await?;
    ensure!(words.contains("m.gguf had 93.8 MiB when it was loaded, and has 50.0 MiB now"), "{words}");
    let degraded = cluster.until("m", |m| watch::is(m, ConditionType::Degraded, "True")).await?;
    ensure!(watch::is_ready(&degraded), "it serves on");
    answers(&degraded, "m").await?;

    // Its worker dies, and there is nothing whole to load.
    let uid = before.metadata.uid.context("an object has a uid")?;
    let worker = workers::running(cluster.folder()).into_iter().find(|worker| worker.deployment_uid == uid);
    worker.context("the worker of m")?.signal(Signal::KILL);
    let words = cluster.says("m", Reason::InvalidModelFile, "").await?;
    ensure!(words.contains("m.gguf` is truncated") && words.contains("52428800 bytes"), "{words}");

    fs::copy(directory.join("other.gguf"), directory.join("m.gguf"))?;
    let ready = cluster.until("m", is_well).await?;
    answers(&ready, "m").await?;
    ensure!(watch::assignments(&cluster.until("other", is_well).await?) == watch::assignments(&other), "it was touched");
    cluster.stop()
}
