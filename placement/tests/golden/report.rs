//! What is planned for a case, as its `*.output.yaml` has it: YAML with one line for what belongs together, so that it can be read.

use std::collections::BTreeMap;
use std::fmt::Write;

use serde_json::json;
use stowage_placement::capability::Engine;
use stowage_placement::layout::Backend;
use stowage_placement::{
    Asked, Bytes, Defaults, Device, DeviceAllocation, Footprint, KvCacheType, LayerFootprint, ModelSummary, NodeDevices, PlanReport,
    Request, Suggestion, capability, decide, decide_for, testing,
};

use crate::case::Case;

/// Memory of the host, more than any of these models needs.
const HOST: Bytes = Bytes::gib(2048);

/// The whole output of a case.
pub fn of(case: &Case) -> String {
    let summary = case.summary();
    let mut text = format!("architecture: {}\n", summary.architecture);
    let numbers = [
        ("parameters", summary.parameter_count),
        ("totalLayers", summary.total_layers().0.into()),
        ("trainedContext", summary.trained_context.0),
        ("fileBytes", summary.size_bytes.0),
    ];
    for (name, number) in numbers {
        line(&mut text, &format!("{name}: {number}"));
    }
    line(&mut text, &format!("engineRuns: {}", capability::runs(&summary, KvCacheType::F16, Backend::Cuda).is_ok()));
    line(&mut text, &format!("tensors: {}", json!(tensors(case))));
    line(&mut text, "requests:");
    for asked in &case.input.requests {
        request(&mut text, &summary, &asked.request(), &case.input.gpus);
        nodes(&mut text, case, &asked.request());
    }
    text
}

fn line(text: &mut String, line: &str) {
    writeln!(text, "{line}").unwrap();
}

/// How many tensors the file has of each type.
fn tensors(case: &Case) -> BTreeMap<String, u32> {
    let mut counts = BTreeMap::new();
    for tensor in testing::read(&case.writer().header()).tensors {
        *counts.entry(tensor.ggml_type.to_string()).or_default() += 1;
    }
    counts
}

fn request(text: &mut String, summary: &ModelSummary, request: &Request, gpus: &[u64]) {
    let Request { num_ctx, num_gpu: _, kv_cache_type, parallel, num_batch } = request;
    let numbers = format!("numCtx: {num_ctx}, kvCacheType: {kv_cache_type}, parallel: {parallel}, numBatch: {num_batch}");
    line(text, &format!("- request: {{{numbers}}}"));
    let footprint = Footprint::new(summary, request, Backend::Cuda, Defaults::default().overhead_bytes, Backend::Cpu).unwrap();
    by_kind(text, &footprint);
    line(text, "  # layers: [weights, KV cache, state, checkpoints] in bytes");
    line(text, "  layers:");
    for (sizes, layers) in by_size(&footprint.layers) {
        line(text, &format!("    \"{layers}\": {}", json!(sizes)));
    }
    if !gpus.is_empty() {
        line(text, "  plans:");
    }
    for gpu in gpus {
        plan(text, summary, request, Bytes::gib(*gpu));
    }
}

fn by_kind(text: &mut String, footprint: &Footprint) {
    let Footprint {
        file_weights_bytes,
        file_host_weights_bytes,
        weights_bytes,
        host_weights_bytes,
        kv_cache_bytes,
        state_bytes,
        checkpoint_bytes,
        compute_bytes,
        overhead_bytes,
        total_bytes,
        layers: _,
    } = footprint;
    let kinds = [
        ("fileWeightsBytes", file_weights_bytes),
        ("fileHostWeightsBytes", file_host_weights_bytes),
        ("weightsBytes", weights_bytes),
        ("hostWeightsBytes", host_weights_bytes),
        ("kvCacheBytes", kv_cache_bytes),
        ("stateBytes", state_bytes),
        ("checkpointBytes", checkpoint_bytes),
        ("computeBytes", compute_bytes),
        ("overheadBytes", overhead_bytes),
        ("totalBytes", total_bytes),
    ];
    line(text, "  footprint:");
    for (name, bytes) in kinds {
        line(text, &format!("    {name}: {} # {:.2} MiB", bytes.0, bytes.as_mib()));
    }
}

/// Layers that take the same, run-length coded, in the order of their first ones.
fn by_size(layers: &[LayerFootprint]) -> Vec<([Bytes; 4], String)> {
    let mut groups: Vec<([Bytes; 4], Vec<[u32; 2]>)> = Vec::new();
    for layer in layers {
        let sizes = [layer.weights_bytes, layer.kv_cache_bytes, layer.state_bytes, layer.checkpoint_bytes];
        let group = groups.iter_mut().find(|(found, _)| *found == sizes);
        match group.map(|(_, ranges)| ranges) {
            Some(ranges) => match ranges.last_mut() {
                Some([_, last]) if *last + 1 == layer.index => *last += 1,
                _ => ranges.push([layer.index; 2]),
            },
            None => groups.push((sizes, vec![[layer.index; 2]])),
        }
    }
    groups.into_iter().map(|(sizes, ranges)| (sizes, shown(&ranges))).collect()
}

