//! A GPU, by CUDA's driver. Its library is loaded at run time: `raw_probe` says whether it is there.

use std::collections::HashMap;
use std::ffi::{CString, c_void};
use std::ptr;
use std::sync::{Mutex, MutexGuard, PoisonError};

use cudarc::driver::{result, sys};
use stowage_placement::{Bytes, Reason};

use super::{Captured, DevicePointer, Driver, Kernel, Module, Shape};
use crate::api::EngineError;
use crate::backend::cuda::arguments::Arguments;
use crate::backend::cuda::raw_probe::{CudaDevice, error_text, load_module, make_current};
use crate::backend::cuda::{embedded, raw_nvrtc};

/// Handles of the driver, which any thread may use as long as the context is current to it.
#[derive(Default)]
struct State {
    modules: HashMap<Module, sys::CUmodule>,
    kernels: Vec<sys::CUfunction>,
    captured: Vec<sys::CUgraphExec>,
}

// SAFETY: the driver's handles belong to a context, not to a thread.
unsafe impl Send for State {}

/// One device, its primary context, and a stream of its own.
pub struct CudaDriver {
    device: CudaDevice,
    handle: sys::CUdevice,
    context: sys::CUcontext,
    stream: sys::CUstream,
    state: Mutex<State>,
}

// SAFETY: as above; what changes is behind a lock.
unsafe impl Send for CudaDriver {}
// SAFETY: as above.
unsafe impl Sync for CudaDriver {}

