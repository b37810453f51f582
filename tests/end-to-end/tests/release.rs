//! What releases are made with. The workflow runs where GitHub has it run, and the Dockerfile where there is a container runtime; what can be tried here is that
//! all that they name is there and fits together, and that what they pack is what is installed.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use stowage_crds::yaml;
use stowage_end_to_end::cluster::program;
use tempfile::TempDir;

const VERSION: &str = env!("CARGO_PKG_VERSION");
const REPOSITORY: &str = "https://github.com/stowage-dev/stowage";

fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").canonicalize().unwrap()
}

fn read(name: &str) -> String {
    fs::read_to_string(repository().join(name)).unwrap()
}

fn folder() -> TempDir {
    tempfile::Builder::new().prefix("stowage-release-").tempdir().unwrap()
}

/// What it prints; an error holds what it prints on standard error.
fn output(command: &mut Command) -> Result<String> {
    let output = command.current_dir(repository()).output().with_context(|| format!("running {command:?}"))?;
    ensure!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr).trim());
    Ok(String::from_utf8(output.stdout)?)
}

fn workflow() -> Value {
    yaml::from_str(&read(".github/workflows/release.yaml")).unwrap()
}

/// The names of the steps that run something, with what they run.
fn scripts(workflow: &Value) -> Vec<(String, String)> {
    let jobs = workflow["jobs"].as_object().unwrap().values();
    let steps = jobs.flat_map(|job| job["steps"].as_array().unwrap());
    let script = |step: &Value| {
        let run = step["run"].as_str()?.to_owned();
        Some((step["name"].as_str().unwrap_or(&run).to_owned(), run))
    };
    steps.filter_map(script).collect()
}

/// The words that stand after this one, as far as the command goes.
fn after<'a>(script: &'a str, word: &str) -> Vec<&'a str> {
    let mut found = Vec::new();
    for line in script.lines().map(str::trim) {
        if let Some(rest) = line.strip_prefix(word) {
            found.extend(rest.split_whitespace().take_while(|word| !["&&", "|", ";", ">"].contains(word)));
        }
    }
    found
}

#[test]
fn the_workflow_runs_what_is_there() -> Result<()> {
    let (workflow, folder) = (workflow(), folder());
    let makefile = read("Makefile");
    let (mut programs, mut targets) = (BTreeSet::new(), BTreeSet::new());
    for (name, script) in scripts(&workflow) {
        // What GitHub puts in place of an expression is a word.
        let path = folder.path().join("script");
        fs::write(&path, script.replace("${{ matrix.architecture }}", "amd64"))?;
        ensure!(!fs::read_to_string(&path)?.contains("${{"), "{name}: what comes from elsewhere goes through the environment: {script}");
        output(Command::new("bash").arg("-n").arg(&path)).context(name)?;
        programs.extend(script.split_whitespace().filter(|word| word.starts_with("scripts/")).map(str::to_owned));
        targets.extend(after(&script, "make ").into_iter().filter(|word| !word.contains('=')).map(str::to_owned));
    }
    for program in &programs {
        let mode = fs::metadata(repository().join(program)).with_context(|| program.clone())?.permissions().mode();
        ensure!(mode & 0o111 != 0, "{program} can't be run");
    }
    for target in &targets {
        ensure!(makefile.contains(&format!("\n{target}:")), "make knows no {target}");
    }
    let found = (programs.len(), targets.iter().map(String::as_str).collect::<Vec<_>>());
    ensure!(found == (2, vec!["clean", "image"]), "{programs:?} and {targets:?} were found");
    Ok(())
}

/// Compiled without it, an agent plans for GPUs and computes on none; with it, it starts on every node.
#[test]
fn released_images_compute_on_gpus() -> Result<()> {
    let scripts = scripts(&workflow());
    let makes = scripts.iter().map(|(_, script)| after(script, "make ")).filter(|words| words.contains(&"image"));
    let without: Vec<Vec<&str>> = makes.clone().filter(|words| !words.contains(&"CUDA=1")).collect();
    ensure!(makes.count() == 2 && without.is_empty(), "made without CUDA, or not twice: {without:?}");
    let features =
        read("Makefile").lines().find_map(|line| Some(line.strip_prefix("WITH_CUDA := $(if $(CUDA),")?.trim_end_matches(')').to_owned()));
    let features = features.context("make knows the feature")?;
    ensure!(read("Dockerfile").contains(&features), "the Dockerfile builds without {features}");
    Ok(())
}

#[test]
fn what_one_job_makes_is_what_the_next_one_takes() -> Result<()> {
    let workflow = workflow();
    let jobs = workflow["jobs"].as_object().unwrap();
    for job in jobs.values() {
        let needs = job["needs"].as_str();
        ensure!(needs.is_none_or(|name| jobs.contains_key(name)), "there is no job {needs:?}");
    }
    let made = jobs["images"]["strategy"]["matrix"]["include"].as_array().unwrap();
    let made: Vec<&str> = made.iter().filter_map(|one| one["architecture"].as_str()).collect();
    let script = scripts(&workflow).into_iter().find(|(name, _)| name.starts_with("Images, one for each architecture")).unwrap().1;
    ensure!(
        script.contains(&format!("for architecture in {}; do", made.join(" "))),
        "{made:?} are made, and published are those of {script}"
    );
    // The folder of what is uploaded is where `make image` puts it, and the names there are those that image.py gives.
    let upload = jobs["images"]["steps"].as_array().unwrap().iter().find_map(|step| step["with"]["path"].as_str()).unwrap();
    ensure!(read("Makefile").contains("$(TARGET)/images/$(PROFILE)") && upload == "target/images/release/", "{upload}");
    for suffix in [".tar", ".digest", ".spdx.json"] {
        ensure!(read("scripts/image.py").contains(&format!("/ f\"{{arguments.name}}{suffix}\"")), "image.py makes no NAME{suffix}");
        let taken =
            ["$program", "$program\"", "*"].iter().any(|name| read(".github/workflows/release.yaml").contains(&format!("{name}{suffix}")));
        ensure!(taken, "the workflow takes no NAME{suffix}");
    }
    Ok(())
}

