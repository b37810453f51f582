//! NVML's C functions, as many as Stowage asks for. Those that are missing are what an old driver lacks too: `nvml-wrapper` reports them by name.

use std::ffi::{CStr, c_char, c_int, c_uint};
use std::ptr;

use nvml_wrapper_sys::bindings::{
    nvmlDevice_t, nvmlMemory_t, nvmlMemory_v2_t, nvmlProcessInfo_t, nvmlReturn_enum_NVML_ERROR_GPU_IS_LOST as GPU_IS_LOST,
    nvmlReturn_enum_NVML_ERROR_INSUFFICIENT_SIZE as INSUFFICIENT_SIZE, nvmlReturn_enum_NVML_ERROR_INVALID_ARGUMENT as INVALID_ARGUMENT,
    nvmlReturn_enum_NVML_ERROR_LIBRARY_NOT_FOUND as LIBRARY_NOT_FOUND, nvmlReturn_enum_NVML_ERROR_NOT_FOUND as NOT_FOUND,
    nvmlReturn_enum_NVML_ERROR_NOT_SUPPORTED as NOT_SUPPORTED, nvmlReturn_enum_NVML_ERROR_TIMEOUT as TIMEOUT,
    nvmlReturn_enum_NVML_SUCCESS as SUCCESS, nvmlReturn_t,
};

use crate::devices::{Device, Machine};

/// What a process id of no MIG instance carries (`NVML_VALUE_NOT_AVAILABLE` cut to 32 bits).
const NO_INSTANCE: c_uint = u32::MAX;
/// MIG instances that a device can be divided into.
const MAX_INSTANCES: c_uint = 7;

/// `Ok` becomes success, `Err` the code that it holds.
pub(crate) fn code(result: Result<(), nvmlReturn_t>) -> nvmlReturn_t {
    result.err().unwrap_or(SUCCESS)
}

fn machine() -> Result<Machine, nvmlReturn_t> {
    Machine::now().map_err(|error| {
        eprintln!("fake-nvml: {error}");
        LIBRARY_NOT_FOUND
    })
}

/// What a handle stands for. It is made of indices plus one, so that it stays valid while the file changes, and is never null.
#[derive(Clone, Copy)]
pub(crate) struct Handle {
    index: usize,
    /// Of a MIG instance within the device.
    instance: Option<usize>,
}

/// Bits of a handle for the device's index; those of an instance's are above.
const INDEX_BITS: u32 = 16;

impl Handle {
    pub(crate) fn of(handle: nvmlDevice_t) -> Result<Handle, nvmlReturn_t> {
        let (device, instance) = (handle as usize & ((1 << INDEX_BITS) - 1), handle as usize >> INDEX_BITS);
        Ok(Handle { index: device.checked_sub(1).ok_or(INVALID_ARGUMENT)?, instance: instance.checked_sub(1) })
    }

    fn opaque(self) -> nvmlDevice_t {
        let instance = self.instance.map_or(0, |instance| instance + 1);
        ptr::without_provenance_mut((self.index + 1) | (instance << INDEX_BITS))
    }

    /// What there is of it, lost or not.
    pub(crate) fn found(self) -> Result<Device, nvmlReturn_t> {
        let mut device = machine()?.devices.into_iter().nth(self.index).ok_or(INVALID_ARGUMENT)?;
        match self.instance {
            Some(instance) if instance < device.mig.len() => Ok(Device { lost: device.lost, ..device.mig.swap_remove(instance) }),
            Some(_) => Err(INVALID_ARGUMENT),
            None => Ok(device),
        }
    }
}

/// A device that answers.
fn device(handle: nvmlDevice_t) -> Result<Device, nvmlReturn_t> {
    let device = Handle::of(handle)?.found()?;
    if device.lost { Err(GPU_IS_LOST) } else { Ok(device) }
}

/// Writes through a pointer of the caller's.
///
/// # Safety
/// `target` is null, or valid for a write of `T`.
pub(crate) unsafe fn put<T>(target: *mut T, value: T) -> Result<(), nvmlReturn_t> {
    if target.is_null() {
        return Err(INVALID_ARGUMENT);
    }
    // SAFETY: not null, and the caller vouches for the rest.
    unsafe { target.write(value) };
    Ok(())
}

/// Writes a text with its closing zero.
///
/// # Safety
/// `target` is null, or valid for writes of `length` bytes.
unsafe fn put_text(text: &str, target: *mut c_char, length: c_uint) -> Result<(), nvmlReturn_t> {
    if target.is_null() {
        return Err(INVALID_ARGUMENT);
    }
    if text.len() >= length as usize {
        return Err(INSUFFICIENT_SIZE);
    }
    // SAFETY: the text and its closing zero fit into `length` bytes, for which the caller vouches; the two can't overlap.
    unsafe {
        ptr::copy_nonoverlapping(text.as_ptr().cast(), target, text.len());
        target.add(text.len()).write(0);
    }
    Ok(())
}

