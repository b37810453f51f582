//! Plans one model on one node's devices.

mod experts;

use std::cell::OnceCell;

use crate::capability::Engine;
use crate::device_plan::costs::{GpuCosts, HostCosts};
use crate::device_plan::packing::{Class, Costs, Packing, Run, Table};
use crate::device_plan::{Device, DeviceAllocation, DeviceKind, DevicePlan, NodeDevices, Split};
use crate::footprint::{FootprintError, Span};
use crate::layout::Backend;
use crate::model_summary::ModelSummary;
use crate::request::Request;
use crate::units::{Bytes, LayerCount};

/// Beyond this many sets of GPUs, GPUs that offer nearly the same are taken for equal, at the smaller offer. Ten GPUs with ten different
/// offers are still told apart.
const MOST_SETS: usize = 1 << MOST_TOLD_APART;

/// So many GPUs are never taken for equal where they are not.
pub(crate) const MOST_TOLD_APART: usize = 10;

/// What does not change with the request: the model and the devices, grouped.
pub(crate) struct Planner<'a> {
    pub summary: &'a ModelSummary,
    pub gpus: Vec<&'a Device>,
    pub host: &'a Device,
    groups: Groups,
    /// Backend and overhead, each pair once.
    kinds: Vec<(Backend, Bytes)>,
    max_gpus: u32,
    /// Layers may leave their experts in host memory.
    offloads: bool,
    /// What a GPU would need where there is none.
    default_overhead: Bytes,
}

impl<'a> Planner<'a> {
    /// `max_gpus`: the most that a replica may use.
    pub fn new(
        summary: &'a ModelSummary,
        devices: &'a NodeDevices,
        usable: impl Fn(&Device) -> bool,
        engine: Engine,
        max_gpus: Option<u32>,
    ) -> Planner<'a> {
        let mut gpus: Vec<&Device> = devices.gpus.iter().filter(|gpu| usable(gpu)).collect();
        gpus.sort_by(|a, b| a.id.cmp(&b.id));
        let mut kinds: Vec<(Backend, Bytes)> = gpus.iter().map(|gpu| (gpu.backend, gpu.overhead)).collect();
        kinds.sort_unstable();
        kinds.dedup();
        let offers: Vec<Bytes> = gpus.iter().map(|gpu| gpu.offered).collect();
        let groups = Groups::of(&gpus, &offers, &kinds);
        let offloads = summary.has_experts() && gpus.iter().all(|gpu| (engine.offloads_experts)(gpu.backend));
        let (max_gpus, default_overhead) = (max_gpus.unwrap_or(u32::MAX), devices.defaults.overhead_bytes);
        Planner { summary, gpus, host: &devices.host, groups, kinds, max_gpus, offloads, default_overhead }
    }

    /// The most GPUs that a replica may use.
    pub fn max_gpus(&self) -> u32 {
        self.max_gpus
    }

    /// Sizes everything for one request.
    pub fn sized(&self, request: &Request) -> Result<SizedPlanner<'_>, FootprintError> {
        // Without a GPU it is told what one would need, as the footprint does.
        let none = [(Backend::Cuda, self.default_overhead)];
        let kinds = if self.kinds.is_empty() { &none[..] } else { &self.kinds };
        let costs = kinds.iter().map(|(backend, overhead)| GpuCosts::new(self.summary, request, *backend, *overhead));
        Ok(SizedPlanner {
            planner: self,
            costs: costs.collect::<Result<_, _>>()?,
            host: HostCosts::new(self.summary, request, self.host.backend)?,
            table: OnceCell::new(),
        })
    }
}

/// A planner with the sizes for one request.
pub(crate) struct SizedPlanner<'a> {
    planner: &'a Planner<'a>,
    /// In the order of the planner's kinds.
    costs: Vec<GpuCosts>,
    host: HostCosts,
    table: OnceCell<Table>,
}

