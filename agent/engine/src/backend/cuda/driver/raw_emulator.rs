//! An emulated GPU: its memory is the host's, and its kernels are those of a GPU, compiled by a C++ compiler and run on the CPU (`emulator/`). It shows that host
//! code and kernels compute what they should; nothing of how fast, and nothing that only silicon does. Never in a release.

use std::collections::HashMap;
use std::ffi::{CStr, CString, c_char, c_uint, c_void};
use std::mem::MaybeUninit;
use std::sync::{Mutex, MutexGuard, PoisonError};

use stowage_placement::{Bytes, Reason};

use super::{Captured, DevicePointer, Driver, Kernel, Module, Shape};
use crate::api::EngineError;
use crate::backend::cuda::arguments::Arguments;

unsafe extern "C" {
    fn stowage_emulator_launch(
        name: *const c_char,
        grid: *const c_uint,
        threads: c_uint,
        shared_bytes: c_uint,
        arguments: *const c_void,
        argument_bytes: usize,
    ) -> *const c_char;
}

/// Bytes that no address before and after an allocation can be read or written in.
const GUARD: usize = 1 << 16;
/// What memory holds before it is written: as numbers these are none.
const UNWRITTEN: u8 = 0xff;

/// A launch, kept for later.
struct Kept {
    kernel: Kernel,
    shape: Shape,
    arguments: Vec<MaybeUninit<u64>>,
    bytes: usize,
}

#[derive(Default)]
struct State {
    names: Vec<CString>,
    by_name: HashMap<String, Kernel>,
    /// What each allocation was mapped as.
    mapped: HashMap<u64, usize>,
    held: u64,
    capturing: Option<Vec<Kept>>,
    captured: Vec<Vec<Kept>>,
}

/// One emulated device with so much memory.
pub struct Emulator {
    total: Bytes,
    state: Mutex<State>,
}

