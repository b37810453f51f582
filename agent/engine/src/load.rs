//! Puts the parts of a model where the plan says: an arena for each device, exactly as large as planned, and a prepared run over it.

use std::collections::BTreeSet;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

use stowage_placement::compute::{self, DeviceRole};
use stowage_placement::layout::{self, Backend as Layout};
use stowage_placement::{Bytes, DeviceAllocation, DeviceKind, Reason, capability};

use crate::api::{BackendChoice, EngineError, LoadProgress, LoadRequest, MeasuredDevice, Start};
use crate::arena::{Arena, Purpose, Region};
use crate::backend::cpu::{Computing, CpuBackend};
#[cfg(any(feature = "cuda", feature = "emulated-cuda"))]
use crate::backend::cuda::{self, CudaBackend, memory::DeviceArena};
use crate::backend::reference::ReferenceBackend;
use crate::backend::{Backend, LayerRun, PreparedRun};
use crate::cache;
use crate::file_mmap::ModelFile;
use crate::graph::{Graph, Weight};
use crate::packed_file::PackedFile;
use crate::pool::{Pool, default_threads};

/// A device's part of the model.
pub(crate) struct Part {
    pub run: Box<dyn PreparedRun>,
    pub blocks: Vec<Range<usize>>,
    pub input: bool,
    pub output: bool,
    pub measured: MeasuredDevice,
}

/// All parts, and the hidden state that goes from one to the next.
pub(crate) struct Parts {
    pub parts: Vec<Part>,
    pub hidden: Region,
}

/// Bytes of one device by the engine's own count.
#[derive(Debug, Default, PartialEq, Eq)]
struct Sizes {
    weights: Bytes,
    cache: Bytes,
    checkpoints: Bytes,
    compute: Bytes,
}

impl Sizes {
    fn total(&self) -> Bytes {
        [self.weights, self.cache, self.checkpoints, self.compute].into_iter().sum()
    }
}

/// Refuses what the engine can't run before anything is allocated.
pub(crate) fn check(file: &ModelFile, graph: &Graph, request: &LoadRequest) -> Result<(), EngineError> {
    let cache = request.request.kv_cache_type;
    let layouts: BTreeSet<Layout> = request.plan.devices.iter().map(layout_of).collect();
    for tensor in file.header().tensors.iter().filter(|tensor| tensor.rows() > 1) {
        for layout in &layouts {
            capability::supports(&graph.architecture, tensor.ggml_type, cache, *layout)
                .map_err(|missing| EngineError::new(Reason::EngineCannotRun, missing))?;
        }
    }
    let lengths = graph.blocks.iter().flat_map(|block| [block.cache.key_length as u64, block.cache.value_length as u64]);
    for layout in &layouts {
        capability::attended_heads(lengths.clone(), *layout).map_err(|missing| EngineError::new(Reason::EngineCannotRun, missing))?;
    }
    capability::cached_heads(lengths, cache).map_err(|missing| EngineError::new(Reason::EngineCannotRun, missing))?;
    let parameters = &request.request;
    if parameters.num_ctx.0 == 0 || parameters.num_ctx.0 > 1 << 30 || parameters.num_batch == 0 || parameters.parallel == 0 {
        let message = format!(
            "num_ctx {}, num_batch {} and parallel {} must all be at least 1, num_ctx at most {}",
            parameters.num_ctx,
            parameters.num_batch,
            parameters.parallel,
            1 << 30
        );
        return Err(EngineError::new(Reason::InvalidRequest, message));
    }
    check_layers(graph, request)
}

