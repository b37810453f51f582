//! `agent calibrate`: runs every kernel on one GPU, says what it allocated there, and stays for its agent to ask the driver what the process holds
//! (`node::calibrator`). It ends when its agent closes its standard input, or is no more.

use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;
use serde::{Deserialize, Serialize};
use stowage_engine::calibration::Calibrated;
use stowage_placement::Bytes;

use crate::worker::Confine;
use crate::worker::confine::{Policy, confine};
use crate::worker::memory::go_first;

/// Run every kernel on a GPU, and stay to be looked at.
#[derive(Args, Clone, Debug)]
pub struct CalibrateArgs {
    /// The GPU's UUID.
    #[arg(long)]
    pub device: String,
    /// Where the models go that are run. It is the caller's to remove.
    #[arg(long, value_name = "FOLDER")]
    pub folder: PathBuf,
    /// How much to insist on being confined.
    #[arg(long, value_enum, value_name = "HOW", default_value_t)]
    pub confine: Confine,
}

/// What is said, as one line of JSON on standard output.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Outcome {
    /// What was allocated on the GPU, with every kernel run; it stays allocated.
    Allocated(Bytes),
    Failed(String),
}

pub fn run(args: &CalibrateArgs) -> ExitCode {
    go_first();
    // Before there is a second thread.
    let confined = confine(&Policy::of_calibration(&args.folder), args.confine);
    let until_closed = std::thread::Builder::new().name("agent-end".to_owned()).spawn(|| {
        // An error is an end, too.
        let _ = std::io::copy(&mut std::io::stdin().lock(), &mut std::io::sink());
        std::process::exit(0)
    });
    let held = confined.map_err(|error| error.to_string()).and_then(|confinement| {
        let calibrated = Calibrated::run(&args.folder, &args.device).map_err(|error| error.to_string())?;
        Ok((confinement, calibrated))
    });
    let outcome = match &held {
        Ok((_, calibrated)) => Outcome::Allocated(calibrated.allocated(&args.device)),
        Err(error) => Outcome::Failed(error.clone()),
    };
    let said = serde_json::to_string(&outcome).map_err(std::io::Error::other).and_then(|line| {
        let mut output = std::io::stdout().lock();
        writeln!(output, "{line}").and_then(|()| output.flush())
    });
    match (said, held, until_closed) {
        (Ok(()), Ok(_held), Ok(end)) => {
            let _ = end.join();
            ExitCode::SUCCESS
        }
        _ => ExitCode::FAILURE,
    }
}
