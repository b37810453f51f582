//! How well each node could do at best, from sums alone: planning thousands of nodes to take one would take too long.
//!
//! What is said here of a node is never worse than its plan turns out to be, and mostly the same: so nodes are planned in this order, and only
//! as long as the next one could be better than the best that was planned.

use std::cmp::Reverse;
use std::collections::HashMap;
use std::rc::Rc;

use crate::capability::Engine;
use crate::device_plan::{Device, HostCosts, MOST_TOLD_APART};
use crate::fit_report::{Allowed, Demand, RunsOn, largest, smallest};
use crate::footprint::FootprintError;
use crate::layout::Backend;
use crate::model_summary::ModelSummary;
use crate::node_choice::Node;
use crate::node_choice::figures::Figures;
use crate::node_choice::runs::Runs;
use crate::reason::Reason;
use crate::request::Asked;
use crate::units::{Bytes, Tokens};

/// What can be told of a node without planning it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Prospect {
    /// It may take the replica, and then these figures are the best that it could have.
    AtBest(Figures),
    /// It can't take it, for this reason, and is short by at least so much.
    Refused(Reason, Bytes),
}

/// A kind of GPU at a context: what decides the bytes of layers there.
type KindAt = (Tokens, Backend, Bytes);

/// One request, to be held against many nodes.
pub(super) struct Survey<'a> {
    summary: &'a ModelSummary,
    asked: &'a Asked,
    demand: Demand,
    allowed: Allowed,
    /// Layers wished on GPU, the last ones of all.
    wished: u32,
    max_gpus: usize,
    runs_on: RunsOn,
    engine: Engine,
    gpus: HashMap<KindAt, Rc<Runs>>,
    /// The one asked for last, since most nodes are of one kind.
    last_gpu: Option<(KindAt, Rc<Runs>)>,
    hosts: HashMap<(Tokens, Backend), Rc<HostCosts>>,
    last_host: Option<((Tokens, Backend), Rc<HostCosts>)>,
    /// What the usable GPUs of the node in question offer, and how many blocks each could hold.
    offers: Vec<(Bytes, u32)>,
    /// Of the same node, at the context at which the blocks were counted.
    counted: Option<(Tokens, Counted)>,
}

/// The kind of a node's GPUs.
#[derive(Clone)]
struct Kind {
    runs: Rc<Runs>,
    /// All of them are of this kind.
    only: bool,
}

/// The GPUs of a node for which the blocks that each could hold were counted.
#[derive(Clone)]
struct Counted {
    kind: Kind,
    /// The most layers that one of them holds more if it holds the output layer: one must.
    output: i64,
}

/// What the GPUs of a node could hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Sketch {
    layers: u32,
    gpus: usize,
    left: Bytes,
    /// That they hold it is sure.
    sure: bool,
}