#[test]
fn a_tag_that_is_not_the_version_of_the_code_is_no_release() -> Result<()> {
    let script = scripts(&workflow()).into_iter().find(|(name, _)| name == "The tag is the version of the code").unwrap().1;
    let with = |tag: String| output(Command::new("bash").args(["-e", "-c", &script]).env("GITHUB_REF_NAME", tag));
    with(format!("v{VERSION}"))?;
    ensure!(with("v99.0.0".into()).is_err() && with(format!("{VERSION}0")).is_err(), "another tag passes");
    Ok(())
}

#[test]
fn the_plugin_that_krew_installs_runs() -> Result<()> {
    let (folder, tag) = (folder(), format!("v{VERSION}"));
    let agent = program("stowage-agent")?;
    let archive = |architecture: &str| folder.path().join(format!("kubectl-stowage-linux-{architecture}.tar.gz"));
    for architecture in ["amd64", "arm64"] {
        output(Command::new("scripts/kubectl-plugin.sh").arg(&agent).arg(folder.path()).arg(architecture))?;
    }
    ensure!(fs::read(archive("amd64"))? == fs::read(archive("arm64"))?, "the same program should give the same bytes");

    let manifest = output(Command::new("scripts/krew-manifest.sh").arg(&tag).args(["amd64", "arm64"].map(archive)))?;
    let manifest: Value = yaml::from_str(&manifest)?;
    ensure!(manifest["apiVersion"] == "krew.googlecontainertools.github.com/v1alpha2" && manifest["kind"] == "Plugin", "{manifest}");
    ensure!(manifest["metadata"]["name"] == "stowage" && manifest["spec"]["version"] == *tag, "{manifest}");
    // Longer ones are cut off in Krew's list.
    ensure!(manifest["spec"]["shortDescription"].as_str().is_some_and(|text| (10..=50).contains(&text.len())), "{manifest}");
    let page = manifest["spec"]["homepage"].as_str().and_then(|url| url.strip_prefix(&format!("{REPOSITORY}/blob/main/"))).unwrap();
    ensure!(repository().join(page).is_file(), "{page}");
    let platforms = manifest["spec"]["platforms"].as_array().unwrap();
    for (platform, architecture) in platforms.iter().zip(["amd64", "arm64"]) {
        let file = archive(architecture);
        let sum = output(Command::new("sha256sum").arg(&file))?;
        let url = format!("{REPOSITORY}/releases/download/{tag}/{}", file.file_name().unwrap().to_str().unwrap());
        let expected = (architecture, url.as_str(), sum.split(' ').next().unwrap());
        let found = (&platform["selector"]["matchLabels"]["arch"], &platform["uri"], &platform["sha256"]);
        ensure!(
            (*found.0 == *expected.0) && (*found.1 == *expected.1) && (*found.2 == *expected.2),
            "{platform}, and expected {expected:?}"
        );

        let installed = folder.path().join(architecture);
        fs::create_dir(&installed)?;
        output(Command::new("tar").arg("-xzf").arg(&file).arg("-C").arg(&installed))?;
        ensure!(installed.join("LICENSE").is_file(), "Krew asks for a licence");
        let help = output(Command::new(installed.join(platform["bin"].as_str().unwrap())).arg("--help"))?;
        ensure!(["plan", "explain", "top", "chat"].iter().all(|command| help.contains(&format!("\n  {command} "))), "{help}");
    }
    ensure!(platforms.len() == 2, "{manifest}");
    Ok(())
}

#[test]
fn the_dockerfile_builds_with_our_compiler_and_runs_as_the_same_user_as_our_images() -> Result<()> {
    let dockerfile = read("Dockerfile");
    let word = |instruction: &str| dockerfile.lines().find_map(|line| line.strip_prefix(instruction)).unwrap().split(' ').next().unwrap();
    let compiler = read("rust-toolchain.toml");
    let compiler = compiler.lines().find_map(|line| line.strip_prefix("channel = ")).unwrap().trim_matches('"');
    let image = word("FROM rust:").split('-').next().unwrap();
    ensure!(compiler.strip_prefix(image).is_some_and(|rest| rest.is_empty() || rest.starts_with('.')), "rust:{image} has not {compiler}");
    ensure!(program(word("ARG PROGRAM="))?.is_file(), "{}", word("ARG PROGRAM="));
    let user = word("USER ").split(':').next().unwrap();
    ensure!(read("scripts/image.py").contains(&format!("\nNONROOT = {user}\n")), "image.py has another user than {user}");
    for key in ["uid", "gid"] {
        ensure!(read("charts/stowage/values.yaml").contains(&format!("\n    {key}: {user}\n")), "the chart has another {key} than {user}");
    }
    // `strip` as image.py calls it, and the same build as `make image`.
    ensure!(read("scripts/image.py").contains(r#""strip", "--strip-unneeded", "-o""#), "image.py strips otherwise");
    let build = "cargo build --release --locked --package stowage-operator --package stowage-agent";
    ensure!(read("Makefile").contains(build), "make image builds otherwise");
    for step in [build, "strip --strip-unneeded -o"] {
        ensure!(dockerfile.contains(step), "{step}: {dockerfile}");
    }
    Ok(())
}