fn shown(ranges: &[[u32; 2]]) -> String {
    let range = |[first, last]: &[u32; 2]| if first == last { first.to_string() } else { format!("{first}-{last}") };
    ranges.iter().map(range).collect::<Vec<_>>().join(" ")
}

/// A node with one GPU that offers this much.
pub fn node(gpu: Bytes) -> NodeDevices {
    NodeDevices::new(vec![device(0, gpu)], HOST)
}

/// A node with GPUs that offer so many bytes, each with an overhead of its own.
pub fn node_of(gpus: &[(u64, u64)]) -> NodeDevices {
    let gpu = |(index, (offered, overhead)): (usize, &(u64, u64))| Device { overhead: Bytes(*overhead), ..device(index, Bytes(*offered)) };
    NodeDevices::new(gpus.iter().enumerate().map(gpu).collect(), HOST)
}

fn device(index: usize, offered: Bytes) -> Device {
    Device { id: format!("gpu{index}"), backend: Backend::Cuda, offered, overhead: Defaults::default().overhead_bytes, ..Device::default() }
}

pub fn asked(request: &Request) -> Asked {
    let Request { num_ctx, num_gpu, kv_cache_type, parallel, num_batch } = request.clone();
    Asked { num_ctx: Some(num_ctx), num_gpu, kv_cache_type, parallel, num_batch, ..Asked::default() }
}

/// What becomes of it beside a GPU of this size.
fn plan(text: &mut String, summary: &ModelSummary, request: &Request, gpu: Bytes) {
    let report = decide(summary, &asked(request), &node(gpu)).unwrap().report;
    line(text, &format!("  - gpu: {gpu}"));
    line(text, &format!("    fits: {{reason: {}, processor: {}}}", report.fit.reason, report.plan.processor));
    let contexts = format!("onGpu: {}, anywhere: {}", report.fit.max_num_ctx_on_gpu, report.fit.max_num_ctx);
    line(text, &format!("    maxNumCtx: {{{contexts}}}"));
    for device in &report.plan.devices {
        line(text, &format!("    {}: {}", device.id, allocation(device)));
    }
}

fn allocation(device: &DeviceAllocation) -> String {
    let sizes = [
        ("weights", device.weights_bytes),
        ("kvCache", device.kv_cache_bytes),
        ("state", device.state_bytes),
        ("checkpoints", device.checkpoint_bytes),
        ("compute", device.compute_bytes),
        ("overhead", device.overhead_bytes),
        ("total", device.total_bytes),
    ];
    let sizes = sizes.map(|(name, bytes)| format!("{name}: {}", bytes.0)).join(", ");
    let experts = match shown(&device.expert_layer_ranges) {
        none if none.is_empty() => none,
        layers => format!("expertsOfLayers: \"{layers}\", "),
    };
    format!("{{layers: \"{}\", {experts}{sizes}}}", shown(&device.layer_ranges))
}

/// What becomes of it on whole nodes, their margins taken off.
fn nodes(text: &mut String, case: &Case, request: &Request) {
    let summary = case.summary();
    let engine = if case.input.nodes_offload_experts { testing::OFFLOADING } else { Engine::OURS };
    if !case.input.nodes.is_empty() {
        line(text, "  nodes:");
    }
    for gpus in &case.input.nodes {
        let offered = |gib: u64| Defaults::default().offered_by(Bytes::gib(gib));
        let devices = gpus.iter().enumerate().map(|(index, gib)| device(index, offered(*gib))).collect();
        let report = decide_for(engine, &summary, &asked(request), &NodeDevices::new(devices, HOST)).unwrap().report;
        line(text, &format!("  - gpus: {} of {} GiB", gpus.len(), gpus[0]));
        told(text, &report);
    }
}

fn told(text: &mut String, report: &PlanReport) {
    let PlanReport { plan, fit, .. } = report;
    let fits = format!("reason: {}, processor: {}, layers: {}/{}", fit.reason, plan.processor, plan.gpu_layers, plan.total_layers);
    line(text, &format!("    fits: {{{fits}}}"));
    line(text, &format!("    shortfall: {} # {}", fit.shortfall_bytes.0, fit.shortfall_bytes));
    line(text, &format!("    maxNumCtx: {{onGpu: {}, anywhere: {}}}", fit.max_num_ctx_on_gpu, fit.max_num_ctx));
    line(text, &format!("    message: {}", json!(fit.message)));
    for device in &plan.devices {
        line(text, &format!("    {}: {}", device.id, allocation(device)));
    }
    line(text, if fit.suggestions.is_empty() { "    suggestions: []" } else { "    suggestions:" });
    for Suggestion { change, value, processor, message } in &fit.suggestions {
        line(text, &format!("    - {{{change}: {value}, processor: {processor}, message: {}}}", json!(message)));
    }
}
