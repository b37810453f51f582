//! What the emulator finds wrong.

use std::sync::Arc;

use stowage_placement::{Bytes, Reason};

use super::Bench;
use crate::backend::cuda::arguments::{Arguments, CapArguments};
use crate::backend::cuda::driver::raw_emulator::Emulator;
use crate::backend::cuda::driver::{DevicePointer, Driver, Module, Shape};
use crate::backend::cuda::memory::DeviceArena;

#[derive(Clone, Copy)]
#[repr(C)]
struct Short(u32);
impl Arguments for Short {}

#[test]
fn arguments_of_another_size_and_blocks_that_are_too_large_are_refused() {
    let bench = Bench::new();
    let driver = &bench.arena.driver;
    let launch = |name: &str, threads, shared_bytes, arguments: &dyn Arguments| {
        let kernel = driver.kernel(Module::Rows, name).unwrap();
        driver.launch(kernel, Shape { grid: [1, 1, 1], threads, shared_bytes }, arguments).unwrap_err().message
    };
    let cap = CapArguments { values: DevicePointer::NULL, count: 0, scale: 1.0, softcap: 0.0 };
    assert!(launch("cap", 128, 0, &Short(1)).contains("24 bytes, not 4"));
    assert!(launch("cap", 256, 0, &cap).contains("at most 128 threads"));
    assert!(launch("cap", 128, 1 << 20, &cap).contains("shared memory"));
    assert!(launch("no_kernel", 128, 0, &cap).contains("none of this name"));
}

#[test]
fn an_arena_beyond_what_is_free_is_refused_with_the_numbers_and_what_is_dropped_is_free_again() {
    let driver: Arc<dyn Driver> = Arc::new(Emulator::new(Bytes::mib(3)));
    let arena = DeviceArena::new(Arc::clone(&driver), Bytes::mib(2)).unwrap();
    let error = DeviceArena::new(Arc::clone(&driver), Bytes::mib(2)).err().unwrap();
    assert_eq!(error.reason, Reason::DeviceChanged);
    assert!(error.message.contains("1.00 MiB of 3.00 MiB"), "{error}");
    drop(arena);
    assert!(DeviceArena::new(driver, Bytes::mib(3)).is_ok());
}

#[derive(Clone, Copy)]
#[repr(C)]
struct Wrong(DevicePointer);
impl Arguments for Wrong {}

#[test]
fn threads_that_wait_for_others_that_never_come_and_what_is_read_before_it_is_written_are_found() {
    let bench = Bench::new();
    let driver = &bench.arena.driver;
    let to = bench.put(&[0.0; 128]);
    let launch = |name: &str, blocks| {
        let kernel = driver.kernel(Module::Rows, name).unwrap();
        driver.launch(kernel, Shape { grid: [blocks, 1, 1], threads: 64, shared_bytes: 256 }, &Wrong(to))
    };
    assert!(launch("wrong_barrier", 1).unwrap_err().message.contains("some warps of a block wait for others that have ended"));
    assert!(launch("wrong_exchange", 1).unwrap_err().message.contains("some lanes of a warp wait"));
    launch("wrong_order", 2).unwrap();
    let found = bench.get(to, 128);
    assert!(found[..64].iter().any(|x| x.is_nan()) && found[64..].iter().any(|x| x.is_nan()), "{found:?}");
}
