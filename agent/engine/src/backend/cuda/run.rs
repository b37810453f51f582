//! A prepared run on a device, stepped.

use std::collections::{HashMap, HashSet};
use std::ops::Range;
use std::sync::Arc;

use stowage_placement::footprint::CHECKPOINTS;

use super::arguments::RotationsArguments;
use super::buffers::{Buffers, Rows};
use super::driver::{Captured, DevicePointer};
use super::kernels::{FEW, Kernels};
use super::layer::DeviceLayer;
use super::memory::DeviceArena;
use super::output::DeviceOutput;
use super::pass::Pass;
use super::raw_bytes::{bytes, bytes_mut};
use crate::api::EngineError;
use crate::backend::{Next, PreparedRun, not_held};
use crate::batch::Batch;
use crate::cache::Checkpoint;

/// A layer, its cache, and the copies of that where it is a ring.
pub struct HeldLayer {
    pub layer: DeviceLayer,
    pub cache: DevicePointer,
    pub copies: Option<DevicePointer>,
    pub slot_bytes: usize,
}

/// How positions become angles.
pub struct DeviceRope {
    pub frequencies: DevicePointer,
    pub to: DevicePointer,
    pub pairs: u32,
    pub magnitude: f32,
}

pub struct CudaRun {
    arena: Arc<DeviceArena>,
    kernels: Kernels,
    hidden: Option<Rows>,
    buffers: Option<Buffers>,
    ropes: Vec<DeviceRope>,
    layers: HashMap<usize, HeldLayer>,
    output: Option<DeviceOutput>,
    ends_in_a_norm: bool,
    /// Whether the hidden state is that of the batch under way.
    is_current: bool,
    /// A copy that was not made: the next step fails by it.
    failed: Option<EngineError>,
    /// Steps of few rows that were seen once, and those that were captured when they were seen again.
    seen: HashSet<(Range<usize>, Pass)>,
    captured: HashMap<(Range<usize>, Pass), Captured>,
}

impl CudaRun {
    #[allow(clippy::too_many_arguments)]
    pub fn new(
        arena: Arc<DeviceArena>,
        kernels: Kernels,
        hidden: Option<Rows>,
        buffers: Option<Buffers>,
        ropes: Vec<DeviceRope>,
        layers: HashMap<usize, HeldLayer>,
        output: Option<DeviceOutput>,
        ends_in_a_norm: bool,
    ) -> CudaRun {
        let (seen, captured) = (HashSet::new(), HashMap::new());
        CudaRun { arena, kernels, hidden, buffers, ropes, layers, output, ends_in_a_norm, is_current: false, failed: None, seen, captured }
    }

    /// The launches of some blocks.
    fn blocks(&self, blocks: &Range<usize>, pass: &Pass) -> Result<(), EngineError> {
        let buffers = self.buffers.as_ref().ok_or_else(|| not_held("blocks"))?;
        for DeviceRope { frequencies, to, pairs, magnitude } in &self.ropes {
            let (stride, pairs) = (buffers.rotations.stride, *pairs);
            let (frequencies, tokens, to, magnitude) = (*frequencies, buffers.tokens, *to, *magnitude);
            let arguments = RotationsArguments { frequencies, tokens, to, stride, pairs, magnitude };
            self.kernels.launch_rows(self.kernels.rotations, pass.rows, pairs, &arguments)?;
        }
        for block in blocks.clone() {
            let held = self.layers.get(&block).ok_or_else(|| not_held(&format!("block {block}")))?;
            held.layer.run(&self.kernels, pass)?;
        }
        Ok(())
    }

    /// The same; steps of few rows, as when answers are generated, by one call once they were captured.
    fn blocks_or_captured(&mut self, blocks: Range<usize>, pass: Pass) -> Result<(), EngineError> {
        let driver = Arc::clone(&self.arena.driver);
        let key = (blocks, pass);
        if let Some(captured) = self.captured.get(&key) {
            return driver.replay(*captured);
        }
        if pass.rows > FEW || self.seen.insert(key.clone()) {
            return self.blocks(&key.0, &key.1);
        }
        driver.begin_capture()?;
        let launched = self.blocks(&key.0, &key.1);
        let captured = driver.end_capture();
        launched?;
        let captured = captured?;
        self.captured.insert(key, captured);
        driver.replay(captured)
    }

    fn hidden(&self) -> Result<Rows, EngineError> {
        self.hidden.ok_or_else(|| not_held("the hidden state"))
    }
}

impl PreparedRun for CudaRun {
    fn embed(&mut self, _: &Batch, _: &mut [f32]) -> Result<(), EngineError> {
        Err(not_held("the embeddings"))
    }

    fn step(&mut self, blocks: Range<usize>, batch: &Batch, hidden: &mut [f32], next: Next) -> Result<(), EngineError> {
        if let Some(error) = self.failed.take() {
            return Err(error);
        }
        let at = self.hidden()?.at;
        let driver = Arc::clone(&self.arena.driver);
        if !std::mem::take(&mut self.is_current) {
            driver.upload(at, bytes(hidden))?;
        }
        let buffers = self.buffers.as_ref().ok_or_else(|| not_held("blocks"))?;
        let pass = Pass::upload(batch, buffers, &*driver)?;
        self.blocks_or_captured(blocks, pass)?;
        match next {
            Next::Same => self.is_current = true,
            Next::Other => driver.download(at, bytes_mut(hidden))?,
        }
        Ok(())
    }

    fn logits(&mut self, rows: &[u32], hidden: &[f32]) -> Result<&[f32], EngineError> {
        let output = self.output.as_mut().ok_or_else(|| not_held("the output layer"))?;
        // Logits of the same batch may be asked for several times.
        output.logits(&self.kernels, rows, if self.is_current { None } else { Some(hidden) })
    }

    fn checkpoint(&mut self, slot: u32, index: usize, copy: Checkpoint) {
        for HeldLayer { cache, copies, slot_bytes, .. } in self.layers.values() {
            let Some(copies) = copies else { continue };
            let cells = cache.after(slot as usize * slot_bytes);
            let copied = copies.after((slot as usize * CHECKPOINTS as usize + index) * slot_bytes);
            let (from, to) = if copy == Checkpoint::Keep { (cells, copied) } else { (copied, cells) };
            if let Err(error) = self.arena.driver.copy(from, to, *slot_bytes) {
                self.failed = Some(error);
            }
        }
    }

    fn normalise(&mut self, hidden: &mut [f32]) -> Result<(), EngineError> {
        if self.ends_in_a_norm {
            let Rows { at, stride } = self.hidden()?;
            let output = self.output.as_ref().ok_or_else(|| not_held("the output layer"))?;
            if !self.is_current {
                self.arena.driver.upload(at, bytes(hidden))?;
            }
            output.normalise(&self.kernels, hidden.len() as u32 / stride)?;
            self.is_current = false;
            return self.arena.driver.download(at, bytes_mut(hidden));
        }
        if std::mem::take(&mut self.is_current) {
            self.arena.driver.download(self.hidden()?.at, bytes_mut(hidden))?;
        }
        Ok(())
    }

    fn begin(&mut self) {
        self.is_current = false;
    }
}
