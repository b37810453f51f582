//! One allocation a device, given out from front to back: weights, cache and scratch are taken from it when a model is loaded, as `Arena` does of host memory.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use stowage_placement::{Bytes, Reason};

use super::driver::{DevicePointer, Driver};
use crate::api::EngineError;
use crate::arena::Purpose;

/// Memory of a fixed size on a device. What it holds at first is anything.
pub struct DeviceArena {
    pub driver: Arc<dyn Driver>,
    base: DevicePointer,
    size: Bytes,
    taken: AtomicU64,
    by_purpose: [AtomicU64; Purpose::Compute as usize + 1],
}

/// Part of an arena, aligned to 256 bytes, that nobody else has.
#[derive(Clone, Copy, Debug)]
pub struct Region {
    pub start: DevicePointer,
}

impl DeviceArena {
    /// Errors: DeviceChanged where the device has less free.
    pub fn new(driver: Arc<dyn Driver>, size: Bytes) -> Result<Arc<DeviceArena>, EngineError> {
        let base = driver.allocate(size)?;
        Ok(Arc::new(DeviceArena { driver, base, size, taken: AtomicU64::new(0), by_purpose: Default::default() }))
    }

    /// The next `bytes` of the arena, a multiple of 256.
    pub fn take(&self, purpose: Purpose, bytes: Bytes) -> Result<Region, EngineError> {
        let start = self.taken.fetch_add(bytes.0, Ordering::Relaxed);
        let end = start.saturating_add(bytes.0);
        if !bytes.0.is_multiple_of(256) || end > self.size.0 {
            let message =
                format!("{} bytes were wanted from a device's arena of {} bytes of which {start} are taken", bytes.0, self.size.0);
            return Err(EngineError::new(Reason::LoadFailed, message));
        }
        self.by_purpose[purpose as usize].fetch_add(bytes.0, Ordering::Relaxed);
        Ok(Region { start: self.base.after(start as usize) })
    }

    pub fn taken_for(&self, purpose: Purpose) -> Bytes {
        Bytes(self.by_purpose[purpose as usize].load(Ordering::Relaxed))
    }

    pub fn size(&self) -> Bytes {
        self.size
    }
}

impl Drop for DeviceArena {
    fn drop(&mut self) {
        self.driver.free(self.base, self.size);
    }
}
