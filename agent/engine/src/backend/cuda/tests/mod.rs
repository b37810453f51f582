//! Each kernel against a plain twin, on the emulator.

mod attention;
mod emulator;
mod experts;
mod products;
mod rows;

use std::sync::Arc;

use stowage_placement::Bytes;

use super::driver::raw_emulator::Emulator;
use super::driver::{DevicePointer, Driver};
use super::kernels::Kernels;
use super::memory::DeviceArena;
use super::raw_bytes::{bytes, bytes_mut};
use crate::arena::Purpose;

/// A device with some memory, of which tests take what they need.
struct Bench {
    arena: Arc<DeviceArena>,
    kernels: Kernels,
}

impl Bench {
    fn new() -> Bench {
        let driver: Arc<dyn Driver> = Arc::new(Emulator::new(Bytes::gib(1)));
        let kernels = Kernels::new(Arc::clone(&driver), true).unwrap();
        Bench { arena: DeviceArena::new(driver, Bytes::mib(64)).unwrap(), kernels }
    }

    fn room(&self, bytes: usize) -> DevicePointer {
        self.arena.take(Purpose::Compute, Bytes((bytes as u64 + 1).next_multiple_of(256))).unwrap().start
    }

    fn put(&self, floats: &[f32]) -> DevicePointer {
        let at = self.room(4 * floats.len());
        self.arena.driver.upload(at, bytes(floats)).unwrap();
        at
    }

    fn get(&self, at: DevicePointer, count: usize) -> Vec<f32> {
        let mut floats = vec![0.0; count];
        self.arena.driver.download(at, bytes_mut(&mut floats)).unwrap();
        floats
    }
}