impl SizedPlanner<'_> {
    pub fn total_layers(&self) -> u32 {
        self.host.total_layers()
    }

    /// The largest number of last layers that fit on the GPUs, whatever the host holds.
    pub fn most_gpu_layers(&self) -> u32 {
        self.packing(|packing| packing.most())
    }

    /// Whether the GPUs hold the last `gpu_layers` layers.
    pub fn gpus_hold(&self, gpu_layers: u32) -> bool {
        self.held_by(&self.planner.groups, gpu_layers, |_| self.most_gpu_layers())
    }

    /// Whether they did if they offered this much, in the order of the planner's GPUs.
    pub fn gpus_would_hold(&self, gpu_layers: u32, offers: &[Bytes]) -> bool {
        let groups = Groups::of(&self.planner.gpus, offers, &self.planner.kinds);
        self.held_by(&groups, gpu_layers, |costs| {
            let table = Table::of_all(costs, &groups.classes, self.total_layers(), self.planner.max_gpus);
            Packing::new(costs, &groups.classes, self.total_layers(), self.planner.max_gpus, &table).most()
        })
    }

    /// Where one of them or their sum says so already, the ways to share the layers are not gone through.
    fn held_by(&self, groups: &Groups, gpu_layers: u32, most: impl FnOnce(&ClassCosts<'_>) -> u32) -> bool {
        let total = self.total_layers();
        if gpu_layers == 0 || gpu_layers > total {
            return gpu_layers == 0;
        }
        let (classes, costs) = (&groups.classes, self.class_costs(groups));
        let alone = |class: usize| costs.bytes(class, total - gpu_layers, total) <= classes[class].offered;
        if self.planner.max_gpus > 0 && (0..classes.len()).any(alone) {
            return true;
        }
        let least = self.costs.iter().map(|costs| costs.sizes.bytes(total - gpu_layers, total)).min();
        least.is_some_and(|least| least <= groups.offered()) && most(&costs) >= gpu_layers
    }

    fn class_costs<'g>(&'g self, groups: &'g Groups) -> ClassCosts<'g> {
        ClassCosts { kinds: &self.costs, kind_of: &groups.kind_of, without_experts_below: 0 }
    }

    /// How the GPUs can share whole layers, handed to `ask`.
    fn packing<T>(&self, ask: impl FnOnce(Packing<'_, ClassCosts<'_>>) -> T) -> T {
        let (classes, layers, max_gpus) = (&self.planner.groups.classes, self.total_layers(), self.planner.max_gpus);
        let costs = self.class_costs(&self.planner.groups);
        let table = self.table.get_or_init(|| Table::of_all(&costs, classes, layers, max_gpus));
        ask(Packing::new(&costs, classes, layers, max_gpus, table))
    }

    /// Likewise where the experts of the layers below `end` are in host memory.
    fn packing_without_experts<T>(&self, end: u32, ask: impl FnOnce(Packing<'_, ClassCosts<'_>>) -> T) -> T {
        let (classes, layers, max_gpus) = (&self.planner.groups.classes, self.total_layers(), self.planner.max_gpus);
        let costs = ClassCosts { without_experts_below: end, ..self.class_costs(&self.planner.groups) };
        let table = Table::of_all(&costs, classes, layers, max_gpus);
        ask(Packing::new(&costs, classes, layers, max_gpus, &table))
    }

    /// What the host needs for what is not on GPU.
    pub fn host_needs(&self, split: impl Into<Split>) -> Bytes {
        self.host.needs(split).saturating_add(self.planner.host.overhead)
    }

    pub fn host_fits(&self, split: impl Into<Split>) -> bool {
        self.host_needs(split) <= self.planner.host.offered
    }

    /// The plan with exactly this on GPU; `None` where the GPUs can't hold it. The host is not checked.
    pub fn plan(&self, split: impl Into<Split>) -> Option<DevicePlan> {
        let split = split.into();
        let runs = self.runs(split)?;
        let mut devices: Vec<DeviceAllocation> = runs.iter().map(|run| self.gpu_allocation(run, split)).collect();
        devices.push(self.host_allocation(split));
        let processor = processor(&devices, split, self.total_layers(), self.host.without_layers());
        let (gpu_layers, total_layers) = (LayerCount(split.gpu_layers), LayerCount(self.total_layers()));
        Some(DevicePlan { processor, gpu_layers, total_layers, devices })
    }

    fn runs(&self, split: Split) -> Option<Vec<Run>> {
        match split {
            Split { gpu_layers: 0, .. } => Some(Vec::new()),
            Split { gpu_layers, without_experts: 0 } => self.packing(|packing| packing.assign(gpu_layers)),
            Split { gpu_layers, .. } => {
                let end = split.experts_on_host(self.total_layers()).end;
                self.packing_without_experts(end, |packing| packing.assign(gpu_layers))
            }
        }
    }

    /// What the last `gpu_layers` layers need on GPU where `gpus` GPUs share them: each pays for scratch memory and for its context.
    pub fn gpu_needs(&self, gpu_layers: u32, gpus: u64) -> Needs {
        let Some(costs) = self.costs.first() else { return Needs::default() };
        let first = self.total_layers().saturating_sub(gpu_layers);
        let Span { weights, kv_cache, state, checkpoints } = costs.sizes.span(first, self.total_layers());
        // One of them holds the output layer, and may hold blocks too.
        let others = |bytes: Bytes| Bytes(bytes.0.saturating_mul(gpus.saturating_sub(1)));
        Needs {
            weights,
            cache: kv_cache.saturating_add(state).saturating_add(checkpoints),
            compute: costs.compute(first, self.total_layers()).saturating_add(others(costs.compute_blocks)),
            overhead: costs.overhead.saturating_add(others(costs.overhead)),
        }
    }

    /// The fewest bytes by which the GPU with the largest offer would have to offer more, so that `gpu_layers` fit.
    pub fn shortfall(&self, gpu_layers: u32) -> Bytes {
        let classes = &self.planner.groups.classes;
        let Some(largest) = (0..classes.len()).max_by_key(|class| classes[*class].offered) else {
            return self.gpu_needs(gpu_layers, 1).total();
        };
        Bytes(self.packing(|packing| packing.shortfall(gpu_layers, largest)))
    }

    /// What layers `first` to `end - 1` take on a GPU, all included.
    #[cfg(test)]
    pub fn bytes_of_run(&self, first: u32, end: u32) -> Bytes {
        self.costs[0].bytes(first, end)
    }

    fn gpu_allocation(&self, run: &Run, split: Split) -> DeviceAllocation {
        let gpu = self.planner.gpus[run.gpu];
        // Its own kind's, not its class's: a class may have been merged with others.
        let kind = self.planner.kinds.binary_search(&(gpu.backend, gpu.overhead)).unwrap_or_default();
        let costs = &self.costs[kind];
        let mut span = costs.sizes.span(run.first, run.end);
        span.weights = span.weights.saturating_sub(costs.experts_left(run.first, run.end, split.experts_on_host(self.total_layers()).end));
        allocation(gpu, DeviceKind::Gpu, vec![[run.first, run.end - 1]], span, costs.compute(run.first, run.end), gpu.overhead)
    }

    fn host_allocation(&self, split: Split) -> DeviceAllocation {
        let end = split.host_layers(self.total_layers());
        let layer_ranges = if end > 0 { vec![[0, end - 1]] } else { Vec::new() };
        let host = self.planner.host;
        let mut span = self.host.span(end);
        span.weights = span.weights.saturating_add(self.host.experts(split));
        let overhead = host.overhead.saturating_add(self.host.process);
        let on_host = allocation(host, DeviceKind::Host, layer_ranges, span, self.host.compute(split), overhead);
        DeviceAllocation { expert_layer_ranges: self.expert_layer_ranges(split), ..on_host }
    }
}

