//! A loaded model: the parts of it on their devices, driven step by step.

mod self_test;

use std::ops::Range;
use std::panic::resume_unwind;

#[cfg(feature = "simulated-gpu")]
use stowage_placement::DeviceKind;
use stowage_placement::gguf::Header;
use stowage_placement::{Reason, Request};

use crate::api::{EngineError, LoadProgress, LoadRequest, MeasuredDevice};
use crate::arena::Region;
use crate::backend::Next;
use crate::backend::cpu::Computing;
use crate::batch::Batch;
use crate::cache::{self, Checkpoint};
use crate::file_mmap::ModelFile;
use crate::graph::{CacheShape, Graph, Pooling};
use crate::load::{self, Part, Parts};
use crate::pool::default_threads;

/// One replica in memory. It knows token ids and logits; text is its caller's.
pub struct LoadedModel {
    header: Header,
    parts: Vec<Part>,
    /// Runs of blocks in the order of the model, each with the part that has it.
    order: Vec<(usize, Range<usize>)>,
    /// The parts that have the embeddings and the output layer.
    input: usize,
    output: usize,
    hidden: Region,
    /// Of each layer.
    caches: Vec<CacheShape>,
    pooling: Pooling,
    has_output: bool,
    request: Request,
    vocabulary: usize,
    embedding: usize,
    max_wanted: usize,
    threads: u32,
    measured: Vec<MeasuredDevice>,
    #[cfg(feature = "simulated-gpu")]
    _charge: crate::backend::simulated_gpu::Charge,
}

impl LoadedModel {
    /// Reads the file and puts each layer where the plan says. Blocks for as long as that takes.
    ///
    /// Errors: ModelNotFound, InvalidModelFile; EngineCannotRun where the model or the plan asks for what this build doesn't have; LoadFailed
    /// where the plan does not fit the file, or memory is refused.
    pub fn load(request: &LoadRequest, progress: &mut dyn FnMut(LoadProgress)) -> Result<LoadedModel, EngineError> {
        LoadedModel::load_with(request, Computing::default(), progress)
    }

    /// The same, computing on the CPU in a way of the caller's choice, for comparing them.
    pub fn load_with(
        request: &LoadRequest,
        computing: Computing,
        progress: &mut dyn FnMut(LoadProgress),
    ) -> Result<LoadedModel, EngineError> {
        LoadedModel::load_beside(request, computing, progress, |_| ()).map(|(model, ())| model)
    }

    /// The same, while something else is made of the file's header on a thread of its own.
    pub fn load_beside<T: Send>(
        request: &LoadRequest,
        computing: Computing,
        progress: &mut dyn FnMut(LoadProgress),
        beside: impl FnOnce(&Header) -> T + Send,
    ) -> Result<(LoadedModel, T), EngineError> {
        let file = ModelFile::open(&request.path)?;
        let graph = Graph::from_header(file.header(), request.request.num_ctx)?;
        load::check(&file, &graph, request)?;
        #[cfg(feature = "simulated-gpu")]
        let charge = {
            let gpus = request.plan.devices.iter().filter(|device| device.kind == DeviceKind::Gpu);
            crate::backend::simulated_gpu::Charge::new(
                gpus.map(|gpu| (gpu.id.clone(), gpu.total_bytes.saturating_sub(gpu.overhead_bytes))).collect(),
            )?
        };
        let (loaded, made) = std::thread::scope(|scope| {
            let making = scope.spawn(|| beside(file.header()));
            let loaded = load::parts(&file, &graph, request, computing, progress);
            (loaded, making.join().unwrap_or_else(|panic| resume_unwind(panic)))
        });
        let Parts { parts, hidden } = loaded?;
        let missing = || EngineError::new(Reason::LoadFailed, "the plan leaves out the input or the output layer");
        let mut order: Vec<(usize, Range<usize>)> = Vec::new();
        for (index, part) in parts.iter().enumerate() {
            order.extend(part.blocks.iter().map(|range| (index, range.clone())));
        }
        order.sort_by_key(|(_, range)| range.start);
        let model = LoadedModel {
            input: parts.iter().position(|part| part.input).ok_or_else(missing)?,
            output: parts.iter().position(|part| part.output).ok_or_else(missing)?,
            measured: parts.iter().map(|part| part.measured.clone()).collect(),
            parts,
            order,
            hidden,
            caches: graph.blocks.iter().map(|block| block.cache).collect(),
            pooling: graph.pooling,
            has_output: graph.output.is_some(),
            request: request.request.clone(),
            vocabulary: graph.input.embeddings.rows,
            embedding: graph.input.embeddings.columns,
            max_wanted: stowage_placement::compute::logit_rows(request.request.parallel) as usize,
            threads: if request.num_thread == 0 { default_threads() } else { request.num_thread },
            header: file.into_header(),
            #[cfg(feature = "simulated-gpu")]
            _charge: charge,
        };
        Ok((model, made))
    }

