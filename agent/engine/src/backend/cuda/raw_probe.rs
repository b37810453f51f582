//! Whether there is CUDA here, and which devices it has. Where there is none, a sentence says why; nothing is loaded for it but the driver's library.

use std::mem::MaybeUninit;

use cudarc::driver::{result, sys};
use stowage_placement::Bytes;
use stowage_placement::capability::{LOWEST_COMPUTE_CAPABILITY as LOWEST, are_of_one_gpu};

/// The version of CUDA that compiled kernels ask the driver for: that which the bindings are of.
const NEEDED: (i32, i32) = (13, 0);

/// A GPU, or a part of one (MIG), that CUDA lets this process use.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CudaDevice {
    /// As NVML writes it: `GPU-` and 32 hexadecimal digits in groups. Of a part of a GPU it is the part's, which NVML writes `MIG-`.
    pub uuid: String,
    pub name: String,
    /// Major and minor.
    pub compute_capability: (u32, u32),
    pub total: Bytes,
    /// What CUDA counts it as.
    pub(crate) ordinal: i32,
}

/// The devices that the engine can use. Errors: why there are none, with what was found and what is needed.
pub fn probe() -> Result<Vec<CudaDevice>, String> {
    // SAFETY: it only looks for the library.
    if !unsafe { sys::is_culib_present() } {
        return Err("libcuda.so.1, a part of NVIDIA's driver, was not found".into());
    }
    let said = |what: &str, error: result::DriverError| format!("{what} failed: {}", error_text(error));
    let version = driver_version().map_err(|error| said("asking CUDA's driver for its version", error))?;
    check_version(version)?;
    result::init().map_err(|error| said("CUDA's start", error))?;
    let count = result::device::get_count().map_err(|error| said("counting CUDA's devices", error))?;
    let devices = (0..count).map(device).collect::<Result<Vec<CudaDevice>, _>>();
    usable(devices.map_err(|error| said("asking for CUDA's devices", error))?)
}

/// The device of this UUID, if the engine can use it.
pub fn find(uuid: &str) -> Option<CudaDevice> {
    probe().ok()?.into_iter().find(|device| device.is(uuid))
}

impl CudaDevice {
    /// Whether NVML means this one by `uuid`.
    pub fn is(&self, uuid: &str) -> bool {
        are_of_one_gpu(&self.uuid, uuid)
    }
}

pub(super) fn error_text(error: result::DriverError) -> String {
    match error.error_string() {
        Ok(text) => text.to_string_lossy().into_owned(),
        Err(_) => format!("{error:?}"),
    }
}

fn driver_version() -> Result<(i32, i32), result::DriverError> {
    let mut version = 0;
    // SAFETY: the number can be written.
    unsafe { sys::cuDriverGetVersion(&raw mut version).result()? };
    Ok((version / 1000, version % 1000 / 10))
}

fn check_version((major, minor): (i32, i32)) -> Result<(), String> {
    let (needed, and) = NEEDED;
    if (major, minor) >= NEEDED {
        return Ok(());
    }
    Err(format!("the driver is older than CUDA {needed}.{and} needs: it runs CUDA {major}.{minor}; R580 is the first that will do"))
}

fn device(ordinal: i32) -> Result<CudaDevice, result::DriverError> {
    use sys::CUdevice_attribute::{CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR, CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR};
    let device = result::device::get(ordinal)?;
    let uuid = result::device::get_uuid(device)?;
    // SAFETY: the device was just counted.
    let (total, major, minor) = unsafe {
        (
            result::device::total_mem(device)?,
            result::device::get_attribute(device, CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)?,
            result::device::get_attribute(device, CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)?,
        )
    };
    Ok(CudaDevice {
        uuid: written(uuid.bytes.map(|byte| byte as u8)),
        name: result::device::get_name(device)?,
        compute_capability: (major as u32, minor as u32),
        total: Bytes(total as u64),
        ordinal,
    })
}

/// `GPU-00112233-4455-6677-8899-aabbccddeeff`
fn written(bytes: [u8; 16]) -> String {
    let digits: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    format!("GPU-{}-{}-{}-{}-{}", &digits[..8], &digits[8..12], &digits[12..16], &digits[16..20], &digits[20..])
}

/// Those that are new enough.
fn usable(devices: Vec<CudaDevice>) -> Result<Vec<CudaDevice>, String> {
    let (major, minor) = LOWEST;
    let capability = |device: &CudaDevice| format!("{} has {}.{}", device.name, device.compute_capability.0, device.compute_capability.1);
    let older: Vec<String> = devices.iter().filter(|device| device.compute_capability < LOWEST).map(capability).collect();
    let usable: Vec<CudaDevice> = devices.into_iter().filter(|device| device.compute_capability >= LOWEST).collect();
    match (usable.is_empty(), older.is_empty()) {
        (true, true) => Err("CUDA's driver is there, and lets this process use no device".into()),
        (true, false) => Err(format!("the engine needs compute capability {major}.{minor} or later; {}", older.join(", "))),
        _ => Ok(usable),
    }
}

/// A context current to this thread, by which a device is used; every call needs it.
pub(super) fn make_current(context: sys::CUcontext) -> Result<(), result::DriverError> {
    // SAFETY: the context was retained by who holds it.
    unsafe { result::ctx::set_current(context) }
}

/// Code as the driver loads it.
pub(super) fn load_module(code: &[u8]) -> Result<sys::CUmodule, result::DriverError> {
    let mut module = MaybeUninit::uninit();
    // SAFETY: the code is a whole cubin, which says itself how long it is; the module is written where that succeeds.
    unsafe {
        sys::cuModuleLoadData(module.as_mut_ptr(), code.as_ptr().cast()).result()?;
        Ok(module.assume_init())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn named(name: &str, compute_capability: (u32, u32)) -> CudaDevice {
        CudaDevice { uuid: written([0xab; 16]), name: name.into(), compute_capability, total: Bytes::gib(16), ordinal: 0 }
    }

    #[test]
    fn a_uuid_is_written_as_nvml_writes_it() {
        assert_eq!(written(std::array::from_fn(|i| i as u8 * 0x11)), "GPU-00112233-4455-6677-8899-aabbccddeeff");
    }

    #[test]
    fn what_is_too_old_is_named_with_what_is_needed() {
        assert!(check_version((13, 0)).is_ok() && check_version((14, 2)).is_ok());
        let error = check_version((12, 2)).unwrap_err();
        assert!(error.contains("12.2") && error.contains("13.0"), "{error}");
        let error = usable(vec![named("Tesla P100", (6, 0))]).unwrap_err();
        assert!(error.contains("7.5") && error.contains("Tesla P100 has 6.0"), "{error}");
        assert_eq!(usable(vec![named("Tesla P100", (6, 0)), named("T4", (7, 5))]).unwrap().len(), 1);
        assert!(usable(Vec::new()).unwrap_err().contains("no device"));
    }

    #[test]
    fn without_a_driver_it_is_said_that_there_is_none() {
        // SAFETY: it only looks for the library.
        if unsafe { sys::is_culib_present() } {
            return;
        }
        assert!(probe().unwrap_err().contains("libcuda.so.1"), "{:?}", probe());
        assert!(find("GPU-00112233-4455-6677-8899-aabbccddeeff").is_none());
    }
}
