//! What is done on the GPU, each in a process of its own: what it held is given back when that ends, and what it holds can be told by its number.

use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, ExitCode, Stdio};
use std::time::Instant;

use anyhow::{Context, anyhow};
use clap::ValueEnum;
use serde::{Deserialize, Serialize};
use stowage_agent::devices::nvml::CUDA_VISIBLE_DEVICES;
use stowage_agent::worker::Confine;
use stowage_agent::worker::confine::{Policy, confine};
use stowage_engine::bench::{fill, measure as time};
use stowage_engine::calibration::Calibrated;
use stowage_engine::divergence;
use stowage_engine::measure::{Ballast, DeviceSpeed, Effort, device_speed};
use stowage_engine::{BackendChoice, EngineError, LoadRequest, LoadedModel, Start, host_plan};
use stowage_placement::{Bytes, DevicePlan, Reason, Request};

/// What a process is to do.
#[derive(Serialize, Deserialize)]
pub enum Order {
    Calibrate {
        uuid: String,
        folder: PathBuf,
        /// As the agent's own option.
        confine: String,
    },
    Measure {
        uuid: String,
        effort: Effort,
    },
    Hold {
        uuid: String,
        bytes: Bytes,
    },
    /// Carries out a plan, and reads a prompt of so many tokens, which is not timed; then times the rest.
    Load {
        model: PathBuf,
        plan: DevicePlan,
        request: Request,
        filled: u32,
        prompt: u32,
        generated: u32,
    },
    /// From the reference, over so many tokens.
    Compare {
        model: PathBuf,
        plan: DevicePlan,
        request: Request,
        tokens: u32,
    },
}

/// What it found.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Found {
    /// By its own count, of all devices but the host.
    pub allocated: Bytes,
    pub speed: Option<DeviceSpeed>,
    /// Seconds for the prompt, and for what was generated.
    pub prompt: f64,
    pub generated: f64,
    /// Nats.
    pub divergence: f64,
}

/// What is kept until the process is told to end.
enum Kept {
    Nothing,
    Models { _models: Calibrated },
    Model { _model: Box<LoadedModel> },
    Ballast { _ballast: Ballast },
}

/// In the process: does it, says what it found, and stays until its standard input is closed.
pub fn carry_out(order: &str) -> anyhow::Result<ExitCode> {
    let order: Order = serde_json::from_str(order).context("reading what to do")?;
    let done = work(order);
    let (said, _kept) = match done {
        Ok((found, kept)) => (Ok(found), Some(kept)),
        Err(error) => (Err(format!("{}: {}", error.reason, error.message)), None),
    };
    let mut output = std::io::stdout().lock();
    writeln!(output, "{}", serde_json::to_string(&said)?)?;
    output.flush()?;
    std::io::copy(&mut std::io::stdin().lock(), &mut std::io::sink())?;
    Ok(ExitCode::SUCCESS)
}

fn work(order: Order) -> Result<(Found, Kept), EngineError> {
    match order {
        Order::Calibrate { uuid, folder, confine: how } => {
            let failed = |why: String| EngineError::new(Reason::LoadFailed, why);
            let _confinement = match Confine::from_str(&how, false).map_err(failed)? {
                Confine::Off => None,
                how => Some(confine(&Policy::of_calibration(&folder), how).map_err(|error| failed(error.to_string()))?),
            };
            let models = Calibrated::run(&folder, &uuid)?;
            let allocated = models.allocated(&uuid);
            Ok((Found { allocated, ..Found::default() }, Kept::Models { _models: models }))
        }
        Order::Measure { uuid, effort } => {
            let speed = Some(device_speed(&uuid, effort)?);
            Ok((Found { speed, ..Found::default() }, Kept::Nothing))
        }
        Order::Hold { uuid, bytes } => {
            let ballast = Ballast::new(&uuid, bytes)?;
            Ok((Found { allocated: bytes, ..Found::default() }, Kept::Ballast { _ballast: ballast }))
        }
        Order::Load { model, plan, request, filled, prompt, generated } => load(&model, plan, request, [filled, prompt, generated]),
        Order::Compare { model, plan, request, tokens } => compare(&model, plan, request, tokens),
    }
}

