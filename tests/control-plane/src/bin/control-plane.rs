//! Builds the control plane's programs into the cache, so that later runs find them there.

use std::process::ExitCode;

fn main() -> ExitCode {
    match stowage_control_plane::binaries::ensure() {
        Ok(binaries) => {
            println!("control plane: {}", binaries.kube_apiserver.parent().unwrap_or(&binaries.kube_apiserver).display());
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("control-plane: {error}");
            ExitCode::FAILURE
        }
    }
}