impl Emulator {
    pub fn new(total: Bytes) -> Emulator {
        Emulator { total, state: Mutex::default() }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn failed(message: String) -> EngineError {
    EngineError::new(Reason::InferenceFailed, format!("on the emulated GPU {message}"))
}

fn run(name: &CStr, shape: Shape, arguments: *const c_void, bytes: usize) -> Result<(), EngineError> {
    // SAFETY: the name ends with zero, the grid has three numbers, and the arguments are so many bytes, which the emulator compares with those of the kernel.
    let error = unsafe { stowage_emulator_launch(name.as_ptr(), shape.grid.as_ptr(), shape.threads, shape.shared_bytes, arguments, bytes) };
    if error.is_null() {
        return Ok(());
    }
    // SAFETY: the emulator gives a text that ends with zero, valid until this thread's next launch.
    Err(failed(unsafe { CStr::from_ptr(error) }.to_string_lossy().into_owned()))
}

impl Driver for Emulator {
    fn allocate(&self, bytes: Bytes) -> Result<DevicePointer, EngineError> {
        let mut state = self.state();
        let free = self.total.0.saturating_sub(state.held);
        if bytes.0 > free {
            let message = format!("allocating {bytes} on the emulated GPU failed: {} of {} are free", Bytes(free), self.total);
            return Err(EngineError::new(Reason::DeviceChanged, message));
        }
        let page = GUARD;
        let length = (bytes.0 as usize).next_multiple_of(page);
        // SAFETY: a fresh private mapping at an address of the system's choice; nothing else refers to it.
        let mapped = unsafe {
            let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
            libc::mmap(std::ptr::null_mut(), length + 2 * GUARD, libc::PROT_NONE, flags, -1, 0)
        };
        if mapped == libc::MAP_FAILED {
            return Err(failed(format!("allocating {bytes} failed: {}", std::io::Error::last_os_error())));
        }
        // What is allocated ends where the guard behind it begins, as far as its alignment lets it.
        let start = mapped as usize + GUARD + (length - bytes.0 as usize) / 256 * 256;
        // SAFETY: the pages lie in the mapping, and nobody has them yet.
        unsafe {
            libc::mprotect(mapped.byte_add(GUARD), length, libc::PROT_READ | libc::PROT_WRITE);
            std::ptr::write_bytes(start as *mut u8, UNWRITTEN, bytes.0 as usize);
        }
        state.held += bytes.0;
        state.mapped.insert(start as u64, mapped as usize);
        Ok(DevicePointer(start as u64))
    }

    fn free(&self, at: DevicePointer, bytes: Bytes) {
        let mut state = self.state();
        if let Some(mapped) = state.mapped.remove(&at.0) {
            state.held -= bytes.0;
            // SAFETY: the whole mapping, as it was made for so many bytes.
            unsafe { libc::munmap(mapped as *mut c_void, (bytes.0 as usize).next_multiple_of(GUARD) + 2 * GUARD) };
        }
    }

    fn upload(&self, to: DevicePointer, from: &[u8]) -> Result<(), EngineError> {
        // SAFETY: the caller gives a place in what it allocated that has so many bytes.
        unsafe { std::ptr::copy_nonoverlapping(from.as_ptr(), to.0 as *mut u8, from.len()) };
        Ok(())
    }

    fn download(&self, from: DevicePointer, to: &mut [u8]) -> Result<(), EngineError> {
        // SAFETY: as above.
        unsafe { std::ptr::copy_nonoverlapping(from.0 as *const u8, to.as_mut_ptr(), to.len()) };
        Ok(())
    }

    fn copy(&self, from: DevicePointer, to: DevicePointer, bytes: usize) -> Result<(), EngineError> {
        // SAFETY: as above, twice.
        unsafe { std::ptr::copy(from.0 as *const u8, to.0 as *mut u8, bytes) };
        Ok(())
    }

    fn kernel(&self, _: Module, name: &str) -> Result<Kernel, EngineError> {
        let mut state = self.state();
        if let Some(kernel) = state.by_name.get(name) {
            return Ok(*kernel);
        }
        let kernel = Kernel(state.names.len());
        state.names.push(CString::new(name).map_err(|error| failed(error.to_string()))?);
        state.by_name.insert(name.into(), kernel);
        Ok(kernel)
    }

    fn launch(&self, kernel: Kernel, shape: Shape, arguments: &dyn Arguments) -> Result<(), EngineError> {
        let mut state = self.state();
        let (at, bytes) = arguments.raw();
        if let Some(kept) = &mut state.capturing {
            let mut copy = vec![MaybeUninit::uninit(); bytes.div_ceil(size_of::<u64>())];
            // SAFETY: the arguments are so many bytes, and the copy has room for them.
            unsafe { std::ptr::copy_nonoverlapping(at.cast::<u8>(), copy.as_mut_ptr().cast::<u8>(), bytes) };
            kept.push(Kept { kernel, shape, arguments: copy, bytes });
            return Ok(());
        }
        let name = state.names[kernel.0].clone();
        drop(state);
        run(&name, shape, at, bytes)
    }

    fn begin_capture(&self) -> Result<(), EngineError> {
        self.state().capturing = Some(Vec::new());
        Ok(())
    }

    fn end_capture(&self) -> Result<Captured, EngineError> {
        let mut state = self.state();
        let kept = state.capturing.take().ok_or_else(|| failed("nothing was being captured".into()))?;
        state.captured.push(kept);
        Ok(Captured(state.captured.len() - 1))
    }

    fn replay(&self, captured: Captured) -> Result<(), EngineError> {
        // Captured steps are only ever added.
        let state = self.state();
        for Kept { kernel, shape, arguments, bytes } in &state.captured[captured.0] {
            run(&state.names[kernel.0], *shape, arguments.as_ptr().cast(), *bytes)?;
        }
        Ok(())
    }
}