/// Each layer is on one device, and each device is one that this build computes on.
fn check_layers(graph: &Graph, request: &LoadRequest) -> Result<(), EngineError> {
    let total = graph.blocks.len() + 1;
    let mut holders = vec![0u32; total];
    for device in &request.plan.devices {
        if device.kind == DeviceKind::Gpu && !cfg!(feature = "simulated-gpu") && !is_with_cuda(&device.id) {
            let message = format!("the plan puts layers on GPU {}, and {}", device.id, without_gpu());
            return Err(EngineError::new(Reason::EngineCannotRun, message));
        }
        for [first, last] in &device.layer_ranges {
            for layer in *first..=*last {
                let Some(holders) = holders.get_mut(layer as usize) else {
                    return Err(bad_plan(format!("it puts layer {layer} on {}, and the model has {total} layers", device.id)));
                };
                *holders += 1;
            }
        }
    }
    if request.plan.devices.iter().filter(|device| device.kind == DeviceKind::Host).count() != 1 {
        return Err(bad_plan("it does not have the host exactly once".into()));
    }
    match holders.iter().position(|&count| count != 1) {
        Some(layer) => Err(bad_plan(format!("it puts layer {layer} of {total} on {} devices", holders[layer]))),
        None => Ok(()),
    }
}

/// What computes on a device.
fn layout_of(device: &DeviceAllocation) -> Layout {
    if device.kind == DeviceKind::Gpu { gpu_layout(&device.id) } else { Layout::Cpu }
}

/// What computes on the GPU of this id: one that the CUDA backend does not have is a simulated one, where there are such.
pub(crate) fn gpu_layout(id: &str) -> Layout {
    if cfg!(feature = "simulated-gpu") && !is_with_cuda(id) { Layout::SimulatedGpu } else { Layout::Cuda }
}

/// Whether the CUDA backend has the GPU of this id.
#[cfg(any(feature = "cuda", feature = "emulated-cuda"))]
fn is_with_cuda(id: &str) -> bool {
    cuda::devices::has(id)
}

#[cfg(not(any(feature = "cuda", feature = "emulated-cuda")))]
fn is_with_cuda(_id: &str) -> bool {
    false
}

/// Why layers can't be on a GPU that is not there.
fn without_gpu() -> String {
    #[cfg(feature = "cuda")]
    return match cuda::raw_probe::probe() {
        Ok(devices) => {
            let found: Vec<&str> = devices.iter().map(|device| device.uuid.as_str()).collect();
            format!("CUDA has no such device; it has {}", found.join(", "))
        }
        Err(why) => format!("there is no CUDA here: {why}"),
    };
    #[cfg(not(feature = "cuda"))]
    "this build has no CUDA backend".into()
}

fn bad_plan(why: String) -> EngineError {
    EngineError::new(Reason::LoadFailed, format!("the plan can't be carried out: {why}"))
}

/// Allocates and reads every part.
pub(crate) fn parts(
    file: &ModelFile,
    graph: &Graph,
    request: &LoadRequest,
    computing: Computing,
    progress: &mut dyn FnMut(LoadProgress),
) -> Result<Parts, EngineError> {
    let threads = if request.num_thread == 0 { default_threads() } else { request.num_thread };
    let pool = Pool::new(threads)?;
    let total: Bytes = file.header().tensors.iter().map(|tensor| tensor.bytes()).sum();
    let mut read = Bytes::ZERO;
    let mut loaded = |bytes: Bytes| {
        // Embeddings that are held twice are read twice.
        read = Bytes(read.0.saturating_add(bytes.0).min(total.0));
        progress(LoadProgress { loaded: read, total });
    };
    let (in_place, packed) = match &request.start {
        Start::InMemory => (false, None),
        Start::InFiles { packed } => (true, packed.as_deref().and_then(|path| opened(path, file))),
    };
    if !in_place {
        file.fetch_ahead();
    }
    let mut parts = Vec::with_capacity(request.plan.devices.len());
    let mut hidden = None;
    for device in &request.plan.devices {
        let run = layer_run(graph, request, device);
        let reference = run.input && request.backend == BackendChoice::Reference;
        let layout = layout_of(device);
        let sizes = if reference { Sizes { compute: hand_over(&run)?, ..Sizes::default() } } else { sizes(&run, file, layout)? };
        if !reference {
            check_sizes(device, &sizes)?;
        }
        #[cfg(any(feature = "cuda", feature = "emulated-cuda"))]
        if layout == Layout::Cuda {
            let part = on_cuda(run, file, device, sizes.total(), &mut loaded)?;
            parts.push(part);
            continue;
        }
        let arena = Arena::new(sizes.total())?;
        if run.input {
            hidden = Some(arena.take(Purpose::Compute, hand_over(&run)?)?);
        }
        let is_host = device.kind == DeviceKind::Host;
        let (packed, in_place) = (packed.clone().filter(|_| is_host), in_place && is_host);
        let backend = CpuBackend { arena: Arc::clone(&arena), pool: Arc::clone(&pool), computing, packed, in_place };
        let prepared =
            if reference { ReferenceBackend.prepare(&run, file, &mut loaded)? } else { backend.prepare(&run, file, &mut loaded)? };
        if is_host {
            arena.touch(&pool);
        }
        let measured = measured(device, arena.size(), |purpose| arena.taken_for(purpose))?;
        parts.push(Part { run: prepared, blocks: run.blocks, input: run.input, output: run.output, measured });
    }
    let hidden = hidden.ok_or_else(|| bad_plan("it does not have the host".into()))?;
    progress(LoadProgress { loaded: total, total });
    Ok(Parts { parts, hidden })
}

