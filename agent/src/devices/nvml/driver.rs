//! A loaded NVML, and what it has shown so far: a GPU that answered once and does no more is lost, and must be told of.

use std::collections::BTreeMap;

use nvml_wrapper::Nvml;
use nvml_wrapper::bitmasks::event::EventTypes;
use nvml_wrapper::enums::event::XidError;
use nvml_wrapper::error::NvmlError;
use nvml_wrapper::event::EventSet;
use stowage_crds::model_node::DeviceBackend;
use stowage_placement::Bytes;

use super::cuda::Cuda;
use super::gpu;
use crate::devices::Gpu;

/// Critical errors (XIDs) that a program brings upon itself and its GPU survives, as NVIDIA's device plugin for Kubernetes has them: a graphics exception, a
/// memory page fault, a stopped process, preemptive clean-up, a video processor's exception, and a context switch that took too long.
const OF_PROGRAMS: [u64; 6] = [13, 31, 43, 45, 68, 109];
/// How NVML numbers a critical error that it can't tell.
const UNKNOWN_ERROR: u64 = 999;
/// Readings in a row that a GPU may fail, for want of more than a moment, before it counts as lost.
const FAILURES: u32 = 10;
/// Errors that are taken in at one reading.
const ERRORS_AT_ONCE: usize = 64;

/// NVML, and what it has shown since it was loaded.
pub struct Driver {
    /// For good: the events refer to it. It is replaced only when the driver is.
    nvml: &'static Nvml,
    version: String,
    /// Critical errors as they come; `None` where NVML does not tell of them.
    events: Option<EventSet<'static>>,
    /// By number, each GPU's critical error that it has not been reset since.
    errors: BTreeMap<u32, u64>,
    /// By UUID, each GPU that has ever answered.
    seen: BTreeMap<String, Seen>,
}

/// A GPU that has answered.
struct Seen {
    index: u32,
    gpu: Gpu,
    /// Readings since it last answered.
    failures: u32,
}

impl Driver {
    pub fn new(nvml: Nvml) -> Driver {
        let nvml: &'static Nvml = Box::leak(Box::new(nvml));
        let version = nvml.sys_driver_version().unwrap_or_default();
        Driver { nvml, version, events: critical_errors(nvml), errors: BTreeMap::new(), seen: BTreeMap::new() }
    }

    /// All GPUs, lost ones among them, and of those that have never answered what NVML said.
    ///
    /// Errors: NVML can't even count them.
    pub fn read(&mut self) -> Result<(Vec<Gpu>, Vec<String>), NvmlError> {
        self.note_errors();
        let count = self.nvml.device_count()?;
        let divided = (0..count).any(|index| self.nvml.device_by_index(index).is_ok_and(|device| gpu::is_divided(&device)));
        let cuda = Cuda::look(divided);
        let mut gpus = Vec::new();
        let mut failures = BTreeMap::new();
        for index in 0..count {
            match self.nvml.device_by_index(index).and_then(|device| gpu::read(self.nvml, &device, &self.version, &cuda)) {
                Ok(read) => gpus.extend(read.into_iter().map(|gpu| (index, gpu))),
                Err(error) => drop(failures.insert(index, error)),
            }
        }
        for seen in self.seen.values_mut() {
            seen.failures += 1;
        }
        for (index, gpu) in &gpus {
            self.seen.insert(gpu.uuid.clone(), Seen { index: *index, gpu: gpu.clone(), failures: 0 });
        }
        gpus.extend(self.seen.values().filter(|seen| seen.failures > 0).map(|seen| (seen.index, seen.as_it_is(failures.get(&seen.index)))));
        let never = failures.iter().filter(|(index, _)| self.seen.values().all(|seen| seen.index != **index));
        let never = never.map(|(index, error)| format!("GPU {index} can't be read: {error}")).collect();
        let errors = &self.errors;
        let found = gpus.into_iter().map(|(index, gpu)| match errors.get(&index) {
            Some(error) => without(&gpu, critical(*error)),
            None => gpu,
        });
        Ok((found.collect(), never))
    }

    fn note_errors(&mut self) {
        let Some(events) = &self.events else { return };
        for _ in 0..ERRORS_AT_ONCE {
            // Most often that nothing has come.
            let Ok(event) = events.wait(0) else { return };
            let error = match event.event_data {
                Some(XidError::Value(error)) => error,
                Some(XidError::Unknown) => UNKNOWN_ERROR,
                None => continue,
            };
            // A GPU that does not even know its number is lost, and is found to be.
            if let Ok(index) = event.device.index()
                && !OF_PROGRAMS.contains(&error)
            {
                self.errors.insert(index, error);
            }
        }
    }
}

/// Asks to be told of critical errors of every GPU that can tell.
fn critical_errors(nvml: &'static Nvml) -> Option<EventSet<'static>> {
    let mut events = nvml.create_event_set().ok()?;
    for index in 0..nvml.device_count().ok()? {
        let Ok(device) = nvml.device_by_index(index) else { continue };
        if device.supported_event_types().is_ok_and(|types| types.contains(EventTypes::CRITICAL_XID_ERROR)) {
            events = device.register_events(EventTypes::CRITICAL_XID_ERROR, events).ok()?;
        }
    }
    Some(events)
}

/// A GPU that is there no more for anybody.
fn without(gpu: &Gpu, message: String) -> Gpu {
    Gpu { backend: DeviceBackend::None, message, total: Bytes::ZERO, free: Bytes::ZERO, processes: Vec::new(), ..gpu.clone() }
}

impl Seen {
    /// A GPU that has not answered this time: as it was, or lost.
    fn as_it_is(&self, error: Option<&NvmlError>) -> Gpu {
        match error {
            Some(error) if matches!(error, NvmlError::GpuLost) || self.failures >= FAILURES => {
                without(&self.gpu, format!("it is lost: {error}"))
            }
            None if self.failures >= FAILURES => without(&self.gpu, "it is lost: NVML lists it no longer".to_owned()),
            _ => self.gpu.clone(),
        }
    }
}

fn critical(error: u64) -> String {
    format!(
        "its driver reported the critical error XID {error}; it is used again when the agent is started anew, once the GPU has been reset"
    )
}