    /// Computes a batch, writing its tokens into the cache. Returns logits `[batch.wanted.len(), vocabulary]`, in the order of `batch.wanted`,
    /// valid until the next step.
    ///
    /// Errors: InvalidRequest where the batch is empty or beyond `num_batch`, wants more than [`LoadedModel::max_wanted`] rows, or names a
    /// token, slot or position that isn't there.
    pub fn step(&mut self, batch: &Batch) -> Result<&[f32], EngineError> {
        if batch.wanted.len() > self.max_wanted {
            return Err(invalid(format!(
                "logits of {} tokens were wanted at once; at most {} are possible",
                batch.wanted.len(),
                self.max_wanted
            )));
        }
        self.forward(batch)?;
        if batch.wanted.is_empty() {
            return Ok(&[]);
        }
        let hidden = &self.hidden.floats()[..batch.tokens.len() * self.embedding];
        self.parts[self.output].run.logits(&batch.wanted, hidden)
    }

    /// The same for any number of wanted rows, each shown in turn: the row's index in the batch, and its logits.
    pub fn step_each(&mut self, batch: &Batch, see: &mut dyn FnMut(u32, &[f32])) -> Result<(), EngineError> {
        self.forward(batch)?;
        let hidden = &self.hidden.floats()[..batch.tokens.len() * self.embedding];
        for rows in batch.wanted.chunks(self.max_wanted) {
            let logits = self.parts[self.output].run.logits(rows, hidden)?;
            for (row, logits) in rows.iter().zip(logits.chunks_exact(self.vocabulary)) {
                see(*row, logits);
            }
        }
        Ok(())
    }

    /// Computes a batch and returns the final normalised hidden state of every token, `[batch.tokens.len(), embedding]`, for pooling.
    pub fn embed_step(&mut self, batch: &Batch) -> Result<&[f32], EngineError> {
        self.forward(batch)?;
        let length = batch.tokens.len() * self.embedding;
        self.parts[self.output].run.normalise(&mut self.hidden.floats_mut()[..length])?;
        Ok(&self.hidden.floats()[..length])
    }

    /// Whether it gives logits; a model without an output layer gives hidden states alone.
    pub fn generates(&self) -> bool {
        self.has_output
    }

    /// How hidden states become one vector for a text.
    pub fn pooling(&self) -> Pooling {
        self.pooling
    }

    /// The longest text that is read; beyond a batch where that must be a whole text.
    pub fn longest_text(&self) -> u32 {
        if self.caches.iter().any(|shape| shape.for_a_batch) { self.num_ctx().min(self.num_batch()) } else { self.num_ctx() }
    }

    /// Whether a slot of which `from` tokens are cached can go on after its first `to`. Layers with a window can only go so far back.
    pub fn can_rewind(&self, from: usize, to: usize) -> bool {
        self.caches.iter().all(|shape| cache::can_rewind(shape, &self.request, from, to))
    }

    /// Keeps a copy of what can't be gone back to in a slot, or puts it back: the slot is then as when it was kept.
    pub fn checkpoint(&mut self, slot: u32, index: usize, copy: Checkpoint) {
        self.parts.iter_mut().for_each(|part| part.run.checkpoint(slot, index, copy));
    }

