//! Whether the engine computes on a GPU, looked up once for all GPUs of a reading.

#[cfg(feature = "cuda")]
use stowage_engine::cuda::{CudaDevice, probe};

/// What CUDA lets this process use; or why nothing.
pub struct Cuda {
    #[cfg(feature = "cuda")]
    devices: Result<Vec<CudaDevice>, String>,
}

impl Cuda {
    pub fn look() -> Cuda {
        Cuda {
            #[cfg(feature = "cuda")]
            devices: probe(),
        }
    }

    /// Whether it computes on the device of this UUID; the error is why not.
    #[cfg(feature = "cuda")]
    pub fn computes_on(&self, uuid: &str) -> Result<(), String> {
        match self.devices.as_ref().map_err(String::clone)?.iter().any(|device| device.is(uuid)) {
            true => Ok(()),
            false => Err("CUDA does not list it among the devices that this process may use".to_owned()),
        }
    }

    #[cfg(not(feature = "cuda"))]
    pub fn computes_on(&self, _: &str) -> Result<(), String> {
        Err("this build of the agent has no CUDA backend".to_owned())
    }
}
