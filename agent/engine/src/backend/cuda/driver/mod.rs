//! The seam between the backend and what runs its kernels: a GPU through CUDA's driver, or an emulator that runs the same kernels on the CPU, for tests.

#[cfg(feature = "cuda")]
pub mod raw_cudarc;
#[cfg(feature = "emulated-cuda")]
pub mod raw_emulator;

use stowage_placement::Bytes;
use stowage_placement::gguf::GgmlType;

use super::arguments::Arguments;
use crate::api::EngineError;

/// An address in a device's memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(transparent)]
pub struct DevicePointer(pub u64);

impl DevicePointer {
    pub const NULL: DevicePointer = DevicePointer(0);

    /// So many bytes further.
    pub fn after(self, bytes: usize) -> DevicePointer {
        DevicePointer(self.0 + bytes as u64)
    }
}

/// Kernels that are compiled together.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Module {
    Rows,
    Heads,
    Attention,
    AttentionTiles,
    Experts,
    /// What a device is measured by.
    Measure,
    /// Products with weights of one type.
    Products(GgmlType),
}

#[cfg(feature = "cuda")]
impl Module {
    /// Its name, which its file of compiled kernels has too.
    pub fn name(self) -> String {
        match self {
            Module::Rows => "rows".into(),
            Module::Heads => "heads".into(),
            Module::Attention => "attention".into(),
            Module::AttentionTiles => "attention_tiles".into(),
            Module::Experts => "experts".into(),
            Module::Measure => "measure".into(),
            Module::Products(ty) => format!("products-{ty}"),
        }
    }
}

/// A kernel that was looked up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Kernel(pub usize);

/// Steps that were captured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Captured(pub usize);

/// How many blocks of how many threads, and the bytes of shared memory of a block.
#[derive(Clone, Copy, Debug)]
pub struct Shape {
    pub grid: [u32; 3],
    pub threads: u32,
    pub shared_bytes: u32,
}

/// One device. All that is asked of it is done in order; what a call finds wrong may be the fault of an earlier one.
///
/// Errors: DeviceChanged where the device has less free than is allocated; InferenceFailed with what the driver said.
pub trait Driver: Send + Sync {
    /// Memory of any content, aligned to at least 256 bytes.
    fn allocate(&self, bytes: Bytes) -> Result<DevicePointer, EngineError>;

    /// Gives back what was allocated.
    fn free(&self, at: DevicePointer, bytes: Bytes);

    fn upload(&self, to: DevicePointer, from: &[u8]) -> Result<(), EngineError>;

    /// Waits for all that was asked before.
    fn download(&self, from: DevicePointer, to: &mut [u8]) -> Result<(), EngineError>;

    fn copy(&self, from: DevicePointer, to: DevicePointer, bytes: usize) -> Result<(), EngineError>;

    fn kernel(&self, module: Module, name: &str) -> Result<Kernel, EngineError>;

    fn launch(&self, kernel: Kernel, shape: Shape, arguments: &dyn Arguments) -> Result<(), EngineError>;

    /// From here on launches are kept and not run, until they are captured.
    fn begin_capture(&self) -> Result<(), EngineError>;

    fn end_capture(&self) -> Result<Captured, EngineError>;

    /// Runs what was captured, with the same arguments.
    fn replay(&self, captured: Captured) -> Result<(), EngineError>;
}
