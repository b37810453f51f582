//! Measures, on a GPU of a kind of which nothing is known, what a process takes there beside what it allocates: once a kind and driver, beside everything else.
//!
//! A process of its own (`crate::calibrate`) runs every kernel on small models, and NVML is asked what it holds. It makes way for whatever is promised on that
//! GPU, and until then what it holds counts as free. Where workers are in Pods the process is still the agent's child: the agent's Pod has the driver's
//! libraries and sees the GPUs, by the runtime class, as theirs do.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::process::Stdio;
use std::time::{Duration, Instant};

use kube::runtime::events::{Event, EventType};
use stowage_crds::model_node::DeviceBackend;
use stowage_placement::{Bytes, Defaults};
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, ChildStdout, Command};
use tokio::sync::watch;

use super::calibration::{Calibrations, kind};
use crate::calibrate::Outcome;
use crate::devices::{Gpu, Reading};
use crate::worker::Confine;
use crate::worker::launch::{see_only, withhold};

/// Longest that it may take: kernels that this build does not have in it are compiled first.
const LIMIT: Duration = Duration::from_secs(300);
/// Agents that may have ended in the midst of it before it is left alone: it may have been the cause.
const UNFINISHED: u32 = 2;
/// What the small models take, at most.
const MODELS: Bytes = Bytes::mib(64);

/// How it is started.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The agent's own.
    pub executable: PathBuf,
    /// For the small models. Made, and removed again.
    pub folder: PathBuf,
    /// Where it is written down, by version and kind of GPU, how often it was begun and not finished.
    pub unfinished: PathBuf,
    pub confine: Confine,
}

/// What came of it.
#[derive(Debug, PartialEq)]
pub enum Ending {
    /// Of this GPU: what its process held and had allocated.
    Measured {
        gpu: Box<Gpu>,
        pid: u32,
        held: Bytes,
        allocated: Bytes,
    },
    Failed {
        gpu: String,
        why: String,
    },
}

#[derive(Default)]
pub struct Calibrator {
    /// `None`: it is not done.
    settings: Option<Settings>,
    under_way: Option<UnderWay>,
    /// Kinds that are left alone from now on.
    given_up: BTreeSet<String>,
}

struct UnderWay {
    uuid: String,
    kind: String,
    pid: u32,
    since: Instant,
    said: watch::Receiver<Option<Outcome>>,
    /// Ends with this.
    child: Child,
    /// By the latest reading.
    measured: Option<(Box<Gpu>, Bytes, Bytes)>,
}

impl Calibrator {
    pub fn new(settings: Option<Settings>) -> Calibrator {
        Calibrator { settings, ..Calibrator::default() }
    }

    /// The GPU that it is on.
    pub fn on(&self) -> Option<&str> {
        self.under_way.as_ref().map(|under_way| under_way.uuid.as_str())
    }

    /// Begins on a GPU of which nothing is known, if there is one that nothing is promised on.
    pub fn begin(&mut self, reading: &Reading, calibrations: &Calibrations, promised_on: &BTreeSet<String>) {
        if self.settings.is_none() || self.under_way.is_some() {
            return;
        }
        let wanted = |gpu: &&Gpu| !self.given_up.contains(&kind(gpu)) && is_wanted(gpu, calibrations) && !promised_on.contains(&gpu.uuid);
        let Some(gpu) = reading.gpus.iter().find(wanted).cloned() else { return };
        if let Err(error) = self.start(&gpu) {
            tracing::warn!(gpu = gpu.uuid, error, "the GPU is not calibrated; loads will teach what a driver's context takes");
            self.given_up.insert(kind(&gpu));
        }
    }

    fn start(&mut self, gpu: &Gpu) -> Result<(), String> {
        let Some(settings) = self.settings.clone() else { return Ok(()) };
        settings.begun(&kind(gpu))?;
        let under_way = settings.start(gpu).map_err(|error| format!("starting {}: {error}", settings.executable.display()))?;
        tracing::info!(gpu = gpu.uuid, kind = kind(gpu), pid = under_way.pid, "calibrating a kind of GPU of which nothing is known");
        self.under_way = Some(under_way);
        Ok(())
    }

    /// Ends what is under way, and returns when its process is no more: its bytes are free then.
    pub async fn make_way(&mut self) {
        let Some(mut under_way) = self.under_way.take() else { return };
        // A process that has ended is as good.
        let _ = under_way.child.kill().await;
        if let Some(settings) = &self.settings {
            settings.finished(&under_way.kind);
        }
    }

    /// Waits until its process has said something; for ever where there is none.
    pub async fn changed(&mut self) {
        let Some(UnderWay { said, .. }) = &mut self.under_way else { return std::future::pending().await };
        if said.changed().await.is_err() {
            std::future::pending().await
        }
    }

    /// What its process had said before a reading is taken.
    pub fn said(&self) -> Option<Outcome> {
        self.under_way.as_ref().and_then(|under_way| under_way.said.borrow().clone())
    }

    /// Takes its process out of a reading, as if it were not there: it makes way. `said` is of before.
    pub fn take_out(&mut self, reading: &mut Reading, said: Option<Outcome>) {
        let Some(under_way) = &mut self.under_way else { return };
        let Some(gpu) = reading.gpus.iter_mut().find(|gpu| gpu.uuid == under_way.uuid) else { return };
        let Some(at) = gpu.processes.iter().position(|process| process.pid == under_way.pid) else { return };
        let Some(held) = gpu.processes.remove(at).bytes else { return };
        gpu.free = gpu.free.saturating_add(held).min(gpu.total);
        if let Some(Outcome::Allocated(allocated)) = said {
            under_way.measured = Some((Box::new(gpu.clone()), held, allocated));
        }
    }

