//! What a GPU can do whatever runs on it, to lay beside what a model does there; and memory of it that is held, as by somebody else.

use std::sync::Arc;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use stowage_placement::{Bytes, Reason};

use super::arguments::MeasureArguments;
use super::devices;
use super::driver::{Driver, Module, Shape};
use super::kernels::THREADS;
use super::memory::DeviceArena;
use crate::api::EngineError;

/// Warps of a block, and products of each that don't wait for each other (`measure.cu`).
const WARPS: u64 = 4;
const CHAINS: u64 = 8;
/// Of a product of tensor cores, 16 x 16 by 16 x 8: a multiplication and an addition each.
const OPERATIONS: u64 = 2 * 16 * 16 * 8;
/// Times that each is measured; the fastest counts.
const REPEATS: u32 = 5;

/// How much to measure with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Effort {
    /// What is copied.
    pub bytes: Bytes,
    /// Blocks that multiply: as many as there is room for on a device, or more.
    pub blocks: u32,
    /// Products of each chain.
    pub rounds: u32,
}

/// What a GPU does at most.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct DeviceSpeed {
    /// Bytes a second of a copy within its memory, read and written counted.
    pub copied: f64,
    /// Operations a second of `mma.sync` on half precision in registers with sums in single. Devices that have faster instructions than that do more by those.
    pub multiplied: f64,
}

/// Measures the GPU of this UUID.
pub fn device_speed(uuid: &str, effort: Effort) -> Result<DeviceSpeed, EngineError> {
    let driver = open(uuid)?;
    let room = Bytes(u64::from(effort.blocks) * u64::from(THREADS) * 4);
    let arena = DeviceArena::new(Arc::clone(&driver), Bytes(2 * effort.bytes.0 + room.0))?;
    let take = |bytes| arena.take(crate::arena::Purpose::Compute, bytes).map(|region| region.start);
    let (from, to, sums) = (take(effort.bytes)?, take(effort.bytes)?, take(room)?);
    driver.upload(from, &vec![0; effort.bytes.0 as usize])?;
    let wait = || driver.download(sums, &mut [0; 4]);
    let kernel = driver.kernel(Module::Measure, "multiply_registers")?;
    let arguments = MeasureArguments { to: sums, rounds: effort.rounds, unused: 0 };
    let multiply = || driver.launch(kernel, Shape { grid: [effort.blocks, 1, 1], threads: THREADS, shared_bytes: 0 }, &arguments);
    // Before it is read, it is written.
    multiply()?;
    wait()?;
    let multiplied = fastest(|| multiply().and_then(|()| wait()))?;
    let copied = fastest(|| driver.copy(from, to, effort.bytes.0 as usize).and_then(|()| wait()))?;
    let operations = u64::from(effort.blocks) * WARPS * CHAINS * u64::from(effort.rounds) * OPERATIONS;
    Ok(DeviceSpeed { copied: 2.0 * effort.bytes.0 as f64 / copied.as_secs_f64(), multiplied: operations as f64 / multiplied.as_secs_f64() })
}

fn fastest(mut run: impl FnMut() -> Result<(), EngineError>) -> Result<Duration, EngineError> {
    let mut best = Duration::MAX;
    for _ in 0..REPEATS {
        let start = Instant::now();
        run()?;
        best = best.min(start.elapsed());
    }
    Ok(best)
}

/// Memory of a GPU that nothing is kept in; given back when it is dropped.
pub struct Ballast {
    _arena: Arc<DeviceArena>,
}

impl Ballast {
    /// Errors: DeviceChanged where the device has less free.
    pub fn new(uuid: &str, bytes: Bytes) -> Result<Ballast, EngineError> {
        Ok(Ballast { _arena: DeviceArena::new(open(uuid)?, bytes)? })
    }
}

fn open(uuid: &str) -> Result<Arc<dyn Driver>, EngineError> {
    let missing = || EngineError::new(Reason::EngineCannotRun, format!("there is no GPU {uuid} that is computed on"));
    devices::open(uuid).ok_or_else(missing)?
}

#[cfg(all(test, feature = "emulated-cuda"))]
mod tests {
    use super::*;

    #[test]
    fn copies_and_products_of_a_device_are_timed() {
        let speed = device_speed("emulated-cuda-0", Effort { bytes: Bytes::mib(1), blocks: 2, rounds: 1 }).unwrap();
        assert!(speed.copied > 0.0 && speed.multiplied > 0.0, "{speed:?}");
        assert!(device_speed("GPU-none", Effort { bytes: Bytes::mib(1), blocks: 2, rounds: 1 }).is_err());
        assert!(Ballast::new("emulated-cuda-0@1048576", Bytes::mib(2)).is_err());
    }
}
