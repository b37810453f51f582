//! Builds the control plane's programs and helm into the cache, so that later runs find them there. `control-plane helm` builds helm alone, and prints its path;
//! `control-plane kube-score` and `control-plane actionlint` those; `control-plane node` builds what a node needs.

use std::path::PathBuf;
use std::process::ExitCode;

use stowage_control_plane::{Error, binaries};

fn main() -> ExitCode {
    let made = match std::env::args().nth(1).as_deref() {
        Some("helm") => binaries::helm().map(|path| path.display().to_string()),
        Some("kube-score") => binaries::kube_score().map(|path| path.display().to_string()),
        Some("actionlint") => binaries::actionlint().map(|path| path.display().to_string()),
        Some("node") => binaries::node().map(|found| format!("kubelet: {}", found.kubelet.display())),
        _ => all().map(|directory| format!("control plane: {}", directory.display())),
    };
    match made {
        Ok(line) => {
            println!("{line}");
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("control-plane: {error}");
            ExitCode::FAILURE
        }
    }
}

fn all() -> Result<PathBuf, Error> {
    let binaries = binaries::ensure()?;
    binaries::helm()?;
    binaries::monitoring_definitions()?;
    Ok(binaries.kube_apiserver.parent().unwrap_or(&binaries.kube_apiserver).to_owned())
}