    /// What came of what was under way, once that is known; it has ended then.
    pub async fn ended(&mut self) -> Option<Ending> {
        let under_way = self.under_way.as_mut()?;
        let gpu = under_way.uuid.clone();
        let failed = |why| Some(Ending::Failed { gpu, why });
        let ending = match (under_way.measured.take(), &*under_way.said.borrow()) {
            (Some((gpu, held, allocated)), _) => Some(Ending::Measured { gpu, pid: under_way.pid, held, allocated }),
            (None, Some(Outcome::Failed(why))) => failed(why.clone()),
            (None, _) if under_way.since.elapsed() > LIMIT => failed(format!(
                "after {} s NVML had not shown what its process, {}, holds with every kernel run",
                LIMIT.as_secs(),
                under_way.pid
            )),
            _ => None,
        };
        if let Some(Ending::Failed { .. }) = &ending {
            self.given_up.insert(under_way.kind.clone());
        }
        if ending.is_some() {
            self.make_way().await;
        }
        ending
    }
}

/// Whether nothing is known of its kind, and that can be changed: it is computed on, its processes can be told apart, and there is room.
fn is_wanted(gpu: &Gpu, calibrations: &Calibrations) -> bool {
    let room = Defaults::default().overhead_bytes.saturating_add(MODELS);
    gpu.backend != DeviceBackend::None && gpu.own_process_ids && gpu.free >= room && calibrations.of(gpu).is_none()
}

impl Ending {
    /// As an Event of the node.
    pub fn event(&self) -> Event {
        let (type_, reason, note) = match self {
            Ending::Measured { gpu, held, allocated, .. } => {
                let overhead = held.saturating_sub(*allocated);
                let note = format!(
                    "{} ({}): a process that has run every kernel holds {held}, of which it allocated {allocated}; {overhead} is what its driver takes",
                    gpu.uuid,
                    kind(gpu)
                );
                (EventType::Normal, "Calibrated", note)
            }
            Ending::Failed { gpu, why } => {
                let note = format!("{gpu}: {why}; what its driver takes is assumed until a load has shown it");
                (EventType::Warning, "CalibrationFailed", note)
            }
        };
        Event { type_, reason: reason.to_owned(), note: Some(super::events::cut(note)), action: "Calibrate".to_owned(), secondary: None }
    }
}

impl Settings {
    fn start(&self, gpu: &Gpu) -> std::io::Result<UnderWay> {
        std::fs::create_dir_all(&self.folder)?;
        let mut command = Command::new(&self.executable);
        command
            .arg("calibrate")
            .arg("--device")
            .arg(&gpu.uuid)
            .arg("--folder")
            .arg(&self.folder)
            .arg("--confine")
            .arg(self.confine.as_str());
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).kill_on_drop(true);
        withhold(&mut command);
        see_only(&mut command, &[&gpu.uuid]);
        let mut child = command.spawn()?;
        let pid = child.id().ok_or_else(|| std::io::Error::other("it has ended already"))?;
        let output = child.stdout.take().ok_or_else(|| std::io::Error::other("it has no output"))?;
        let (sender, said) = watch::channel(None);
        tokio::spawn(async move { drop(sender.send(Some(heard(output).await))) });
        Ok(UnderWay { uuid: gpu.uuid.clone(), kind: kind(gpu), pid, since: Instant::now(), said, child, measured: None })
    }

    /// Writes down that it was begun; an error where it was begun too often.
    fn begun(&self, kind: &str) -> Result<(), String> {
        let mut counts = self.counts();
        let count = counts.entry(key(kind)).or_default();
        if *count >= UNFINISHED {
            return Err(format!(
                "{count} agents ended while they did that; it is tried again when {} is removed",
                self.unfinished.display()
            ));
        }
        *count += 1;
        self.write(&counts)
    }

    fn finished(&self, kind: &str) {
        let mut counts = self.counts();
        counts.remove(&key(kind));
        let written =
            if counts.is_empty() { std::fs::remove_file(&self.unfinished).map_err(|error| error.to_string()) } else { self.write(&counts) };
        let removed = std::fs::remove_dir_all(&self.folder).map_err(|error| error.to_string());
        if let Err(error) = written.and(removed) {
            tracing::warn!(error, "clearing up after calibrating a GPU");
        }
    }

    /// Nothing where it can't be read.
    fn counts(&self) -> BTreeMap<String, u32> {
        std::fs::read(&self.unfinished).ok().and_then(|text| serde_json::from_slice(&text).ok()).unwrap_or_default()
    }

    fn write(&self, counts: &BTreeMap<String, u32>) -> Result<(), String> {
        let text = serde_json::to_vec(counts).map_err(|error| error.to_string())?;
        std::fs::write(&self.unfinished, text).map_err(|error| format!("writing {}: {error}", self.unfinished.display()))
    }
}

/// Another version may get through it.
fn key(kind: &str) -> String {
    format!("{} {kind}", env!("CARGO_PKG_VERSION"))
}

/// The first line that its process writes, or that it ended without one.
async fn heard(output: ChildStdout) -> Outcome {
    let line = BufReader::new(output).lines().next_line().await.ok().flatten();
    let said = line.as_deref().and_then(|line| serde_json::from_str(line).ok());
    said.unwrap_or_else(|| {
        Outcome::Failed("the process that runs every kernel ended without a word; the agent's log may say why".to_owned())
    })
}

#[cfg(test)]
#[path = "calibrator/tests.rs"]
mod tests;
