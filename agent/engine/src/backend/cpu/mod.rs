//! Layers on the CPU, by our own kernels: weights packed at load, activations quantised to 8 bits, one program that all threads run over a whole step.
//!
//! `program` turns a block's operations into phases, `raw_step` runs them.

mod experts;
mod loader;
mod program;
mod raw_step;

use std::ops::Range;
use std::sync::Arc;

use memmap2::Mmap;
use stowage_placement::compute;
use stowage_placement::layout::Backend as Layout;
use stowage_placement::{Bytes, Reason};

use self::loader::Loader;
use self::program::{Layer, Program};
use self::raw_step::{Buffers, OutputBuffers, Turns};
use super::{Backend, LayerRun, Next, PreparedRun, not_held};
use crate::api::EngineError;
use crate::arena::{Arena, Purpose, Region};
use crate::batch::{Batch, TokenAt};
use crate::cache::{self, Checkpoint, LayerCache};
use crate::file_mmap::{ModelFile, let_go};
use crate::graph::{self, Block, Rope, Weight};
use crate::kernels::Isa;
use crate::kernels::matrix::{Activations, Matrix, read_floats};
use crate::load::weights_of;
use crate::pool::Pool;

/// One device's memory, and who computes there.
pub struct CpuBackend {
    pub arena: Arc<Arena>,
    pub pool: Arc<Pool>,
    pub computing: Computing,
    /// Whether matrices stay in the model's file until they are brought over.
    pub in_place: bool,
}

/// How products are computed. Replicas run as [`Computing::default`] says; other ways are there to be compared with it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Computing {
    pub isa: Isa,
    pub activations: Activations,
}

impl Default for Computing {
    /// The fastest that this CPU can.
    fn default() -> Computing {
        Computing { isa: Isa::best(), activations: Activations::Quantised }
    }
}

/// The part of a model that lies in one arena.
struct CpuRun {
    pool: Arc<Pool>,
    isa: Isa,
    input: Option<InputTables>,
    /// The model's first block that is here, and the blocks from there on; `None` where another device has the block.
    first_block: usize,
    layers: Vec<Option<Layer>>,
    buffers: Option<Buffers>,
    output: Option<Output>,
    embedding: usize,
    /// Whether hidden states are normed at the end; those of a model without an output layer are as they are.
    ends_in_a_norm: bool,
    /// Matrices whose bytes are in the model's file as yet.
    in_file: Vec<Arc<Matrix>>,
    /// That file, or those of all parts, until none is.
    maps: Vec<Arc<Mmap>>,
}

/// What a token's embedding is made of.
struct InputTables {
    embeddings: Arc<Matrix>,
    scale: f32,
    /// The row of the first of the token's types.
    of_type: Option<Vec<f32>>,
    positions: Option<Arc<Matrix>>,
    norm: Option<RowNorm>,
}

struct Output {
    norm: RowNorm,
    matrix: Arc<Matrix>,
    scale: f32,
    softcap: Option<f32>,
    buffers: OutputBuffers,
}

/// A tensor of one row, held as f32.
pub(crate) struct Vector {
    region: Region,
    length: usize,
}

/// A norm, its weights read.
pub(crate) struct RowNorm {
    weight: Vector,
    bias: Option<Vector>,
    epsilon: f32,
}

impl RowNorm {
    /// Norms one row.
    ///
    /// # Safety
    ///
    /// Both pointers have as many floats as the weight.
    unsafe fn apply(&self, isa: Isa, from: *const f32, to: *mut f32) {
        let weight = self.weight.floats();
        // SAFETY: by the contract of this function.
        unsafe {
            match &self.bias {
                None => isa.norm(from, weight.as_ptr(), weight.len(), self.epsilon, to),
                Some(bias) => isa.layer_norm(from, weight.as_ptr(), bias.floats().as_ptr(), weight.len(), self.epsilon, to),
            }
        }
    }
}

impl Vector {
    fn floats(&self) -> &[f32] {
        &self.region.floats()[..self.length]
    }
}

/// A tensor of several rows, as f32 as in the file.
pub(crate) struct Floats {
    region: Region,
    columns: usize,
}

impl Floats {
    fn row(&self, row: usize) -> &[f32] {
        &self.region.floats()[row * self.columns..][..self.columns]
    }
}

