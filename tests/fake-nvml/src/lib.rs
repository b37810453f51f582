//! An NVML for machines without a GPU: the shared library has NVML's C ABI, so that the code which reads real GPUs reads these, unmodified.
//!
//! Its devices come from the YAML file that `STOWAGE_FAKE_NVML_CONFIG` names, which may change while it is in use; what workers that simulate GPU layers
//! hold is added from the folder that `STOWAGE_SIMULATED_GPU_DIR` names. Devices and driver say that they are simulated.
#![cfg_attr(test, allow(clippy::unwrap_used))]

mod abi;
pub mod devices;
mod events;
