//! Which GPUs there are for the backend, by the names that plans give them.

use std::sync::Arc;

#[cfg(feature = "emulated-cuda")]
use stowage_placement::Bytes;

use super::driver::Driver;
use crate::api::EngineError;

/// What the id of an emulated device begins with. `emulated-cuda-0@1048576` has so many bytes.
#[cfg(feature = "emulated-cuda")]
pub const EMULATED: &str = "emulated-cuda-";

#[cfg(feature = "emulated-cuda")]
const EMULATED_BYTES: Bytes = Bytes::gib(64);

/// The device of this id, if it is one of the backend's; then the reason, if it can't be used.
pub fn open(id: &str) -> Option<Result<Arc<dyn Driver>, EngineError>> {
    #[cfg(feature = "emulated-cuda")]
    if let Some(name) = id.strip_prefix(EMULATED) {
        let bytes = name.split_once('@').and_then(|(_, bytes)| bytes.parse().ok());
        return Some(Ok(Arc::new(super::driver::raw_emulator::Emulator::new(bytes.map_or(EMULATED_BYTES, Bytes)))));
    }
    #[cfg(feature = "cuda")]
    if let Some(device) = super::raw_probe::find(id) {
        let driver = super::driver::raw_cudarc::CudaDriver::open(device);
        return Some(driver.map(|driver| Arc::new(driver) as Arc<dyn Driver>));
    }
    None
}

/// Whether a device of this id is one of the backend's.
pub fn has(id: &str) -> bool {
    #[cfg(feature = "emulated-cuda")]
    if id.starts_with(EMULATED) {
        return true;
    }
    #[cfg(feature = "cuda")]
    if super::raw_probe::find(id).is_some() {
        return true;
    }
    false
}
