//! Critical errors, told once to each set that was registered for them.

use std::collections::BTreeMap;
use std::ffi::{c_uint, c_ulonglong};
use std::ptr;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use nvml_wrapper_sys::bindings::{
    nvmlDevice_t, nvmlEventData_t, nvmlEventSet_t, nvmlReturn_enum_NVML_ERROR_INVALID_ARGUMENT as INVALID_ARGUMENT,
    nvmlReturn_enum_NVML_ERROR_TIMEOUT as TIMEOUT, nvmlReturn_enum_NVML_SUCCESS as SUCCESS, nvmlReturn_t,
};

use crate::abi::{Handle, code, put};

/// `nvmlEventTypeXidCriticalError`
const CRITICAL_ERROR: c_ulonglong = 8;
/// Between two looks at the file.
const PAUSE: Duration = Duration::from_millis(20);

/// By set, the devices that it was registered for, each with the error that was told of it last.
static SETS: Mutex<BTreeMap<usize, BTreeMap<usize, Option<u64>>>> = Mutex::new(BTreeMap::new());

fn sets<T>(with: impl FnOnce(&mut BTreeMap<usize, BTreeMap<usize, Option<u64>>>) -> T) -> T {
    with(&mut SETS.lock().unwrap_or_else(PoisonError::into_inner))
}

/// # Safety
/// As NVML says: `types` is valid for a write.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceGetSupportedEventTypes(handle: nvmlDevice_t, types: *mut c_ulonglong) -> nvmlReturn_t {
    // SAFETY: the caller keeps NVML's contract.
    code(Handle::of(handle).and_then(|_| unsafe { put(types, CRITICAL_ERROR) }))
}

/// # Safety
/// As NVML says: `set` is valid for a write.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlEventSetCreate(set: *mut nvmlEventSet_t) -> nvmlReturn_t {
    let number = sets(|sets| {
        let number = sets.keys().next_back().map_or(1, |last| last + 1);
        sets.insert(number, BTreeMap::new());
        number
    });
    // SAFETY: the caller keeps NVML's contract.
    code(unsafe { put(set, ptr::without_provenance_mut(number)) })
}

#[unsafe(no_mangle)]
pub extern "C" fn nvmlDeviceRegisterEvents(handle: nvmlDevice_t, _types: c_ulonglong, set: nvmlEventSet_t) -> nvmlReturn_t {
    sets(|sets| match sets.get_mut(&(set as usize)) {
        Some(registered) => {
            registered.insert(handle as usize, None);
            SUCCESS
        }
        None => INVALID_ARGUMENT,
    })
}

/// # Safety
/// As NVML says: `data` is valid for a write.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlEventSetWait_v2(set: nvmlEventSet_t, data: *mut nvmlEventData_t, timeout_ms: c_uint) -> nvmlReturn_t {
    let end = Instant::now() + Duration::from_millis(timeout_ms.into());
    loop {
        if let Some((device, error)) = sets(|sets| next(sets.get_mut(&(set as usize))?)) {
            let event = nvmlEventData_t {
                device: ptr::without_provenance_mut(device),
                eventType: CRITICAL_ERROR,
                eventData: error,
                gpuInstanceId: c_uint::MAX,
                computeInstanceId: c_uint::MAX,
            };
            // SAFETY: the caller keeps NVML's contract.
            return code(unsafe { put(data, event) });
        }
        if Instant::now() >= end {
            return TIMEOUT;
        }
        std::thread::sleep(PAUSE);
    }
}

/// A device of which there is news, and its error.
fn next(registered: &mut BTreeMap<usize, Option<u64>>) -> Option<(usize, u64)> {
    registered.iter_mut().find_map(|(device, told)| {
        let now = Handle::of(ptr::without_provenance_mut(*device)).and_then(Handle::found).ok()?.xid;
        let news = now.filter(|_| now != *told);
        *told = now;
        Some((*device, news?))
    })
}

#[unsafe(no_mangle)]
pub extern "C" fn nvmlEventSetFree(set: nvmlEventSet_t) -> nvmlReturn_t {
    sets(|sets| sets.remove(&(set as usize))).map_or(INVALID_ARGUMENT, |_| SUCCESS)
}
