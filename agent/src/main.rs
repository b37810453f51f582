//! `stowage-agent run | worker | plan | bench | kubectl | smoke-test | prepare`; under the name `kubectl-stowage`, kubectl's plugin.

use std::io::IsTerminal;
use std::process::ExitCode;

use clap::Parser;
use stowage_agent::config::{Cli, Command, NVML_LIBRARY};
use stowage_agent::devices::{Devices, Memory, Reading, offers};
use stowage_agent::{bench, calibrate, kubectl, plan, prepare, run, smoke_test, worker};
use stowage_placement::layout::Backend;
use tracing_subscriber::EnvFilter;

fn main() -> ExitCode {
    if kubectl::is_called(std::env::args_os().next()) {
        return on_runtime(kubectl::run(kubectl::Cli::parse().args));
    }
    match Cli::parse().command {
        Command::Run(args) => served(run::run(args)),
        Command::Worker(args) => {
            worker::memory::keep_few_arenas();
            log();
            let prepared = worker::run::prepare(args);
            told(prepared.and_then(|prepared| prepared.map_or(Ok(()), |prepared| on_runtime(prepared.run()))).map_err(anyhow::Error::from))
        }
        Command::Calibrate(args) => {
            worker::memory::keep_few_arenas();
            log();
            calibrate::run(&args)
        }
        Command::Plan(args) => on_runtime(async {
            let machine = machine(&args);
            plan::run(&args, &machine).await
        }),
        Command::Bench(args) => bench::run(&args),
        Command::Kubectl(args) => on_runtime(kubectl::run(args)),
        Command::SmokeTest(args) => served(smoke_test::run(args)),
        Command::Prepare(args) => told(prepare::run(&args)),
    }
}

/// Runs what runs until it is told to end. What is still on its way when it returns is cut off.
fn served(service: impl Future<Output = anyhow::Result<()>>) -> ExitCode {
    log();
    told(on_runtime(service))
}

/// To standard error, from here on.
fn log() {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info"));
    let colours = std::io::stderr().is_terminal();
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).with_ansi(colours).init();
}

fn told(result: anyhow::Result<()>) -> ExitCode {
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn on_runtime<T>(work: impl Future<Output = T>) -> T {
    match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => {
            let output = runtime.block_on(work);
            runtime.shutdown_background();
            output
        }
        Err(error) => {
            eprintln!("error: starting the runtime: {error}");
            std::process::exit(1)
        }
    }
}

/// This machine as `agent plan` sees it.
fn machine(args: &plan::PlanArgs) -> plan::Machine {
    let reading = match args.needs_machine() {
        true => Devices::new(std::env::var_os(NVML_LIBRARY).map(Into::into), false, Memory::Limit).read(),
        false => Reading::default(),
    };
    for gpu in reading.gpus.iter().filter(|gpu| !gpu.message.is_empty()) {
        eprintln!("note: {} ({}) is not counted: {}", gpu.name, gpu.uuid, gpu.message);
    }
    let gpu_backend = if cfg!(feature = "simulated-gpu") { Backend::SimulatedGpu } else { Backend::Cuda };
    plan::Machine { devices: offers(&reading, args.defaults.defaults()), gpu_backend }
}