#[unsafe(no_mangle)]
pub extern "C" fn nvmlInit_v2() -> nvmlReturn_t {
    code(machine().map(drop))
}

#[unsafe(no_mangle)]
pub extern "C" fn nvmlInitWithFlags(_flags: c_uint) -> nvmlReturn_t {
    nvmlInit_v2()
}

#[unsafe(no_mangle)]
pub extern "C" fn nvmlShutdown() -> nvmlReturn_t {
    SUCCESS
}

#[unsafe(no_mangle)]
pub extern "C" fn nvmlErrorString(result: nvmlReturn_t) -> *const c_char {
    let text: &CStr = match result {
        SUCCESS => c"Success",
        INVALID_ARGUMENT => c"Invalid Argument",
        NOT_SUPPORTED => c"Not Supported",
        NOT_FOUND => c"Not Found",
        INSUFFICIENT_SIZE => c"Insufficient Size",
        GPU_IS_LOST => c"GPU is lost",
        TIMEOUT => c"Timeout",
        _ => c"Unknown Error (simulated NVML)",
    };
    text.as_ptr()
}

/// # Safety
/// As NVML says: `version` is valid for `length` bytes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlSystemGetDriverVersion(version: *mut c_char, length: c_uint) -> nvmlReturn_t {
    // SAFETY: the caller keeps NVML's contract.
    code(machine().and_then(|machine| unsafe { put_text(&format!("{} (simulated)", machine.driver_version), version, length) }))
}

/// # Safety
/// As NVML says: `version` is valid for `length` bytes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlSystemGetNVMLVersion(version: *mut c_char, length: c_uint) -> nvmlReturn_t {
    // SAFETY: the caller keeps NVML's contract.
    code(unsafe { put_text("13.simulated", version, length) })
}

/// # Safety
/// As NVML says: `version` is valid for a write.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlSystemGetCudaDriverVersion_v2(version: *mut c_int) -> nvmlReturn_t {
    // SAFETY: the caller keeps NVML's contract.
    code(machine().and_then(|machine| unsafe { put(version, machine.cuda_version) }))
}

/// # Safety
/// As NVML says: `name` is valid for `length` bytes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlSystemGetProcessName(pid: c_uint, name: *mut c_char, length: c_uint) -> nvmlReturn_t {
    let found = machine().and_then(|machine| {
        machine.devices.into_iter().flat_map(|device| device.processes).find(|process| process.pid == pid).ok_or(NOT_FOUND)
    });
    // SAFETY: the caller keeps NVML's contract.
    code(found.and_then(|process| unsafe { put_text(&process.name, name, length) }))
}

/// # Safety
/// As NVML says: `count` is valid for a write.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceGetCount_v2(count: *mut c_uint) -> nvmlReturn_t {
    // SAFETY: the caller keeps NVML's contract.
    code(machine().and_then(|machine| unsafe { put(count, machine.devices.len() as c_uint) }))
}

/// # Safety
/// As NVML says: `handle` is valid for a write.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceGetHandleByIndex_v2(index: c_uint, handle: *mut nvmlDevice_t) -> nvmlReturn_t {
    let found = Handle { index: index as usize, instance: None };
    // SAFETY: the caller keeps NVML's contract.
    code(found.found().and_then(|_| unsafe { put(handle, found.opaque()) }))
}

/// # Safety
/// As NVML says: `uuid` is a C string, `handle` valid for a write.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceGetHandleByUUID(uuid: *const c_char, handle: *mut nvmlDevice_t) -> nvmlReturn_t {
    if uuid.is_null() {
        return INVALID_ARGUMENT;
    }
    // SAFETY: not null, and the caller vouches that it is a C string.
    let uuid = unsafe { CStr::from_ptr(uuid) }.to_string_lossy();
    let index = machine().and_then(|machine| machine.devices.iter().position(|device| device.uuid == uuid).ok_or(NOT_FOUND));
    // SAFETY: the caller keeps NVML's contract.
    code(index.and_then(|index| unsafe { put(handle, Handle { index, instance: None }.opaque()) }))
}

/// # Safety
/// As NVML says: `uuid` is valid for `length` bytes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceGetUUID(handle: nvmlDevice_t, uuid: *mut c_char, length: c_uint) -> nvmlReturn_t {
    // SAFETY: the caller keeps NVML's contract.
    code(device(handle).and_then(|device| unsafe { put_text(&device.uuid, uuid, length) }))
}

/// # Safety
/// As NVML says: `name` is valid for `length` bytes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceGetName(handle: nvmlDevice_t, name: *mut c_char, length: c_uint) -> nvmlReturn_t {
    // SAFETY: the caller keeps NVML's contract.
    code(device(handle).and_then(|device| unsafe { put_text(&device.shown_name(), name, length) }))
}

/// # Safety
/// As NVML says: `index` is valid for a write.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceGetIndex(handle: nvmlDevice_t, index: *mut c_uint) -> nvmlReturn_t {
    // SAFETY: the caller keeps NVML's contract.
    code(device(handle).and_then(|_| Handle::of(handle)).and_then(|of| unsafe { put(index, of.index as c_uint) }))
}