impl<'a> Survey<'a> {
    pub fn new(engine: Engine, summary: &'a ModelSummary, asked: &'a Asked, demand: Demand) -> Survey<'a> {
        Survey {
            summary,
            asked,
            demand,
            allowed: Allowed::of(asked, summary.trained_context),
            wished: demand.wished(summary.total_layers().0),
            max_gpus: asked.max_devices.unwrap_or(u32::MAX) as usize,
            runs_on: RunsOn::of(summary, asked),
            engine,
            gpus: HashMap::new(),
            last_gpu: None,
            hosts: HashMap::new(),
            last_host: None,
            offers: Vec::new(),
            counted: None,
        }
    }

    /// What this node could do at best. An error: sizes that can't be counted.
    pub fn prospect(&mut self, node: &Node) -> Result<Prospect, FootprintError> {
        let trained = self.summary.trained_context;
        self.counted = None;
        if !self.runs_on.backend(node.devices.host.backend) {
            return self.refused(node, Reason::EngineCannotRun);
        }
        match self.allowed {
            Allowed::Only(num_ctx) if num_ctx > trained => self.refused(node, Reason::ContextBeyondTrained),
            Allowed::Between { least, .. } if least > trained => self.refused(node, Reason::ContextBeyondTrained),
            Allowed::Only(num_ctx) => self.at(node, num_ctx),
            Allowed::Between { least, on_gpu, on_cpu } => match self.demand {
                Demand::None => self.on_host(node, least, on_cpu),
                Demand::Exactly(_) => self.between(node, least, on_cpu, on_cpu),
                Demand::All | Demand::AsManyAsFit => self.between(node, least, on_gpu, on_cpu),
            },
        }
    }

    /// With this context.
    fn at(&mut self, node: &Node, num_ctx: Tokens) -> Result<Prospect, FootprintError> {
        let sketch = self.sketch(node, num_ctx)?;
        if sketch.layers < self.wished && self.demand != Demand::AsManyAsFit {
            return self.refused_by_gpus(node);
        }
        if sketch.layers < self.wished
            && let Some(prospect) = self.without_experts(node, num_ctx, num_ctx)?
        {
            return Ok(prospect);
        }
        let short_of_memory = self.host_needs(node, num_ctx, sketch.layers)? > node.devices.host.offered;
        if short_of_memory && (sketch.sure || matches!(self.demand, Demand::AsManyAsFit | Demand::None)) {
            return self.refused(node, Reason::InsufficientMemory);
        }
        self.figures(node, num_ctx, sketch)
    }

    fn figures(&mut self, node: &Node, num_ctx: Tokens, sketch: Sketch) -> Result<Prospect, FootprintError> {
        let left = match sketch.layers {
            0 => node.devices.host.offered.saturating_sub(self.host_needs(node, num_ctx, 0)?),
            _ => sketch.left,
        };
        Ok(Prospect::AtBest(Figures::new(sketch.layers, self.summary.total_layers().0, num_ctx, sketch.gpus, left)))
    }

    /// With the longest context at which the layers wished could be on GPU; where there is none, with the longest that the host could bear.
    fn between(&mut self, node: &Node, least: Tokens, on_gpu: Tokens, on_cpu: Tokens) -> Result<Prospect, FootprintError> {
        let mut longest = None;
        largest(least, on_gpu, |num_ctx| {
            let sketch = self.sketch(node, num_ctx)?;
            let enough = sketch.layers >= self.wished;
            // What is tried after one that is enough is longer.
            longest = if enough { Some((num_ctx, sketch)) } else { longest };
            Ok::<bool, FootprintError>(enough)
        })?;
        if let Some((num_ctx, sketch)) = longest {
            return self.figures(node, num_ctx, sketch);
        }
        if self.demand != Demand::AsManyAsFit {
            return self.refused_by_gpus(node);
        }
        if self.host_needs(node, on_cpu, 0)? <= node.devices.host.offered {
            return self.at(node, on_cpu);
        }
        if let Some(prospect) = self.without_experts(node, least, on_cpu)? {
            return Ok(prospect);
        }
        let most = self.sketch(node, least)?.layers;
        if self.host_needs(node, least, most)? > node.devices.host.offered {
            return self.refused(node, Reason::InsufficientMemory);
        }
        // The shortest context leaves most layers on GPU, and the longest is the best.
        let total = self.summary.total_layers().0;
        Ok(Prospect::AtBest(Figures::new(most, total, on_cpu, 0, Bytes::ZERO)))
    }

    /// With all layers on GPU, not all of them with their experts, if that may be had with the shortest of the contexts.
    fn without_experts(&mut self, node: &Node, least: Tokens, most: Tokens) -> Result<Option<Prospect>, FootprintError> {
        if !self.offloads(node) {
            return Ok(None);
        }
        let Some(kind) = self.kind(node, least)? else { return Ok(None) };
        let offered: Bytes = self.offers.iter().map(|(offered, _)| *offered).sum();
        let fewest = if kind.only { kind.runs.least_without_experts(offered) } else { Some(1) };
        let total = self.summary.total_layers().0;
        if self.host_needs(node, least, total)? > node.devices.host.offered {
            return Ok(None);
        }
        let figures = |fewest| Figures::new(total, total, most, 0, Bytes::ZERO).without_experts(fewest);
        Ok(fewest.map(|fewest| Prospect::AtBest(figures(fewest))))
    }

    /// Whether layers may leave their experts in host memory there.
    fn offloads(&self, node: &Node) -> bool {
        let all = || self.usable(node).all(|gpu| (self.engine.offloads_experts)(gpu.backend));
        self.demand == Demand::AsManyAsFit && self.summary.has_experts() && all()
    }

    /// With the longest context that the host alone can bear.
    fn on_host(&mut self, node: &Node, least: Tokens, most: Tokens) -> Result<Prospect, FootprintError> {
        let found = largest(least, most, |num_ctx| Ok(self.host_needs(node, num_ctx, 0)? <= node.devices.host.offered))?;
        match found {
            Some(num_ctx) => self.at(node, num_ctx),
            None => self.refused(node, Reason::InsufficientMemory),
        }
    }

    fn refused_by_gpus(&mut self, node: &Node) -> Result<Prospect, FootprintError> {
        let usable = node.devices.gpus.iter().any(|gpu| self.runs_on.backend(gpu.backend));
        let reason = match (usable, node.devices.gpus.is_empty()) {
            (true, _) => Reason::InsufficientVRAM,
            (false, true) => Reason::NoUsableGPU,
            (false, false) => Reason::EngineCannotRun,
        };
        self.refused(node, reason)
    }

    fn refused(&mut self, node: &Node, reason: Reason) -> Result<Prospect, FootprintError> {
        Ok(Prospect::Refused(reason, self.short_by(node)?))
    }

    /// The least that a node is short by when it is refused, at the context that is then reported on.
    pub fn short_by(&mut self, node: &Node) -> Result<Bytes, FootprintError> {
        let num_ctx = match (self.allowed, self.demand) {
            (Allowed::Only(num_ctx), _) => num_ctx,
            (Allowed::Between { least, on_gpu, .. }, Demand::All) => smallest(least, on_gpu),
            (Allowed::Between { least, on_cpu, .. }, _) => smallest(least, on_cpu),
        };
        if self.wished == 0 {
            return Ok(self.host_needs(node, num_ctx, 0)?.saturating_sub(node.devices.host.offered));
        }
        let known = self.counted.take().filter(|(at, _)| *at == num_ctx);
        let Counted { kind, output } = match known {
            Some((_, counted)) => counted,
            None => match self.kind(node, num_ctx)? {
                Some(kind) => self.count(node, num_ctx, kind)?,
                None => return Ok(self.gpu(num_ctx, Backend::Cuda, node.devices.defaults.overhead_bytes)?.whole()),
            },
        };
        if !kind.only || self.max_gpus == 0 {
            return Ok(Bytes::ZERO);
        }
        // What the others hold, and then what is left for the one with the largest offer, with the output layer or without.
        let (largest, blocks) = self.offers.iter().copied().max_by_key(|(offered, _)| *offered).unwrap_or_default();
        let others = self.most_blocks(self.max_gpus) - blocks;
        let blocks = self.wished.saturating_sub(others.saturating_add_signed(output as i32).max(1));
        let least = kind.runs.least_of_blocks(blocks).min(kind.runs.last(self.wished.saturating_sub(others)));
        Ok(Bytes(least.saturating_sub(largest.0)))
    }

    /// What the GPUs could hold of the layers wished. Where those are too few to be taken, it is not told how.
    fn sketch(&mut self, node: &Node, num_ctx: Tokens) -> Result<Sketch, FootprintError> {
        let none = Sketch { layers: 0, gpus: 0, left: Bytes::ZERO, sure: false };
        if self.wished == 0 || self.max_gpus == 0 {
            return Ok(none);
        }
        let Some(kind) = self.kind(node, num_ctx)? else { return Ok(none) };
        if kind.only
            && let Some(left) = self.least_left(kind.runs.whole())
        {
            return Ok(Sketch { layers: self.wished, gpus: 1, left, sure: true });
        }
        let counted = self.count(node, num_ctx, kind)?;
        self.counted = Some((num_ctx, counted.clone()));
        let Counted { kind, output } = counted;
        let blocks = self.most_blocks(self.max_gpus);
        let layers = (i64::from(blocks) + output).clamp(0, i64::from(self.wished)) as u32;
        if layers == 0 || layers < self.wished && self.demand != Demand::AsManyAsFit {
            return Ok(Sketch { layers, ..none });
        }
        let (gpus, offered) = match layers < self.wished && self.max_gpus >= self.offers.len() {
            true => self.all_that_hold_any(),
            false => self.fewest(i64::from(layers) - output),
        };
        let left = match gpus {
            _ if !kind.only => Bytes::ZERO,
            1 => self.least_left(Bytes(kind.runs.last(layers))).unwrap_or_default(),
            // Those with the largest offers are taken, unless some are taken for equal.
            _ if self.offers.len() <= MOST_TOLD_APART => Bytes(offered.0.saturating_sub(kind.runs.most_of(layers, gpus))),
            _ => Bytes::ZERO,
        };
        Ok(Sketch { layers, gpus, left, sure: false })
    }

    /// The most blocks that so many of the GPUs hold together.
    fn most_blocks(&mut self, gpus: usize) -> u32 {
        if gpus < self.offers.len() {
            self.sort_offers();
        }
        self.offers.iter().take(gpus).map(|(_, blocks)| *blocks).sum()
    }

    /// Those that hold most first. Of one kind, these are also those that offer most.
    fn sort_offers(&mut self) {
        self.offers.sort_unstable_by_key(|(offered, blocks)| Reverse((*blocks, *offered)));
    }

    /// How many GPUs hold at least one block, and what they offer together. One holds the output layer even if it holds no block.
    fn all_that_hold_any(&self) -> (usize, Bytes) {
        let holding = self.offers.iter().filter(|(_, blocks)| *blocks > 0);
        (holding.clone().count().max(1), holding.map(|(offered, _)| *offered).sum())
    }

    /// How few of the GPUs it takes for so many blocks, at least one, and what they offer together.
    fn fewest(&mut self, blocks: i64) -> (usize, Bytes) {
        self.sort_offers();
        let (first, others) = (self.offers[0], &self.offers[1..]);
        let (mut gpus, mut held, mut offered) = (1, i64::from(first.1), first.0);
        for (more, layers) in others {
            if held >= blocks {
                break;
            }
            (gpus, held, offered) = (gpus + 1, held + i64::from(*layers), offered.saturating_add(*more));
        }
        (gpus, offered)
    }

    /// What the GPU that is the tightest for so many bytes has left.
    fn least_left(&self, bytes: Bytes) -> Option<Bytes> {
        let left = self.offers.iter().filter(|(offered, _)| *offered >= bytes).map(|(offered, _)| offered.saturating_sub(bytes));
        left.min()
    }

    fn usable<'n>(&self, node: &'n Node) -> impl Iterator<Item = &'n Device> + use<'n> {
        let usable = self.runs_on.usable(&node.devices);
        node.devices.gpus.iter().filter(move |gpu| usable(gpu))
    }

    /// The kind of the node's first usable GPU. What each of them offers is listed.
    fn kind(&mut self, node: &Node, num_ctx: Tokens) -> Result<Option<Kind>, FootprintError> {
        let (mut first, mut only) = (None, true);
        self.counted = None;
        self.offers.clear();
        for gpu in self.usable(node) {
            let kind = (gpu.backend, gpu.overhead);
            only &= *first.get_or_insert(kind) == kind;
            self.offers.push((gpu.offered, 0));
        }
        let Some((backend, overhead)) = first else { return Ok(None) };
        Ok(Some(Kind { runs: self.gpu(num_ctx, backend, overhead)?, only }))
    }

    /// Counts how many blocks each of the GPUs listed could hold.
    fn count(&mut self, node: &Node, num_ctx: Tokens, kind: Kind) -> Result<Counted, FootprintError> {
        let mut output = i64::MIN;
        if kind.only {
            for (offered, blocks) in &mut self.offers {
                let (most, more) = kind.runs.most(*offered);
                (*blocks, output) = (most, output.max(more));
            }
        } else {
            for (index, gpu) in self.usable(node).enumerate() {
                let (most, more) = self.gpu(num_ctx, gpu.backend, gpu.overhead)?.most(gpu.offered);
                (self.offers[index].1, output) = (most, output.max(more));
            }
        }
        Ok(Counted { kind, output })
    }

    fn gpu(&mut self, num_ctx: Tokens, backend: Backend, overhead: Bytes) -> Result<Rc<Runs>, FootprintError> {
        let kind = (num_ctx, backend, overhead);
        if let Some((last, runs)) = &self.last_gpu
            && *last == kind
        {
            return Ok(Rc::clone(runs));
        }
        let runs = match self.gpus.get(&kind) {
            Some(runs) => Rc::clone(runs),
            None => Rc::new(Runs::new(self.summary, &self.asked.with_num_ctx(num_ctx), backend, overhead, self.wished)?),
        };
        self.gpus.insert(kind, Rc::clone(&runs));
        self.last_gpu = Some((kind, Rc::clone(&runs)));
        Ok(runs)
    }

    fn host_needs(&mut self, node: &Node, num_ctx: Tokens, gpu_layers: u32) -> Result<Bytes, FootprintError> {
        let host = &node.devices.host;
        Ok(self.host(num_ctx, host.backend)?.needs(gpu_layers).saturating_add(host.overhead))
    }

    fn host(&mut self, num_ctx: Tokens, backend: Backend) -> Result<Rc<HostCosts>, FootprintError> {
        let kind = (num_ctx, backend);
        if let Some((last, costs)) = &self.last_host
            && *last == kind
        {
            return Ok(Rc::clone(costs));
        }
        let costs = match self.hosts.get(&kind) {
            Some(costs) => Rc::clone(costs),
            None => Rc::new(HostCosts::new(self.summary, &self.asked.with_num_ctx(num_ctx), backend)?),
        };
        self.hosts.insert(kind, Rc::clone(&costs));
        self.last_host = Some((kind, Rc::clone(&costs)));
        Ok(costs)
    }
}
