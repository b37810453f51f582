//! Layers on a GPU, by our own kernels (`kernels/`): weights stay quantised, everything lies in one arena, and a step is a row of launches without a wait but the
//! last.
//!
//! Two drivers run it: CUDA's, and an emulator on which the same kernels run in tests (`driver/`). `layer` turns a block's operations into launches; `pass` tells the
//! device of a step. candle has a CUDA backend too; its tensors are allocated as they are needed, which is not what a plan to the byte can be kept with.

mod activation;
mod arguments;
mod attention;
mod buffers;
pub mod devices;
pub mod driver;
#[cfg(feature = "cuda")]
mod embedded;
mod experts;
mod kernels;
mod layer;
mod linear;
pub mod measure;
pub mod memory;
mod output;
mod pass;
mod planes;
mod raw_bytes;
#[cfg(feature = "cuda")]
pub mod raw_nvrtc;
#[cfg(feature = "cuda")]
pub mod raw_probe;
mod run;
#[cfg(feature = "cuda")]
pub mod sources;
#[cfg(all(test, feature = "emulated-cuda"))]
mod tests;
mod weights;

use std::collections::HashMap;
use std::sync::Arc;

use stowage_placement::compute;
use stowage_placement::{Bytes, Reason};

use self::buffers::Buffers;
use self::driver::DevicePointer;
use self::kernels::Kernels;
use self::layer::DeviceLayer;
use self::memory::DeviceArena;
use self::output::DeviceOutput;
use self::run::{CudaRun, HeldLayer, Progress};
use self::weights::Loader;
use super::{Backend, LayerRun, PreparedRun};
use crate::api::EngineError;
use crate::arena::Purpose;
use crate::cache;
use crate::file_mmap::ModelFile;
use crate::graph::{Rope, Weight};
use crate::kernels::matrix::read_floats;

/// One GPU's memory.
pub struct CudaBackend {
    pub arena: Arc<DeviceArena>,
}

impl Backend for CudaBackend {
    fn prepare(&self, run: &LayerRun<'_>, file: &ModelFile, loaded: &mut dyn FnMut(Bytes)) -> Result<Box<dyn PreparedRun>, EngineError> {
        let graph = run.graph;
        let arena = Arc::clone(&self.arena);
        let mut kernels = Kernels::new(Arc::clone(&arena.driver), graph.shape.experts > 0)?;
        let mut loader = Loader { arena: Arc::clone(&arena), file, loaded, matrices: HashMap::new(), vectors: HashMap::new() };
        let has_layers = run.blocks.iter().any(|range| !range.is_empty());
        let output = graph.output.as_ref().filter(|_| run.output);
        let hidden = match has_layers || output.is_some() {
            true => Some(buffers::hidden(&arena, &graph.shape, u64::from(run.request.num_batch))?),
            false => None,
        };
        let buffers = match hidden {
            Some(hidden) if has_layers => Some(Buffers::new(&arena, hidden, &graph.shape, run.request)?),
            _ => None,
        };
        let layers = match &buffers {
            Some(buffers) => self.layers(run, buffers, &mut loader, &mut kernels)?,
            None => HashMap::new(),
        };
        let ropes = match &buffers {
            Some(buffers) => self.ropes(&graph.ropes, buffers, file)?,
            None => Vec::new(),
        };
        let output = match (output, hidden) {
            (Some(output), Some(hidden)) => Some(DeviceOutput::load(output, hidden, &graph.shape, run.request, &mut loader, &mut kernels)?),
            _ => None,
        };
        let (ends_in_a_norm, progress) = (graph.output.is_some(), Progress::default());
        Ok(Box::new(CudaRun { arena, kernels, hidden, buffers, ropes, layers, output, ends_in_a_norm, progress }))
    }
}

impl CudaBackend {
    fn layers(
        &self,
        run: &LayerRun<'_>,
        buffers: &Buffers,
        loader: &mut Loader<'_>,
        kernels: &mut Kernels,
    ) -> Result<HashMap<usize, HeldLayer>, EngineError> {
        let graph = run.graph;
        let for_a_batch = match graph.shape.reads_at_once() {
            true => {
                let bytes = compute::batch_cache_bytes(&graph.shape, u64::from(run.request.num_batch));
                let [region] = buffers::take(&self.arena, [bytes])?;
                Some(region.start)
            }
            false => None,
        };
        let mut layers = HashMap::new();
        for index in run.blocks.iter().cloned().flatten() {
            let block = &graph.blocks[index];
            let bytes = |bytes: Option<Bytes>| bytes.ok_or_else(|| too_large("the KV cache"));
            let size = bytes(cache::layer_bytes(&block.cache, run.request))?;
            let copies = bytes(cache::checkpoint_bytes(&block.cache, run.request))?;
            let data = match for_a_batch {
                Some(data) => data,
                None => self.arena.take(Purpose::Cache, size)?.start,
            };
            let copies = match copies {
                Bytes::ZERO => None,
                bytes => Some(self.arena.take(Purpose::Checkpoints, bytes)?.start),
            };
            let cache = attention::device_cache(&block.cache, run.request, data);
            let layer = DeviceLayer::compile(block, cache, &graph.ropes, buffers, loader, kernels)?;
            let slot_bytes = size.0 as usize / run.request.parallel as usize;
            layers.insert(index, HeldLayer { layer, cache: data, copies, slot_bytes });
        }
        Ok(layers)
    }

    /// Puts the frequencies of each rope where its rotations are made from.
    fn ropes(&self, ropes: &[Rope], buffers: &Buffers, file: &ModelFile) -> Result<Vec<run::DeviceRope>, EngineError> {
        let stride = buffers.rotations.stride as usize / ropes.len().max(1);
        let read = |weight: &Weight| {
            let mut factors = vec![0f32; weight.columns];
            read_floats(&file.tensor(&weight.name)?, &mut factors).map(|()| factors)
        };
        let rope = |(index, rope): (usize, &Rope)| {
            let factors = rope.factors.as_ref().map(read).transpose()?;
            let frequencies = rope.frequencies(factors.as_deref());
            let at: DevicePointer = buffers.frequencies.after(index * (stride / 2) * 4);
            self.arena.driver.upload(at, raw_bytes::bytes(&frequencies))?;
            let to = buffers.rotations.at.after(index * stride * 4);
            Ok(run::DeviceRope { frequencies: at, to, pairs: frequencies.len() as u32, magnitude: rope.magnitude })
        };
        ropes.iter().enumerate().map(rope).collect()
    }
}

fn too_large(what: &str) -> EngineError {
    EngineError::new(Reason::InvalidRequest, format!("{what} needs more bytes than 64 bits can count"))
}