/// # Safety
/// As NVML says: both pointers are valid for a write.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceGetMigMode(handle: nvmlDevice_t, current: *mut c_uint, pending: *mut c_uint) -> nvmlReturn_t {
    let mode = device(handle).map(|device| c_uint::from(!device.mig.is_empty()));
    // SAFETY: the caller keeps NVML's contract.
    code(mode.and_then(|mode| unsafe { put(current, mode).and_then(|()| put(pending, mode)) }))
}

/// # Safety
/// As NVML says: `count` is valid for a write.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceGetMaxMigDeviceCount(handle: nvmlDevice_t, count: *mut c_uint) -> nvmlReturn_t {
    // SAFETY: the caller keeps NVML's contract.
    code(device(handle).and_then(|device| unsafe { put(count, if device.mig.is_empty() { 0 } else { MAX_INSTANCES }) }))
}

/// # Safety
/// As NVML says: `instance` is valid for a write.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceGetMigDeviceHandleByIndex(
    handle: nvmlDevice_t,
    index: c_uint,
    instance: *mut nvmlDevice_t,
) -> nvmlReturn_t {
    let made = device(handle).and_then(|device| if (index as usize) < device.mig.len() { Handle::of(handle) } else { Err(NOT_FOUND) });
    // SAFETY: the caller keeps NVML's contract.
    code(made.and_then(|of| unsafe { put(instance, Handle { instance: Some(index as usize), ..of }.opaque()) }))
}

/// # Safety
/// As NVML says: both pointers are valid for a write.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceGetCudaComputeCapability(handle: nvmlDevice_t, major: *mut c_int, minor: *mut c_int) -> nvmlReturn_t {
    let capability = device(handle).and_then(|device| device.capability().ok_or(NOT_SUPPORTED));
    // SAFETY: the caller keeps NVML's contract.
    code(capability.and_then(|(one, two)| unsafe { put(major, one).and_then(|()| put(minor, two)) }))
}

/// # Safety
/// As NVML says: `memory` is valid for a write.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceGetMemoryInfo(handle: nvmlDevice_t, memory: *mut nvmlMemory_t) -> nvmlReturn_t {
    let info = device(handle).map(|device| {
        let free = device.free_bytes();
        nvmlMemory_t { total: device.total_bytes, free, used: device.total_bytes.saturating_sub(free) }
    });
    // SAFETY: the caller keeps NVML's contract.
    code(info.and_then(|info| unsafe { put(memory, info) }))
}

/// # Safety
/// As NVML says: `memory` is valid for reads and writes, its `version` set.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceGetMemoryInfo_v2(handle: nvmlDevice_t, memory: *mut nvmlMemory_v2_t) -> nvmlReturn_t {
    let own = device(handle).and_then(|device| if device.unified { Err(NOT_SUPPORTED) } else { Ok(device) });
    let info = own.map(|device| nvmlMemory_v2_t {
        version: size_of::<nvmlMemory_v2_t>() as u32 | 2 << 24,
        total: device.total_bytes,
        reserved: device.reserved_bytes,
        free: device.free_bytes(),
        used: device.used_bytes(),
    });
    // SAFETY: the caller keeps NVML's contract.
    code(info.and_then(|info| unsafe { put(memory, info) }))
}

/// # Safety
/// As NVML says: `count` is valid for reads and writes, `infos` null or valid for writes of that many.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceGetComputeRunningProcesses_v3(
    handle: nvmlDevice_t,
    count: *mut c_uint,
    infos: *mut nvmlProcessInfo_t,
) -> nvmlReturn_t {
    if count.is_null() {
        return INVALID_ARGUMENT;
    }
    // SAFETY: not null, and the caller vouches for the rest.
    let room = unsafe { count.read() } as usize;
    let processes = match device(handle) {
        Ok(device) => device.processes,
        Err(error) => return error,
    };
    // SAFETY: as above.
    unsafe { count.write(processes.len() as c_uint) };
    if processes.len() > room || (infos.is_null() && !processes.is_empty()) {
        return INSUFFICIENT_SIZE;
    }
    for (index, process) in processes.iter().enumerate() {
        let info = nvmlProcessInfo_t {
            pid: process.pid,
            usedGpuMemory: process.used_bytes,
            gpuInstanceId: NO_INSTANCE,
            computeInstanceId: NO_INSTANCE,
        };
        // SAFETY: `index` is below `room`, for which the caller vouches.
        unsafe { infos.add(index).write(info) };
    }
    SUCCESS
}

/// Nobody draws on a simulated device.
///
/// # Safety
/// As NVML says: `count` is valid for a write.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceGetGraphicsRunningProcesses_v3(
    handle: nvmlDevice_t,
    count: *mut c_uint,
    _infos: *mut nvmlProcessInfo_t,
) -> nvmlReturn_t {
    // SAFETY: the caller keeps NVML's contract.
    code(device(handle).and_then(|_| unsafe { put(count, 0) }))
}