fn request(model: &Path, plan: DevicePlan, request: Request) -> LoadRequest {
    LoadRequest {
        path: model.into(),
        start: Start::InMemory,
        plan,
        request,
        num_thread: 0,
        template: String::new(),
        backend: BackendChoice::Cpu,
    }
}

fn load(path: &Path, plan: DevicePlan, asked: Request, [filled, prompt, generated]: [u32; 3]) -> Result<(Found, Kept), EngineError> {
    let mut model = LoadedModel::load(&request(path, plan, asked), &mut |_| {})?;
    let allocated = model.measured().iter().filter(|device| device.id != stowage_placement::HOST);
    let allocated = allocated.map(|device| device.total().saturating_sub(device.overhead)).sum();
    fill(&mut model, filled)?;
    let mut seconds = |prompt: u32, generated: u32| -> Result<f64, EngineError> {
        if prompt + generated == 0 {
            return Ok(0.0);
        }
        // Once unmeasured, in which what is compiled, captured or raised in clock is.
        let mut best = f64::INFINITY;
        for round in 0..4 {
            let took = time(&mut model, prompt, generated, filled)?.as_secs_f64();
            if round > 0 {
                best = best.min(took);
            }
        }
        Ok(best)
    };
    let (prompt, generated) = (seconds(prompt, 0)?, seconds(0, generated)?);
    Ok((Found { allocated, prompt, generated, ..Found::default() }, Kept::Model { _model: Box::new(model) }))
}

fn compare(path: &Path, plan: DevicePlan, asked: Request, tokens: u32) -> Result<(Found, Kept), EngineError> {
    let plain = host_plan::on_host(path, &Request { num_gpu: 0, ..asked.clone() }, 0)?;
    let mut reference = LoadedModel::load(&LoadRequest { backend: BackendChoice::Reference, ..plain }, &mut |_| {})?;
    let mut others = [LoadedModel::load(&request(path, plan, asked), &mut |_| {})?];
    let vocabulary = reference.vocabulary() as u64;
    let text: Vec<u32> = (0..u64::from(tokens)).map(|position| (position * position * 31 % vocabulary) as u32).collect();
    let found = divergence::compare(&mut reference, &mut others, &[], &text)?;
    Ok((Found { divergence: found[0].mean, ..Found::default() }, Kept::Nothing))
}

/// A process that has done what it was told, and stays as long as this does.
pub struct Done {
    pub found: Found,
    pub pid: u32,
    pub seconds: f64,
    child: Child,
    input: Option<ChildStdin>,
}

/// Starts a process, which CUDA lists this GPU, and waits for what it finds.
pub fn start(gpu: &str, order: &Order) -> anyhow::Result<Done> {
    let start = Instant::now();
    let program = std::env::current_exe().context("finding this program")?;
    let mut command = Command::new(program);
    command.arg("--child").arg(serde_json::to_string(order)?).stdin(Stdio::piped()).stdout(Stdio::piped());
    command.env(CUDA_VISIBLE_DEVICES, gpu);
    let mut child = command.spawn().context("starting a process")?;
    let (input, output) = (child.stdin.take(), child.stdout.take().context("it has an output")?);
    let mut done = Done { found: Found::default(), pid: child.id(), seconds: 0.0, child, input };
    let mut line = String::new();
    BufReader::new(output).read_line(&mut line)?;
    let said: Result<Found, String> = serde_json::from_str(&line).context("a process ended without a word")?;
    done.found = said.map_err(|error| anyhow!(error))?;
    done.seconds = start.elapsed().as_secs_f64();
    Ok(done)
}

impl Drop for Done {
    /// What it held is free when it has ended.
    fn drop(&mut self) {
        drop(self.input.take());
        let _ = self.child.wait();
    }
}