impl Backend for CpuBackend {
    fn prepare(&self, run: &LayerRun<'_>, file: &ModelFile, loaded: &mut dyn FnMut(Bytes)) -> Result<Box<dyn PreparedRun>, EngineError> {
        let mut loader = Loader::new(self, file, loaded);
        if self.in_place {
            loader.read_in_place(&weights_of(run))?;
        }
        let graph = run.graph;
        let input = if run.input { Some(loader.input(&graph.input)?) } else { None };
        let (layers, first_block) = self.layers(run, &mut loader)?;
        let buffers = if layers.is_empty() { None } else { Some(self.buffers(run, file)?) };
        let output = match &graph.output {
            Some(output) if run.output => Some(self.output(run, output, input.as_ref(), &mut loader)?),
            _ => None,
        };
        let (pool, isa) = (Arc::clone(&self.pool), self.computing.isa);
        let (embedding, ends_in_a_norm) = (graph.input.embeddings.columns, graph.output.is_some());
        // The first that is brought over is the last of them.
        let in_file: Vec<Arc<Matrix>> = loader.in_file.into_iter().rev().collect();
        let maps = if in_file.is_empty() { Vec::new() } else { file.maps().to_vec() };
        Ok(Box::new(CpuRun { pool, isa, input, first_block, layers, buffers, output, embedding, ends_in_a_norm, in_file, maps }))
    }
}

impl CpuBackend {
    /// Blocks with their caches, from the first that is here to the last.
    fn layers(&self, run: &LayerRun<'_>, loader: &mut Loader<'_>) -> Result<(Vec<Option<Layer>>, usize), EngineError> {
        let first = run.blocks.iter().map(|range| range.start).min().unwrap_or(0);
        let end = run.blocks.iter().map(|range| range.end).max().unwrap_or(0);
        let for_a_batch = match run.graph.shape.reads_at_once() && first < end {
            true => Some(self.batch_cache(run)?),
            false => None,
        };
        let mut layers = Vec::new();
        for index in first..end {
            let held = run.blocks.iter().any(|range| range.contains(&index));
            layers.push(if held { Some(self.layer(run, &run.graph.blocks[index], for_a_batch.as_ref(), loader)?) } else { None });
        }
        Ok((layers, first))
    }

    /// What all layers of a model that reads a text at once keep their keys and values in, each in its turn.
    fn batch_cache(&self, run: &LayerRun<'_>) -> Result<Arc<Region>, EngineError> {
        let bytes = compute::batch_cache_bytes(&run.graph.shape, u64::from(run.request.num_batch));
        let [region] = self.scratch([bytes])?;
        Ok(Arc::new(region))
    }

    fn layer(
        &self,
        run: &LayerRun<'_>,
        block: &Block,
        for_a_batch: Option<&Arc<Region>>,
        loader: &mut Loader<'_>,
    ) -> Result<Layer, EngineError> {
        let phases = Program::compile(block, &run.graph.ropes, loader)?;
        if let Some(region) = for_a_batch {
            return Ok(Layer { phases, cache: LayerCache::new(block.cache, run.request, Arc::clone(region), None) });
        }
        let bytes = cache::layer_bytes(&block.cache, run.request).ok_or_else(|| too_large("the KV cache"))?;
        let region = self.arena.take(Purpose::Cache, bytes)?;
        let bytes = cache::checkpoint_bytes(&block.cache, run.request).ok_or_else(|| too_large("the copies of the KV cache"))?;
        let checkpoints = if bytes > Bytes::ZERO { Some(self.arena.take(Purpose::Checkpoints, bytes)?) } else { None };
        Ok(Layer { phases, cache: LayerCache::new(block.cache, run.request, Arc::new(region), checkpoints) })
    }

    fn buffers(&self, run: &LayerRun<'_>, file: &ModelFile) -> Result<Buffers, EngineError> {
        let (shape, batch) = (&run.graph.shape, u64::from(run.request.num_batch));
        let turns = run.graph.ropes.iter().map(|rope| turns(rope, file)).collect::<Result<Vec<Turns>, EngineError>>()?;
        let regions = self.scratch(compute::layer_buffers(shape, batch))?;
        let experts = if shape.experts > 0 { Some(self.scratch(compute::expert_buffers(shape, batch))?) } else { None };
        Ok(Buffers::new(shape, turns, run.request.num_batch as usize, regions, experts))
    }

