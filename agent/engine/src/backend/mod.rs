//! The seam: a backend prepares a run of layers once, and gives back something that is stepped. Between the parts of a model goes nothing but the
//! hidden state, `[tokens, embedding]` in f32, so its layers may live on different backends, and a backend may fuse and lay out as it likes.

pub mod cpu;
#[cfg(any(feature = "cuda", feature = "emulated-cuda"))]
pub mod cuda;
pub mod reference;
#[cfg(feature = "simulated-gpu")]
pub mod simulated_gpu;

use std::ops::Range;

use stowage_placement::{Bytes, Reason, Request};

use crate::api::EngineError;
use crate::batch::Batch;
use crate::cache::Checkpoint;
use crate::file_mmap::ModelFile;
use crate::graph::Graph;

/// The part of a model that one device holds.
#[derive(Clone)]
pub struct LayerRun<'a> {
    pub graph: &'a Graph,
    /// Its blocks.
    pub blocks: Vec<Range<usize>>,
    /// It looks up embeddings: the host.
    pub input: bool,
    /// It holds the output layer.
    pub output: bool,
    pub request: &'a Request,
}

/// Prepares parts of models on one device.
pub trait Backend {
    /// Allocates everything that the run will ever use and reads its weights. `loaded` is told the bytes of each tensor that was read.
    fn prepare(&self, run: &LayerRun<'_>, file: &ModelFile, loaded: &mut dyn FnMut(Bytes)) -> Result<Box<dyn PreparedRun>, EngineError>;
}

/// Who has the hidden state of the batch under way next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// The same run, which may keep it to itself.
    Same,
    Other,
}

/// A run in memory. Batches were checked: their tokens, slots and positions are there.
pub trait PreparedRun: Send {
    /// Another batch comes: of an earlier one nothing counts but what it left in the cache.
    fn begin(&mut self) {}

    /// Writes the embeddings of the batch's tokens.
    fn embed(&mut self, batch: &Batch, hidden: &mut [f32]) -> Result<(), EngineError>;

    /// Takes the hidden state through some of its blocks, which write the tokens into their cache. Where the same run is next, what is in `hidden` afterwards
    /// is its own affair: it gets it back as it is.
    fn step(&mut self, blocks: Range<usize>, batch: &Batch, hidden: &mut [f32], next: Next) -> Result<(), EngineError>;

    /// Logits `[rows.len(), vocabulary]` of some of the tokens, valid until the next call.
    fn logits(&mut self, rows: &[u32], hidden: &[f32]) -> Result<&[f32], EngineError>;

    /// Keeps a copy of what a sequence's rings hold, or puts it back.
    fn checkpoint(&mut self, slot: u32, index: usize, copy: Checkpoint);

    /// Bytes of weights that are read from a file as yet.
    fn in_file(&self) -> usize {
        0
    }

    /// Brings about so many of those over to the device's own memory. Between steps.
    fn bring_over(&mut self, bytes: usize) {
        let _ = bytes;
    }

    /// Applies the output layer's norm to all tokens.
    fn normalise(&mut self, hidden: &mut [f32]) -> Result<(), EngineError>;
}

/// A run was asked for a part of the model that it doesn't hold.
fn not_held(what: &str) -> EngineError {
    EngineError::new(Reason::LoadFailed, format!("{what} was asked of a device that does not hold it"))
}
