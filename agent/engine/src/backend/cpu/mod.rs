//! Layers on the CPU, by our own kernels: weights packed at load, activations quantised to 8 bits, one program that all threads run over a whole step.
//!
//! `program` turns a block's operations into phases, `raw_step` runs them.

mod program;
mod raw_step;

use std::ops::Range;
use std::sync::Arc;

use stowage_placement::compute;
use stowage_placement::layout::{self, Backend as Layout};
use stowage_placement::{Bytes, Reason};

use self::program::{Layer, Program};
use self::raw_step::{Buffers, OutputBuffers};
use super::{Backend, LayerRun, PreparedRun, not_held};
use crate::api::EngineError;
use crate::arena::{Arena, Purpose, Region};
use crate::batch::Batch;
use crate::cache::{self, LayerCache};
use crate::file_mmap::ModelFile;
use crate::graph::{Block, Weight};
use crate::kernels::Isa;
use crate::kernels::matrix::{Matrix, read_floats};
use crate::pool::Pool;

/// One device's memory, and who computes there.
pub struct CpuBackend {
    pub arena: Arc<Arena>,
    pub pool: Arc<Pool>,
    pub isa: Isa,
}

/// The part of a model that lies in one arena.
struct CpuRun {
    pool: Arc<Pool>,
    isa: Isa,
    embeddings: Option<Arc<Matrix>>,
    /// The model's first block that is here, and the blocks from there on; `None` where another device has the block.
    first_block: usize,
    layers: Vec<Option<Layer>>,
    buffers: Option<Buffers>,
    output: Option<Output>,
    embedding: usize,
}

struct Output {
    norm: Vector,
    epsilon: f32,
    matrix: Arc<Matrix>,
    buffers: OutputBuffers,
}

/// A tensor of one row, held as f32.
pub(crate) struct Vector {
    region: Region,
    length: usize,
}

impl Vector {
    fn floats(&self) -> &[f32] {
        &self.region.floats()[..self.length]
    }
}

/// Reads tensors into an arena.
struct Loader<'a> {
    backend: &'a CpuBackend,
    file: &'a ModelFile,
    loaded: &'a mut dyn FnMut(Bytes),
}

impl Loader<'_> {
    fn region(&self, weight: &Weight) -> Result<Region, EngineError> {
        let view = self.file.tensor(&weight.name)?;
        let bytes = layout::weight_bytes(view.ggml_type, view.rows as u64, view.columns as u64, Layout::Cpu);
        self.backend.arena.take(Purpose::Weights, bytes.ok_or_else(|| too_large(&weight.name))?)
    }

    fn matrix(&mut self, weight: &Weight) -> Result<Matrix, EngineError> {
        let view = self.file.tensor(&weight.name)?;
        let matrix = Matrix::load(&view, self.region(weight)?, &self.backend.pool)?;
        (self.loaded)(Bytes(view.data.len() as u64));
        Ok(matrix)
    }

    fn vector(&mut self, weight: &Weight) -> Result<Vector, EngineError> {
        let view = self.file.tensor(&weight.name)?;
        let mut region = self.region(weight)?;
        read_floats(&view, region.floats_mut())?;
        (self.loaded)(Bytes(view.data.len() as u64));
        Ok(Vector { region, length: weight.columns })
    }
}

impl Backend for CpuBackend {
    fn prepare(&self, run: &LayerRun<'_>, file: &ModelFile, loaded: &mut dyn FnMut(Bytes)) -> Result<Box<dyn PreparedRun>, EngineError> {
        let mut loader = Loader { backend: self, file, loaded };
        let graph = run.graph;
        let embeddings = if run.input { Some(Arc::new(loader.matrix(&graph.embeddings)?)) } else { None };
        let factors = graph.rope.factors.as_ref();
        if let (true, Some(factors)) = (run.input, factors) {
            // Counted among the input layer's weights, and small: every device computes its frequencies from it at load.
            loader.vector(factors)?;
        }
        let (layers, first_block) = self.layers(run, &mut loader)?;
        let buffers = if layers.is_empty() { None } else { Some(self.buffers(run, file)?) };
        let output = if run.output { Some(self.output(run, embeddings.as_ref(), &mut loader)?) } else { None };
        let (pool, isa) = (Arc::clone(&self.pool), self.isa);
        Ok(Box::new(CpuRun { pool, isa, embeddings, first_block, layers, buffers, output, embedding: graph.embeddings.columns }))
    }
}

impl CpuBackend {
    /// Blocks with their caches, from the first that is here to the last.
    fn layers(&self, run: &LayerRun<'_>, loader: &mut Loader<'_>) -> Result<(Vec<Option<Layer>>, usize), EngineError> {
        let first = run.blocks.iter().map(|range| range.start).min().unwrap_or(0);
        let end = run.blocks.iter().map(|range| range.end).max().unwrap_or(0);
        let mut layers = Vec::new();
        for index in first..end {
            let held = run.blocks.iter().any(|range| range.contains(&index));
            layers.push(if held { Some(self.layer(run, &run.graph.blocks[index], loader)?) } else { None });
        }
        Ok((layers, first))
    }