fn allocation(
    device: &Device,
    kind: DeviceKind,
    layer_ranges: Vec<[u32; 2]>,
    span: Span,
    compute_bytes: Bytes,
    overhead_bytes: Bytes,
) -> DeviceAllocation {
    DeviceAllocation {
        id: device.id.clone(),
        kind,
        layer_ranges,
        expert_layer_ranges: Vec::new(),
        weights_bytes: span.weights,
        kv_cache_bytes: span.kv_cache,
        state_bytes: span.state,
        checkpoint_bytes: span.checkpoints,
        compute_bytes,
        overhead_bytes,
        total_bytes: [span.total(), compute_bytes, overhead_bytes].into_iter().sum(),
        uncertainty_bytes: device.uncertainty,
        free_bytes: device.offered,
        margin_bytes: device.margin,
    }
}

/// Bytes that some layers need on GPU, by kind.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Needs {
    pub weights: Bytes,
    pub cache: Bytes,
    pub compute: Bytes,
    pub overhead: Bytes,
}

impl Needs {
    pub fn total(self) -> Bytes {
        [self.weights, self.cache, self.compute, self.overhead].into_iter().sum()
    }
}

struct ClassCosts<'a> {
    kinds: &'a [GpuCosts],
    kind_of: &'a [usize],
    /// The experts of layers below this are in host memory.
    without_experts_below: u32,
}

