//! Images made without a container runtime: the same from the same program, with all that the program needs, and with a list of what is in them.
#![allow(clippy::unwrap_used)]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use stowage_end_to_end::cluster::program;

/// Made below `folder`, with these more environment variables.
fn make(name: &str, folder: &Path, environment: &[(&str, &str)]) -> Result<PathBuf> {
    make_with(&[], name, folder, environment)
}

/// The same, with these more options.
fn make_with(options: &[&str], name: &str, folder: &Path, environment: &[(&str, &str)]) -> Result<PathBuf> {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../scripts/image.py");
    let mut command = Command::new("python3");
    command.arg(script).arg(name).arg(program(name)?).arg(folder).args(options).envs(environment.iter().copied());
    // What was compiled is here.
    command.env("CARGO_NET_OFFLINE", "true");
    let output = command.stdin(Stdio::null()).output().context("running image.py")?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    Ok(folder.join(format!("{name}.tar")))
}

fn unpack(archive: &Path, folder: &Path) -> Result<()> {
    fs::create_dir_all(folder)?;
    let unpacked = Command::new("tar").arg("-xf").arg(archive).arg("-C").arg(folder).status()?;
    ensure!(unpacked.success(), "unpacking {}", archive.display());
    Ok(())
}

fn json(path: &Path) -> Result<Value> {
    serde_json::from_slice(&fs::read(path).with_context(|| format!("reading {}", path.display()))?).context("reading JSON")
}

fn blob(layout: &Path, descriptor: &Value) -> PathBuf {
    layout.join("blobs").join(descriptor["digest"].as_str().unwrap().replace(':', "/"))
}

#[test]
fn an_image_is_the_same_when_it_is_made_again_elsewhere_at_another_time() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let other = folder.path().join("elsewhere/with another name");
    let one = make("stowage-operator", &folder.path().join("one"), &[])?;
    let two = make("stowage-operator", &other, &[("TZ", "Asia/Tokyo"), ("LC_ALL", "C"), ("PYTHONHASHSEED", "7")])?;
    for (a, b) in [(&one, &two), (&one.with_extension("spdx.json"), &two.with_extension("spdx.json"))] {
        ensure!(fs::read(a)? == fs::read(b)?, "{} and {} differ", a.display(), b.display());
    }
    let later = make("stowage-operator", &folder.path().join("later"), &[("SOURCE_DATE_EPOCH", "1")])?;
    ensure!(fs::read(later)? != fs::read(one)?, "the commit's time is in it");
    Ok(())
}

#[test]
fn a_program_runs_with_nothing_but_its_image_and_is_not_root() -> Result<()> {
    let folder = tempfile::tempdir()?;
    for name in ["stowage-operator", "stowage-agent"] {
        let layout = folder.path().join(name);
        unpack(&make(name, &folder.path().join("made"), &[])?, &layout)?;
        let index = json(&layout.join("index.json"))?;
        let manifest = json(&blob(&layout, &index["manifests"][0]))?;
        let config = json(&blob(&layout, &manifest["config"]))?;
        ensure!(config["config"]["User"] == "65532:65532", "{config}");
        let root = folder.path().join(format!("{name}-root"));
        ensure!(manifest["layers"].as_array().is_some_and(|layers| layers.len() == 1), "one layer: {manifest}");
        unpack(&blob(&layout, &manifest["layers"][0]), &root)?;
        let entry = config["config"]["Entrypoint"][0].as_str().context("an entry point")?;
        // What the image lacks is not there: this is its whole file system.
        let mut command = Command::new("unshare");
        command
            .args(["--user", "--map-root-user", "chroot"])
            .arg(&root)
            .args([entry, "--version"])
            .env_clear()
            .env("PATH", std::env::var("PATH")?);
        let output = command.output().context("running in the image")?;
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        ensure!(said.trim() == format!("{name} {}", env!("CARGO_PKG_VERSION")), "{said}{}", String::from_utf8_lossy(&output.stderr));

        let parts = json(&folder.path().join(format!("made/{name}.spdx.json")))?;
        let names: Vec<&str> = parts["packages"].as_array().into_iter().flatten().filter_map(|part| part["name"].as_str()).collect();
        for part in [name, "kube", "tokio", "rustls"] {
            ensure!(names.contains(&part), "{part} is not listed for {name}");
        }
        // Of those that only tests need, none is in the program.
        ensure!(!names.contains(&"tower-test") && !names.contains(&"proptest"), "what tests need is listed for {name}");
    }
    Ok(())
}

#[test]
fn with_cuda_its_bindings_and_what_compiled_its_kernels_are_listed_too() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let listed = |options: &[&str], name: &str| -> Result<Value> {
        make_with(options, name, folder.path(), &[])?;
        json(&folder.path().join(format!("{name}.spdx.json")))
    };
    let cuda: &[&str] = &["--features", "stowage-agent/cuda"];
    let compiler = |parts: &Value| {
        let packages = parts["packages"].as_array().unwrap();
        packages.iter().find(|part| part["name"] == "nvidia-cuda-nvrtc").cloned()
    };
    let has_bindings = |parts: &Value| parts["packages"].as_array().unwrap().iter().any(|part| part["name"] == "cudarc");

    let agent = listed(cuda, "stowage-agent")?;
    let compiled_by = compiler(&agent).context("the compiler is listed")?;
    ensure!(has_bindings(&agent), "cudarc is not listed");
    let locator = format!("pkg:pypi/nvidia-cuda-nvrtc@{}", compiled_by["versionInfo"].as_str().unwrap());
    ensure!(compiled_by["externalRefs"][0]["referenceLocator"] == *locator, "{compiled_by}");
    let relation = agent["relationships"].as_array().unwrap().iter().find(|relation| relation["spdxElementId"] == compiled_by["SPDXID"]);
    ensure!(relation.is_some_and(|relation| relation["relationshipType"] == "BUILD_TOOL_OF"), "{relation:?}");
    for (options, name) in [(&[][..], "stowage-agent"), (cuda, "stowage-operator")] {
        let parts = listed(options, name)?;
        ensure!(compiler(&parts).is_none() && !has_bindings(&parts), "CUDA is listed for {name} with {options:?}");
    }
    Ok(())
}