    fn layer(&self, run: &LayerRun<'_>, block: &Block, loader: &mut Loader<'_>) -> Result<Layer, EngineError> {
        let phases = Program::compile(block, loader)?;
        let (num_ctx, slots) = (run.request.num_ctx, run.request.parallel);
        let bytes = cache::layer_bytes(&block.cache, num_ctx, slots).ok_or_else(|| too_large("the KV cache"))?;
        let region = self.arena.take(Purpose::Cache, bytes)?;
        Ok(Layer { phases, cache: LayerCache::new(block.cache, num_ctx, region) })
    }

    fn buffers(&self, run: &LayerRun<'_>, file: &ModelFile) -> Result<Buffers, EngineError> {
        let sizes = compute::layer_buffers(&run.graph.shape, u64::from(run.request.num_batch));
        let rope = &run.graph.rope;
        let factors = rope.factors.as_ref().map(|weight| {
            let mut factors = vec![0f32; weight.columns];
            read_floats(&file.tensor(&weight.name)?, &mut factors).map(|()| factors)
        });
        let frequencies = rope.frequencies(factors.transpose()?.as_deref());
        Buffers::new(&run.graph.shape, frequencies, run.request.num_batch as usize, self.scratch(sizes)?)
    }

    fn output(&self, run: &LayerRun<'_>, embeddings: Option<&Arc<Matrix>>, loader: &mut Loader<'_>) -> Result<Output, EngineError> {
        let output = &run.graph.output;
        let norm = loader.vector(&output.norm)?;
        let matrix = match embeddings {
            Some(embeddings) if output.tied => Arc::clone(embeddings),
            _ => Arc::new(loader.matrix(&output.weight)?),
        };
        let rows = compute::logit_rows(run.request.parallel);
        let buffers = OutputBuffers::new(rows as usize, self.scratch(compute::output_buffers(&run.graph.shape, rows))?);
        Ok(Output { norm, epsilon: output.epsilon, matrix, buffers })
    }

    fn scratch<const N: usize>(&self, sizes: [Option<u64>; N]) -> Result<[Region; N], EngineError> {
        let take = |size: Option<u64>| {
            let bytes = size.and_then(|size| Layout::Cpu.aligned(size)).ok_or_else(|| too_large("a scratch buffer"))?;
            self.arena.take(Purpose::Compute, bytes)
        };
        let regions = sizes.into_iter().map(take).collect::<Result<Vec<Region>, EngineError>>()?;
        regions.try_into().map_err(|_| too_large("scratch memory"))
    }
}

fn too_large(what: &str) -> EngineError {
    EngineError::new(Reason::InvalidRequest, format!("{what} needs more bytes than 64 bits can count"))
}

impl PreparedRun for CpuRun {
    fn embed(&mut self, batch: &Batch, hidden: &mut [f32]) -> Result<(), EngineError> {
        let embeddings = self.embeddings.as_ref().ok_or_else(|| not_held("the embeddings"))?;
        for (at, row) in batch.tokens.iter().zip(hidden.chunks_exact_mut(self.embedding)) {
            embeddings.read_row(at.token as usize, row);
        }
        Ok(())
    }

    fn step(&mut self, blocks: Range<usize>, batch: &Batch, hidden: &mut [f32]) -> Result<(), EngineError> {
        let held = blocks.start.checked_sub(self.first_block).and_then(|start| self.layers.get(start..start + blocks.len()));
        let layers: Option<Vec<&Layer>> = held.and_then(|layers| layers.iter().map(Option::as_ref).collect());
        match (layers, self.buffers.as_mut()) {
            (Some(layers), Some(buffers)) => buffers.step(self.isa, &self.pool, &layers, batch, hidden),
            _ => return Err(not_held(&format!("blocks {} to {}", blocks.start, blocks.end))),
        }
        Ok(())
    }

    fn logits(&mut self, rows: &[u32], hidden: &[f32]) -> Result<&[f32], EngineError> {
        let Output { norm, epsilon, matrix, buffers } = self.output.as_mut().ok_or_else(|| not_held("the output layer"))?;
        Ok(buffers.logits(self.isa, &self.pool, rows, hidden, (norm.floats(), *epsilon), matrix))
    }

    fn normalise(&mut self, hidden: &mut [f32]) -> Result<(), EngineError> {
        let output = self.output.as_ref().ok_or_else(|| not_held("the output layer"))?;
        raw_step::normalise(self.isa, &self.pool, hidden, output.norm.floats(), output.epsilon);
        Ok(())
    }
}