impl Costs for ClassCosts<'_> {
    fn bytes(&self, class: usize, first: u32, end: u32) -> u64 {
        let costs = &self.kinds[self.kind_of[class]];
        costs.bytes(first, end).saturating_sub(costs.experts_left(first, end, self.without_experts_below)).0
    }
}

/// GPUs that are equal in everything that counts, or taken for it.
struct Groups {
    classes: Vec<Class>,
    /// Of each class, the index of its kind.
    kind_of: Vec<usize>,
}

impl Groups {
    /// Groups equal GPUs, and nearly equal ones where there would be too many sets. `kinds` are those of the GPUs, sorted.
    fn of(gpus: &[&Device], offers: &[Bytes], kinds: &[(Backend, Bytes)]) -> Groups {
        let groups = grouped(gpus, offers).into_iter();
        let class = |(backend, overhead, offered, members)| {
            // The overhead of a group is that of one of its GPUs.
            (Class { offered, members }, kinds.binary_search(&(backend, overhead)).unwrap_or_default())
        };
        let (classes, kind_of) = groups.map(class).unzip();
        Groups { classes, kind_of }
    }

    fn offered(&self) -> Bytes {
        self.classes.iter().map(|class| Bytes(class.offered.saturating_mul(class.members.len() as u64))).sum()
    }
}

/// Backend, overhead, bytes on offer, and which GPUs: of nearly equal ones the larger overhead and the smaller offer.
type Group = (Backend, Bytes, u64, Vec<usize>);

fn grouped(gpus: &[&Device], offers: &[Bytes]) -> Vec<Group> {
    let mut groups: Vec<Group> = Vec::new();
    let mut order: Vec<usize> = (0..gpus.len()).collect();
    order.sort_by_key(|i| (gpus[*i].backend, gpus[*i].overhead, offers[*i], *i));
    for i in order {
        let of = (gpus[i].backend, gpus[i].overhead, offers[i].0);
        match groups.last_mut() {
            Some((backend, overhead, offered, members)) if (*backend, *overhead, *offered) == of => members.push(i),
            _ => groups.push((of.0, of.1, of.2, vec![i])),
        }
    }
    while sets(&groups) > MOST_SETS {
        let pairs = groups.windows(2).enumerate().filter(|(_, pair)| pair[0].0 == pair[1].0);
        let Some((nearest, _)) = pairs.min_by_key(|(_, pair)| pair[1].2.abs_diff(pair[0].2)) else { break };
        let (_, overhead, offered, members) = groups.remove(nearest + 1);
        let group = &mut groups[nearest];
        group.1 = group.1.max(overhead);
        group.2 = group.2.min(offered);
        group.3.extend(members);
        group.3.sort_unstable();
    }
    groups
}

fn sets(groups: &[Group]) -> usize {
    groups.iter().fold(1usize, |sets, group| sets.saturating_mul(group.3.len() + 1))
}

/// Shares of bytes, those left out that the host has wherever the layers are; a part is never shown as 0 % or 100 %.
fn processor(devices: &[DeviceAllocation], split: Split, total_layers: u32, on_any_host: Bytes) -> String {
    if split.gpu_layers == 0 {
        return "100% CPU".into();
    }
    if split == Split::from(total_layers) {
        return "100% GPU".into();
    }
    let sum = |kind: DeviceKind| -> u128 { devices.iter().filter(|d| d.kind == kind).map(|d| u128::from(d.total_bytes.0)).sum() };
    let (gpu, host) = (sum(DeviceKind::Gpu), sum(DeviceKind::Host).saturating_sub(u128::from(on_any_host.0)));
    let cpu_percent = ((100 * host + (gpu + host) / 2) / (gpu + host).max(1)).clamp(1, 99);
    format!("{cpu_percent}%/{}% CPU/GPU", 100 - cpu_percent)
}
