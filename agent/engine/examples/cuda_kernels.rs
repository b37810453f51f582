//! Compiles the CUDA kernels for every architecture that a release has them for, with NVRTC and without a GPU: `cuda_kernels FOLDER`. A build embeds what is in
//! the folder that `STOWAGE_CUDA_KERNELS` names.

use std::path::PathBuf;

use anyhow::{Context, anyhow};
use clap::Parser;
use stowage_engine::cuda::{ARCHITECTURES, compile, modules, version};

#[derive(Parser)]
struct Arguments {
    /// Gets a folder for each architecture.
    folder: PathBuf,
}

fn main() -> anyhow::Result<()> {
    let Arguments { folder } = Arguments::parse();
    let (major, minor) = version().map_err(|why| anyhow!(why))?;
    for (compute, part) in ARCHITECTURES {
        let architecture = format!("sm_{compute}{part}");
        let to = folder.join(&architecture);
        std::fs::create_dir_all(&to).with_context(|| to.display().to_string())?;
        let mut bytes = 0;
        for module in modules() {
            let code = compile(module, &architecture).map_err(|why| anyhow!(why))?;
            bytes += code.len();
            let path = to.join(format!("{}.cubin", module.name()));
            std::fs::write(&path, code).with_context(|| path.display().to_string())?;
        }
        println!("{architecture}: {} modules, {} KiB, by NVRTC {major}.{minor}", modules().count(), bytes >> 10);
    }
    Ok(())
}
