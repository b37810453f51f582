//! README, tutorial and the page on installing: what they say to type is typed, and what they show is what is printed.
#![allow(clippy::unwrap_used)]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use stowage_control_plane::binaries::{self, cache_directory};
use stowage_control_plane::{ControlPlane, Options};
use stowage_end_to_end::cluster::program;
use stowage_end_to_end::page::{self, Ran, Session};
use stowage_end_to_end::{Cluster, Settings, models};
use stowage_placement::Bytes;
use tempfile::TempDir;

fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").canonicalize().unwrap()
}

fn folder() -> TempDir {
    tempfile::Builder::new().prefix("stowage-page-").tempdir().unwrap()
}

fn page(name: &str) -> String {
    fs::read_to_string(repository().join(name)).unwrap()
}

/// Says what was run and what was not, and writes the page anew where that is asked for.
fn told(name: &str, ran: &Ran) {
    if page::updates() {
        fs::write(repository().join(name), ran.updated(&page(name))).unwrap();
    }
    println!("{name}: {} commands run, {} not", ran.run, ran.not_run.len());
    for (line, why) in &ran.not_run {
        println!("{name}:{line}: not run: {why}");
    }
}

/// A folder of the programs that the page calls by name, to be put before the `PATH`.
fn programs(folder: &Path, others: &[(&str, &Path)]) -> PathBuf {
    let programs = folder.join("programs");
    fs::create_dir_all(&programs).unwrap();
    let agent = program("stowage-agent").unwrap();
    let ours = [("stowage-agent", agent.as_path()), ("kubectl-stowage", agent.as_path())];
    for (name, path) in ours.iter().chain(others) {
        std::os::unix::fs::symlink(path, programs.join(name)).unwrap();
    }
    programs
}

fn with_path(command: &mut Command, programs: &Path) {
    let path = std::env::var("PATH").unwrap_or_default();
    command.env("PATH", format!("{}:{path}", programs.display()));
}

/// Models lie where `make run` puts them, which the pages name as it mostly is.
fn find_models(session: &mut Session) {
    session.replace("~/.cache/stowage/models", &models::directory().unwrap().display().to_string());
}

#[tokio::test(flavor = "multi_thread")]
async fn the_readme_shows_what_its_commands_print() -> Result<()> {
    let mut cluster = Cluster::start(Settings::default()).await?;
    cluster.start_gpu_nodes(&[("gpu-01", Bytes::gib(1))]).await?;
    let folder = folder();
    let kubectl = binaries::ensure()?.kubectl;
    let programs = programs(folder.path(), &[("kubectl", &kubectl)]);
    let mut session = Session::start(&repository(), folder.path(), |command| {
        with_path(command, &programs);
        command.env("KUBECONFIG", cluster.kubeconfig());
    })?;
    find_models(&mut session);
    let ran = session.follow(&page("README.md")).await.with_context(|| cluster.logs())?;
    told("README.md", &ran);
    ensure!(ran.run >= 15, "{ran:?}");
    drop(session);
    cluster.stop()
}

/// Its control plane, its node and its simulated GPU are those that it raises itself.
#[tokio::test(flavor = "multi_thread")]
async fn the_tutorial_can_be_followed_from_its_first_command_to_its_last() -> Result<()> {
    let folder = folder();
    let python = python()?;
    let mut session = Session::start(&repository(), folder.path(), |command| {
        with_path(command, python.parent().unwrap());
        command.env_remove("KUBECONFIG");
    })?;
    find_models(&mut session);
    let text = page("docs/tutorial.md");
    let ran = session.follow(&text).await?;
    told("docs/tutorial.md", &ran);
    ensure!(ran.run >= 20, "{ran:?}");
    for needed in ["kubectl stowage explain", "kubectl stowage plan", "q8_0", "ollama", "openai"] {
        ensure!(text.contains(needed), "{needed}");
    }
    Ok(())
}

/// Helm, the chart and the API server are real; there is no node, so nothing runs.
#[tokio::test(flavor = "multi_thread")]
async fn what_the_page_on_installing_says_is_taken_by_helm_and_the_api_server() -> Result<()> {
    let control_plane = ControlPlane::start(Options { controller_manager: true, ..Options::default() }).await?;
    let folder = folder();
    let (kubectl, helm) = (binaries::ensure()?.kubectl, binaries::helm()?);
    let programs = programs(folder.path(), &[("kubectl", &kubectl), ("helm", &helm)]);
    let mut session = Session::start(&repository(), folder.path(), |command| {
        with_path(command, &programs);
        command.env("KUBECONFIG", control_plane.kubeconfig()).env("HELM_CACHE_HOME", folder.path()).env("HELM_CONFIG_HOME", folder.path());
        command.env("HELM_DATA_HOME", folder.path());
    })?;
    let ran = session.follow(&page("docs/installation.md")).await?;
    told("docs/installation.md", &ran);
    ensure!(ran.run >= 8, "{ran:?}");
    drop(session);
    control_plane.stop();
    Ok(())
}

/// The python that has Ollama's and OpenAI's clients, as the tests of clients have it.
fn python() -> Result<PathBuf> {
    let (script, requirements) = (repository().join("scripts/python-environment.sh"), repository().join("tests/clients/requirements.txt"));
    let output = Command::new(&script)
        .arg(&requirements)
        .arg(cache_directory())
        .output()
        .with_context(|| format!("running {}", script.display()))?;
    ensure!(output.status.success(), "{}: {}", script.display(), String::from_utf8_lossy(&output.stderr));
    Ok(PathBuf::from(String::from_utf8(output.stdout)?.trim()))
}