impl CudaDriver {
    /// Opens a device that was probed.
    pub fn open(device: CudaDevice) -> Result<CudaDriver, EngineError> {
        let failed = |error| EngineError::new(Reason::LoadFailed, format!("opening GPU {} failed: {}", device.uuid, error_text(error)));
        let handle = result::device::get(device.ordinal).map_err(failed)?;
        // SAFETY: the device was counted by the driver.
        let context = unsafe { result::primary_ctx::retain(handle) }.map_err(failed)?;
        let stream = make_current(context).and_then(|()| result::stream::create(result::stream::StreamKind::NonBlocking));
        match stream {
            Ok(stream) => Ok(CudaDriver { device, handle, context, stream, state: Mutex::default() }),
            Err(error) => {
                // SAFETY: it was just retained, and nothing refers to it.
                let _ = unsafe { result::primary_ctx::release(handle) };
                Err(failed(error))
            }
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Calls the driver with the context current to this thread.
    fn call<T>(&self, what: &str, call: impl FnOnce() -> Result<T, result::DriverError>) -> Result<T, EngineError> {
        make_current(self.context).and_then(|()| call()).map_err(|error| {
            let free = result::mem_get_info()
                .map_or(String::new(), |(free, total)| format!("; {} of its {} are free", Bytes(free as u64), Bytes(total as u64)));
            EngineError::new(Reason::InferenceFailed, format!("{what} on GPU {} failed: {}{free}", self.device.uuid, error_text(error)))
        })
    }

    /// Code of a module: what the build has, else compiled now.
    fn code(&self, module: Module) -> Result<Vec<u8>, EngineError> {
        let (major, minor) = self.device.compute_capability;
        if let Some(code) = embedded::find(module, (major, minor)) {
            return Ok(code.to_vec());
        }
        let compiled = raw_nvrtc::compile(module, &format!("sm_{major}{minor}"));
        compiled.map_err(|why| {
            EngineError::new(Reason::LoadFailed, format!("the kernels for GPU {} are not to be had: {why}", self.device.uuid))
        })
    }

    fn module(&self, module: Module) -> Result<sys::CUmodule, EngineError> {
        if let Some(loaded) = self.state().modules.get(&module) {
            return Ok(*loaded);
        }
        let code = self.code(module)?;
        let loaded = self.call("loading kernels", || load_module(&code))?;
        self.state().modules.insert(module, loaded);
        Ok(loaded)
    }
}

impl Driver for CudaDriver {
    fn allocate(&self, bytes: Bytes) -> Result<DevicePointer, EngineError> {
        // Of no bytes the driver allocates nothing, and says that this is wrong.
        let size = bytes.0.max(1) as usize;
        // SAFETY: memory of any content is what was asked for.
        let allocated = self.call(&format!("allocating {bytes}"), || unsafe { result::malloc_sync(size) });
        allocated.map(DevicePointer).map_err(|error| EngineError { reason: Reason::DeviceChanged, ..error })
    }

    fn free(&self, at: DevicePointer, _: Bytes) {
        // SAFETY: it was allocated here; who frees it uses it no more, and what was asked of the device before is waited for.
        let freed = self.call("giving back memory", || unsafe { result::stream::synchronize(self.stream).and(result::free_sync(at.0)) });
        if let Err(error) = freed {
            tracing::warn!(%error, "memory of a GPU was not given back; it is when this process ends");
        }
    }

    fn upload(&self, to: DevicePointer, from: &[u8]) -> Result<(), EngineError> {
        // SAFETY: the caller gives a place in what it allocated that has so many bytes. From memory that is not locked the driver has read all when it returns.
        self.call("copying to the device", || unsafe { result::memcpy_htod_async(to.0, from, self.stream) })
    }

    fn download(&self, from: DevicePointer, to: &mut [u8]) -> Result<(), EngineError> {
        // SAFETY: as above; it is waited for before the bytes are given back.
        self.call("copying from the device", || unsafe {
            result::memcpy_dtoh_async(to, from.0, self.stream).and_then(|()| result::stream::synchronize(self.stream))
        })
    }

    fn copy(&self, from: DevicePointer, to: DevicePointer, bytes: usize) -> Result<(), EngineError> {
        // SAFETY: as above, twice.
        self.call("copying within the device", || unsafe { result::memcpy_dtod_async(to.0, from.0, bytes, self.stream) })
    }

    fn kernel(&self, module: Module, name: &str) -> Result<Kernel, EngineError> {
        let loaded = self.module(module)?;
        let name = CString::new(name).map_err(|error| EngineError::new(Reason::LoadFailed, error.to_string()))?;
        // SAFETY: modules are loaded as long as the driver is open.
        let function = self.call("looking up a kernel", || unsafe { result::module::get_function(loaded, name) })?;
        let mut state = self.state();
        state.kernels.push(function);
        Ok(Kernel(state.kernels.len() - 1))
    }

    fn launch(&self, kernel: Kernel, shape: Shape, arguments: &dyn Arguments) -> Result<(), EngineError> {
        let function = self.state().kernels[kernel.0];
        let Shape { grid: [x, y, z], threads, shared_bytes } = shape;
        let mut parameters: [*mut c_void; 1] = [arguments.raw().0.cast_mut()];
        // SAFETY: the kernel takes one struct, which the driver copies before it returns; that the pointers in it are to the arena is what its caller sees to.
        self.call("launching a kernel", || unsafe {
            result::launch_kernel(function, (x, y, z), (threads, 1, 1), shared_bytes, self.stream, &mut parameters)
        })
    }

    fn begin_capture(&self) -> Result<(), EngineError> {
        let mode = sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
        // SAFETY: the stream is this driver's.
        self.call("capturing a step", || unsafe { result::stream::begin_capture(self.stream, mode) })
    }

    fn end_capture(&self) -> Result<Captured, EngineError> {
        // SAFETY: the stream is being captured; the graph is used once, to make what can be launched of it.
        let captured = self.call("capturing a step", || unsafe {
            let graph = result::stream::end_capture(self.stream)?;
            let mut captured = ptr::null_mut();
            let made = sys::cuGraphInstantiateWithFlags(&raw mut captured, graph, 0).result();
            result::graph::destroy(graph)?;
            made.map(|()| captured)
        })?;
        let mut state = self.state();
        state.captured.push(captured);
        Ok(Captured(state.captured.len() - 1))
    }

    fn replay(&self, captured: Captured) -> Result<(), EngineError> {
        let captured = self.state().captured[captured.0];
        // SAFETY: it was captured here, and is there as long as the driver is open.
        self.call("launching a step", || unsafe { result::graph::launch(captured, self.stream) })
    }
}

impl Drop for CudaDriver {
    fn drop(&mut self) {
        let state = self.state.get_mut().unwrap_or_else(PoisonError::into_inner);
        let _ = make_current(self.context);
        // SAFETY: all of it was made here, and nobody can use it any more. What fails is given back when the process ends.
        unsafe {
            let _ = result::stream::synchronize(self.stream);
            for captured in state.captured.drain(..) {
                let _ = result::graph::exec_destroy(captured);
            }
            for (_, module) in state.modules.drain() {
                let _ = result::module::unload(module);
            }
            let _ = result::stream::destroy(self.stream);
            let _ = result::primary_ctx::release(self.handle);
        }
    }
}
