//! Inference: a GGUF file loaded as a device plan says, and text in and out of it. [`Engine`] is what the agent sees.

#![cfg_attr(test, allow(clippy::unwrap_used))]

pub mod api;
pub use api::*;
pub mod engine;
pub use engine::Engine;
pub mod batch;
pub use batch::{Batch, TokenAt};
mod arena;
mod backend;
pub use backend::cpu::Computing;
pub mod bench;
/// CUDA on this machine, and the kernels for it.
#[cfg(feature = "cuda")]
pub mod cuda {
    pub use crate::backend::cuda::driver::Module;
    pub use crate::backend::cuda::raw_nvrtc::{compile, version};
    pub use crate::backend::cuda::raw_probe::{CudaDevice, probe};
    pub use crate::backend::cuda::sources::{ARCHITECTURES, modules};
}
/// What a GPU can do whatever runs on it.
#[cfg(any(feature = "cuda", feature = "emulated-cuda"))]
pub use backend::cuda::measure;
mod cache;
pub mod calibration;
pub mod constraint;
pub use cache::Checkpoint;
pub use constraint::{Constraints, Grammar};
pub mod divergence;
mod file_mmap;
mod graph;
pub use graph::Pooling;
pub mod host_plan;
mod kernels;
mod load;
pub mod model;
mod pool;
pub use kernels::Isa;
pub use kernels::matrix::Activations;
pub use model::LoadedModel;
pub use pool::default_threads;
pub mod sample;
pub mod schedule;
#[cfg(test)]
mod small_models;
pub mod stop;
pub mod synthetic;
pub mod template;
#[cfg(test)]
mod test_models;
pub mod tokenizer;
pub use template::ChatTemplate;
pub use tokenizer::Tokenizer;