    /// Bytes of weights that are read from a file as yet.
    pub fn in_file(&self) -> usize {
        self.parts.iter().map(|part| part.run.in_file()).sum()
    }

    /// Brings about so many of those over to memory of its own.
    pub fn bring_over(&mut self, bytes: usize) {
        self.parts.iter_mut().for_each(|part| part.run.bring_over(bytes));
    }

    /// Takes a batch through all blocks; the hidden state is left in `self.hidden`.
    fn forward(&mut self, batch: &Batch) -> Result<(), EngineError> {
        self.check(batch)?;
        let hidden = &mut self.hidden.floats_mut()[..batch.tokens.len() * self.embedding];
        self.parts.iter_mut().for_each(|part| part.run.begin());
        self.parts[self.input].run.embed(batch, hidden)?;
        for (at, (part, blocks)) in self.order.iter().enumerate() {
            let after = self.order.get(at + 1).map_or(self.output, |(part, _)| *part);
            let next = if after == *part { Next::Same } else { Next::Other };
            self.parts[*part].run.step(blocks.clone(), batch, hidden, next)?;
        }
        Ok(())
    }

    fn check(&self, batch: &Batch) -> Result<(), EngineError> {
        let count = batch.tokens.len();
        if count == 0 || count > self.request.num_batch as usize {
            return Err(invalid(format!("a batch of {count} tokens was to be computed; it takes 1 to {}", self.request.num_batch)));
        }
        for at in &batch.tokens {
            if at.token as usize >= self.vocabulary || at.slot >= self.request.parallel || u64::from(at.position) >= self.request.num_ctx.0
            {
                return Err(invalid(format!(
                    "token {} in slot {} at position {} was to be computed; there are {} tokens, {} slots and {} positions",
                    at.token, at.slot, at.position, self.vocabulary, self.request.parallel, self.request.num_ctx
                )));
            }
        }
        for pair in batch.tokens.windows(2) {
            if pair[0].slot == pair[1].slot && pair[1].position != pair[0].position + 1 {
                return Err(invalid(format!("position {} follows {} in slot {}", pair[1].position, pair[0].position, pair[0].slot)));
            }
        }
        let first = &batch.tokens[0];
        let whole = |shape: &CacheShape| !shape.for_a_batch || first.position == 0 && batch.tokens.iter().all(|at| at.slot == first.slot);
        if !self.caches.iter().all(whole) {
            return Err(invalid("a model that reads a text at once was given parts of texts".into()));
        }
        match batch.wanted.iter().find(|&&row| row as usize >= count) {
            Some(row) => Err(invalid(format!("logits of row {row} were wanted from a batch of {count}"))),
            None => Ok(()),
        }
    }

    /// Number of tokens that the model knows, the width of a row of logits.
    pub fn vocabulary(&self) -> usize {
        self.vocabulary
    }

    /// Width of a hidden state.
    pub fn embedding(&self) -> usize {
        self.embedding
    }

    /// Sequences that have a cache, `parallel` of the request.
    pub fn slots(&self) -> u32 {
        self.request.parallel
    }

    /// Places in each sequence's cache, `num_ctx` of the request.
    pub fn num_ctx(&self) -> u32 {
        // Loading refuses more than 2^30.
        self.request.num_ctx.0 as u32
    }

    /// Most tokens in one step.
    pub fn num_batch(&self) -> u32 {
        self.request.num_batch
    }

    /// Most rows of logits in one step; never fewer than `slots`.
    pub fn max_wanted(&self) -> usize {
        self.max_wanted
    }

    /// What each device of the plan holds, as allocated.
    pub fn measured(&self) -> &[MeasuredDevice] {
        &self.measured
    }

    /// The file's header, its arrays included, until it is taken.
    pub fn header(&self) -> &Header {
        &self.header
    }

    /// Gives the header away, whose arrays take more than a tokenizer made of them; what is left is empty.
    pub fn take_header(&mut self) -> Header {
        std::mem::take(&mut self.header)
    }
}

fn invalid(message: String) -> EngineError {
    EngineError::new(Reason::InvalidRequest, message)
}

#[cfg(test)]
mod tests;
