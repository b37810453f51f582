//! `make chaos`: kills, pauses and changes for as long as asked.

use std::process::ExitCode;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::anyhow;
use clap::Parser;
use stowage_end_to_end::chaos::{self, Settings};
use tokio::signal::unix::{SignalKind, signal};

#[derive(Parser)]
#[command(name = "chaos")]
struct Options {
    /// What happens follows from it; taken from the clock where it is missing.
    #[arg(long)]
    seed: Option<u64>,
    /// Seconds.
    #[arg(long, default_value_t = 900)]
    duration: u64,
}

#[tokio::main]
async fn main() -> ExitCode {
    let options = Options::parse();
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    let settings = Settings { seed: options.seed.unwrap_or(now), duration: Duration::from_secs(options.duration) };
    // What is dropped in the middle takes its processes along.
    let result = tokio::select! {
        result = chaos::run(settings) => result.map(drop),
        () = told_to_end() => Err(anyhow!("interrupted")),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("chaos: {error:#}");
            ExitCode::FAILURE
        }
    }
}

async fn told_to_end() {
    let (Ok(mut terminate), Ok(mut interrupt)) = (signal(SignalKind::terminate()), signal(SignalKind::interrupt())) else {
        return std::future::pending().await;
    };
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
}