/// What was packed before.
fn opened(path: &Path, model: &ModelFile) -> Option<Arc<PackedFile>> {
    match PackedFile::open(path, model) {
        Ok(packed) => {
            tracing::info!("packed weights of an earlier load are mapped");
            Some(Arc::new(packed))
        }
        Err(why) => {
            tracing::warn!(path = %path.display(), %why, "the weights that were packed before are of no use here; they are packed anew");
            None
        }
    }
}

/// A part on a GPU. What it took is given back where it fails.
#[cfg(any(feature = "cuda", feature = "emulated-cuda"))]
fn on_cuda(
    run: LayerRun<'_>,
    file: &ModelFile,
    device: &DeviceAllocation,
    bytes: Bytes,
    loaded: &mut dyn FnMut(Bytes),
) -> Result<Part, EngineError> {
    let missing = || EngineError::new(Reason::EngineCannotRun, format!("GPU {} is gone", device.id));
    let arena = DeviceArena::new(cuda::devices::open(&device.id).ok_or_else(missing)??, bytes)?;
    let backend = CudaBackend { arena: Arc::clone(&arena) };
    let prepared = backend.prepare(&run, file, loaded)?;
    let measured = measured(device, arena.size(), |purpose| arena.taken_for(purpose))?;
    Ok(Part { run: prepared, blocks: run.blocks, input: run.input, output: run.output, measured })
}

fn layer_run<'a>(graph: &'a Graph, request: &'a LoadRequest, device: &DeviceAllocation) -> LayerRun<'a> {
    let output_layer = graph.blocks.len();
    let blocks = device.layer_ranges.iter().map(|[first, last]| *first as usize..(*last as usize + 1).min(output_layer));
    LayerRun {
        graph,
        blocks: blocks.filter(|range| !range.is_empty()).collect(),
        input: device.kind == DeviceKind::Host,
        output: device.layer_ranges.iter().any(|[first, last]| (*first as usize..=*last as usize).contains(&output_layer)),
        request: &request.request,
    }
}

/// The buffer in which the host hands the hidden state from part to part.
fn hand_over(run: &LayerRun<'_>) -> Result<Bytes, EngineError> {
    let role = DeviceRole { layers: false, output: false, input: true };
    scratch(run, Layout::Cpu, role)
}

fn scratch(run: &LayerRun<'_>, layout: Layout, role: DeviceRole) -> Result<Bytes, EngineError> {
    compute::scratch_bytes(&run.graph.shape, run.request.num_batch, run.request.parallel, layout, role).ok_or_else(too_large)
}

/// What the host has by the plan of this request.
pub(crate) fn host_weights<'a>(graph: &'a Graph, request: &'a LoadRequest) -> Vec<&'a Weight> {
    let hosts = request.plan.devices.iter().filter(|device| device.kind == DeviceKind::Host);
    hosts.flat_map(|device| weights_of(&layer_run(graph, request, device))).collect()
}

