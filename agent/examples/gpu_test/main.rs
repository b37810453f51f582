//! Tries CUDA on the GPU of this machine, with models that it makes itself: `make gpu-test`. Nothing is read from a network.
//!
//! It prints a report in Markdown, to be kept in docs/benchmarks/. Ends with 0 where all checks hold, 1 where one does not, and 77 where there is no GPU to try.

#[cfg(not(any(feature = "cuda", feature = "emulated-cuda")))]
compile_error!("the feature `gpu-test` needs `cuda`, or `emulated-cuda`");

mod checks;
mod child;
mod meter;
mod report;
mod shapes;

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context;
use clap::Parser;

use checks::Trial;
use report::Report;

/// As test programs say that they could not be run.
const NOTHING_TO_TRY: u8 = 77;

/// Try CUDA on the GPU of this machine.
#[derive(Parser)]
struct Arguments {
    /// For the models, which take up to 25 GiB there; they are removed again.
    #[arg(long, default_value = "gpu-test-models")]
    folder: PathBuf,
    /// Gets the report, too.
    #[arg(long)]
    report: Option<PathBuf>,
    /// Another NVML than the system's.
    #[arg(long)]
    nvml_library: Option<PathBuf>,
    /// On an emulated GPU with small models: shows that this program works, and nothing of a GPU.
    #[arg(long)]
    emulated: bool,
    /// Of this program's own processes: what to do on the GPU.
    #[arg(long, hide = true)]
    child: Option<String>,
}

fn main() -> anyhow::Result<ExitCode> {
    let arguments = Arguments::parse();
    if let Some(order) = &arguments.child {
        return child::carry_out(order);
    }
    let gpu = match meter::find(arguments.emulated, arguments.nvml_library) {
        Ok(gpu) => gpu,
        Err(why) => {
            eprintln!("there is no GPU to try: {why}");
            return Ok(ExitCode::from(NOTHING_TO_TRY));
        }
    };
    std::fs::create_dir_all(&arguments.folder).with_context(|| format!("making {}", arguments.folder.display()))?;
    let mut trial = Trial::new(gpu, arguments.folder.clone(), Report::new(arguments.report.as_deref())?);
    trial.run();
    let holds = trial.report.verdict();
    // What is left behind is told by the next run's folder being there.
    let _ = std::fs::remove_dir_all(&arguments.folder);
    Ok(if holds { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