    fn output(
        &self,
        run: &LayerRun<'_>,
        output: &graph::Output,
        input: Option<&InputTables>,
        loader: &mut Loader<'_>,
    ) -> Result<Output, EngineError> {
        let norm = loader.norm(&output.norm)?;
        let matrix = match input {
            Some(input) if output.tied => Arc::clone(&input.embeddings),
            _ => loader.matrix(&output.weight)?,
        };
        let rows = compute::logit_rows(run.request.parallel);
        let buffers = OutputBuffers::new(rows as usize, self.scratch(compute::output_buffers(&run.graph.shape, rows))?);
        let (scale, softcap) = (output.scale, output.softcap);
        Ok(Output { norm, matrix, scale, softcap, buffers })
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

/// The frequencies of a rope, its factors read from the file.
fn turns(rope: &Rope, file: &ModelFile) -> Result<Turns, EngineError> {
    let read = |weight: &Weight| {
        let mut factors = vec![0f32; weight.columns];
        read_floats(&file.tensor(&weight.name)?, &mut factors).map(|()| factors)
    };
    let factors = rope.factors.as_ref().map(read).transpose()?;
    Ok(Turns { frequencies: rope.frequencies(factors.as_deref()), magnitude: rope.magnitude, pairing: rope.pairing })
}

fn too_large(what: &str) -> EngineError {
    EngineError::new(Reason::InvalidRequest, format!("{what} needs more bytes than 64 bits can count"))
}

impl PreparedRun for CpuRun {
    fn embed(&mut self, batch: &Batch, hidden: &mut [f32]) -> Result<(), EngineError> {
        let input = self.input.as_ref().ok_or_else(|| not_held("the embeddings"))?;
        for (at, row) in batch.tokens.iter().zip(hidden.chunks_exact_mut(self.embedding)) {
            input.embed(self.isa, *at, row);
        }
        Ok(())
    }

    fn step(&mut self, blocks: Range<usize>, batch: &Batch, hidden: &mut [f32], _: Next) -> Result<(), EngineError> {
        let held = blocks.start.checked_sub(self.first_block).and_then(|start| self.layers.get(start..start + blocks.len()));
        let layers: Option<Vec<&Layer>> = held.and_then(|layers| layers.iter().map(Option::as_ref).collect());
        match (layers, self.buffers.as_mut()) {
            (Some(layers), Some(buffers)) => buffers.step(self.isa, &self.pool, &layers, batch, hidden),
            _ => return Err(not_held(&format!("blocks {} to {}", blocks.start, blocks.end))),
        }
        Ok(())
    }

    fn logits(&mut self, rows: &[u32], hidden: &[f32]) -> Result<&[f32], EngineError> {
        let Output { norm, matrix, scale, softcap, buffers } = self.output.as_mut().ok_or_else(|| not_held("the output layer"))?;
        let logits = buffers.logits(self.isa, &self.pool, rows, hidden, norm, matrix);
        // SAFETY: these are its floats.
        unsafe {
            if *scale != 1.0 {
                self.isa.scale(logits.as_mut_ptr(), *scale, logits.len());
            }
            if let Some(softcap) = softcap {
                self.isa.softcap(logits.as_mut_ptr(), *softcap, logits.len());
            }
        }
        Ok(logits)
    }

    fn checkpoint(&mut self, slot: u32, index: usize, copy: Checkpoint) {
        self.layers.iter_mut().flatten().for_each(|layer| layer.cache.checkpoint(slot as usize, index, copy));
    }

    fn in_file(&self) -> usize {
        self.in_file.iter().map(|matrix| matrix.in_file()).sum()
    }

    fn bring_over(&mut self, bytes: usize) {
        let mut left = bytes;
        while left > 0
            && let Some(matrix) = self.in_file.last()
        {
            left = left.saturating_sub(matrix.bring_over(left, &self.pool));
            if matrix.in_file() == 0 {
                self.in_file.pop();
            }
        }
        if self.in_file.is_empty() {
            // Each page that was read brought some around it, too.
            self.maps.drain(..).for_each(|map| let_go(&map, 0..map.len()));
        }
    }

    fn normalise(&mut self, hidden: &mut [f32]) -> Result<(), EngineError> {
        if self.ends_in_a_norm {
            let output = self.output.as_ref().ok_or_else(|| not_held("the output layer"))?;
            raw_step::normalise(self.isa, &self.pool, hidden, self.embedding, &output.norm);
        }
        Ok(())
    }
}

impl InputTables {
    /// Writes a token's embedding.
    fn embed(&self, isa: Isa, at: TokenAt, row: &mut [f32]) {
        self.embeddings.read_row(at.token as usize, row);
        if self.scale != 1.0 {
            row.iter_mut().for_each(|x| *x *= self.scale);
        }
        let mut added = vec![0.0; if self.positions.is_some() { row.len() } else { 0 }];
        if let Some(positions) = &self.positions {
            positions.read_row(at.position as usize, &mut added);
            row.iter_mut().zip(&added).for_each(|(x, position)| *x += position);
        }
        if let Some(of_type) = &self.of_type {
            row.iter_mut().zip(of_type).for_each(|(x, of_type)| *x += of_type);
        }
        if let Some(norm) = &self.norm {
            let at = row.as_mut_ptr();
            // SAFETY: the row is as long as the norm's weight, which was checked.
            unsafe { norm.apply(isa, at, at) };
        }
    }
}