/// What a device has by a plan.
pub(crate) fn weights_of<'a>(run: &LayerRun<'a>) -> Vec<&'a Weight> {
    let graph = run.graph;
    let mut weights = Vec::new();
    if run.input {
        weights.extend(graph.input.weights());
    }
    for block in run.blocks.iter().cloned().flatten() {
        weights.extend(graph.block_weights(block));
    }
    if let Some(output) = graph.output.as_ref().filter(|_| run.output) {
        weights.extend(output.norm.weights());
        if !(output.tied && run.input) {
            weights.push(&output.weight);
        }
    }
    weights
}

fn sizes(run: &LayerRun<'_>, file: &ModelFile, layout: Layout) -> Result<Sizes, EngineError> {
    let graph = run.graph;
    let blocks: Vec<usize> = run.blocks.iter().cloned().flatten().collect();
    let weights = weights_of(run).into_iter().map(|weight| {
        let view = file.tensor(&weight.name)?;
        layout::weight_bytes(view.ggml_type, view.rows as u64, view.columns as u64, layout).ok_or_else(too_large)
    });
    let caches = blocks.iter().map(|&block| cache::layer_bytes(&graph.blocks[block].cache, run.request).ok_or_else(too_large));
    let checkpoints = blocks.iter().map(|&block| cache::checkpoint_bytes(&graph.blocks[block].cache, run.request).ok_or_else(too_large));
    let role = DeviceRole { layers: !blocks.is_empty(), output: run.output, input: run.input };
    Ok(Sizes { weights: sum(weights)?, cache: sum(caches)?, checkpoints: sum(checkpoints)?, compute: scratch(run, layout, role)? })
}

fn sum(sizes: impl Iterator<Item = Result<Bytes, EngineError>>) -> Result<Bytes, EngineError> {
    let mut total = Bytes::ZERO;
    for size in sizes {
        total = total.checked_add(size?).ok_or_else(too_large)?;
    }
    Ok(total)
}

pub(crate) fn too_large() -> EngineError {
    EngineError::new(Reason::InvalidRequest, "the model needs more bytes than 64 bits can count")
}

/// A plan of other numbers was made for another file or by another version: what was promised would not be what is taken.
fn check_sizes(device: &DeviceAllocation, sizes: &Sizes) -> Result<(), EngineError> {
    let planned = Sizes {
        weights: device.weights_bytes,
        cache: device.kv_cache_bytes,
        checkpoints: device.checkpoint_bytes,
        compute: device.compute_bytes,
    };
    if planned == *sizes {
        return Ok(());
    }
    Err(bad_plan(format!(
        "on {} it has {} bytes of weights, {} of KV cache, {} for copies of it and {} of scratch memory, and the engine takes {}, {}, {} and {}",
        device.id,
        planned.weights.0,
        planned.cache.0,
        planned.checkpoints.0,
        planned.compute.0,
        sizes.weights.0,
        sizes.cache.0,
        sizes.checkpoints.0,
        sizes.compute.0
    )))
}

/// What was taken of an arena of `size` bytes, which must be all of it.
fn measured(device: &DeviceAllocation, size: Bytes, taken_for: impl Fn(Purpose) -> Bytes) -> Result<MeasuredDevice, EngineError> {
    let measured = MeasuredDevice {
        id: device.id.clone(),
        weights: taken_for(Purpose::Weights).saturating_add(taken_for(Purpose::Vectors)),
        kv_cache: taken_for(Purpose::Cache),
        state: Bytes::ZERO,
        checkpoint: taken_for(Purpose::Checkpoints),
        compute: taken_for(Purpose::Compute),
        overhead: device.overhead_bytes,
    };
    let taken: Bytes = [measured.weights, measured.kv_cache, measured.checkpoint, measured.compute].into_iter().sum();
    if taken != size {
        return Err(bad_plan(format!("on {} {} of {} bytes were taken", device.id, taken.0, size.0)));
    }
    Ok(measured)
}
