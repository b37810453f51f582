//! A plan as text: what the model is, what it needs, where it goes, and what would make it fit.

use stowage_placement::{Bytes, Defaults, DeviceAllocation, DeviceKind, LayerFootprint, PlanReport, Request, Tokens};

use super::curve::Chart;
use super::text::{columns, paragraph};
use super::{bars, printable};

/// With `by_layer`, each layer has a row too.
pub(super) fn render(report: &PlanReport, chart: &Chart, whose: Option<&str>, by_layer: bool) -> String {
    let layers = if by_layer { each_layer(report) } else { String::new() };
    let whose = whose.map(|whose| paragraph("On", whose)).unwrap_or_default();
    let heading = model(report) + &request(report) + &whose + &assumed(report);
    let sections = [heading, footprint(report), layers, bars::render(chart), devices(report), fit(report), suggestions(report)];
    sections.into_iter().filter(|section| !section.is_empty()).collect::<Vec<_>>().join("\n")
}

/// The model's own name.
pub(super) fn name(report: &PlanReport) -> String {
    if report.model.name.is_empty() { "(without a name)".to_owned() } else { printable(&report.model.name) }
}

/// What the model is.
pub(crate) fn model(report: &PlanReport) -> String {
    let model = &report.model;
    let facts = [
        model.architecture.clone(),
        format!("{} parameters", count(model.parameter_count)),
        model.quantization.clone(),
        format!("{} layers", model.total_layers),
        format!("trained for {} tokens", model.trained_context),
        format!("{} in the file", model.size_bytes),
    ];
    paragraph("Model", &name(report)) + &paragraph("", &facts.join(", "))
}

/// What is asked for, with what was settled.
pub(crate) fn request(report: &PlanReport) -> String {
    let Request { num_ctx, num_gpu, kv_cache_type, parallel, num_batch } = &report.request;
    let asked = format!("num_ctx {num_ctx}, num_gpu {num_gpu}, KV cache {kv_cache_type}, parallel {parallel}, num_batch {num_batch}");
    paragraph("Request", &asked)
}

/// With which margins and overhead it was planned.
fn assumed(report: &PlanReport) -> String {
    let Defaults { margin_percent, least_margin_bytes, overhead_bytes } = &report.defaults;
    let margin = format!("{margin_percent} % of each device, at least {least_margin_bytes}, is left free");
    let overhead = format!("a GPU's driver and libraries take {overhead_bytes} until measured");
    paragraph("Assumed", &format!("{margin}; {overhead}"))
}

/// `134.5M`, `32.8B`.
fn count(parameters: u64) -> String {
    match parameters {
        0..1_000_000 => parameters.to_string(),
        1_000_000..1_000_000_000 => format!("{:.1}M", parameters as f64 / 1e6),
        _ => format!("{:.1}B", parameters as f64 / 1e9),
    }
}

fn footprint(report: &PlanReport) -> String {
    let footprint = &report.footprint;
    let kinds = [
        ("weights, in the file", footprint.file_weights_bytes),
        ("weights", footprint.weights_bytes),
        ("KV cache", footprint.kv_cache_bytes),
        ("state", footprint.state_bytes),
        ("checkpoints", footprint.checkpoint_bytes),
        ("compute", footprint.compute_bytes),
        ("overhead", footprint.overhead_bytes),
        ("all on one GPU", footprint.total_bytes),
        ("in host memory", footprint.host_weights_bytes),
    ];
    let always = ["weights", "KV cache", "all on one GPU"];
    let shown = kinds.into_iter().filter(|(kind, bytes)| *bytes > Bytes::ZERO || always.contains(kind));
    let mut rows = vec![["NEEDS".to_owned(), "BYTES".to_owned(), String::new()]];
    rows.extend(shown.map(|(kind, bytes)| [kind.to_owned(), bytes.to_string(), bytes.0.to_string()]));
    columns(&rows)
}

/// What each layer takes, the output layer last, and where it goes. Copies of its state are counted with it.
fn each_layer(report: &PlanReport) -> String {
    let mut rows = vec![["LAYER", "DEVICE", "WEIGHTS", "KV CACHE", "STATE", "TOTAL"].map(str::to_owned)];
    rows.extend(report.footprint.layers.iter().map(|layer| {
        let LayerFootprint { index, weights_bytes, kv_cache_bytes, state_bytes, checkpoint_bytes } = layer;
        let state = state_bytes.saturating_add(*checkpoint_bytes);
        let total: Bytes = [*weights_bytes, *kv_cache_bytes, state].into_iter().sum();
        let holds = |device: &&DeviceAllocation| device.layer_ranges.iter().any(|[first, last]| (first..=last).contains(&index));
        let device = report.plan.devices.iter().find(holds).map(short_id).unwrap_or_else(|| "-".into());
        let [weights, cache, state, total] = [*weights_bytes, *kv_cache_bytes, state, total].map(|bytes| bytes.to_string());
        [index.to_string(), device, weights, cache, state, total]
    }));
    columns(&rows)
}

fn devices(report: &PlanReport) -> String {
    let mut rows = vec![["DEVICE", "LAYERS", "WEIGHTS", "CACHE", "COMPUTE", "OVERHEAD", "TOTAL", "FREE"].map(str::to_owned)];
    rows.extend(report.plan.devices.iter().map(|device| {
        let cache = device.kv_cache_bytes.saturating_add(device.state_bytes).saturating_add(device.checkpoint_bytes);
        let bytes = [device.weights_bytes, cache, device.compute_bytes, device.overhead_bytes, device.total_bytes, device.free_bytes];
        let [weights, cache, compute, overhead, total, free] = bytes.map(|bytes| bytes.to_string());
        [short_id(device), layers(device), weights, cache, compute, overhead, total, free]
    }));
    columns(&rows) + &uncertainty(report)
}

/// How far the totals of GPUs may be off.
fn uncertainty(report: &PlanReport) -> String {
    let most = report.plan.devices.iter().map(|device| device.uncertainty_bytes).max().unwrap_or_default();
    let told = format!("A GPU's total may be off by {most}: so far is known what its driver and libraries take.");
    if most > Bytes::ZERO { paragraph("", &told) } else { String::new() }
}

/// A GPU's UUID is longer than the table has room for; its beginning tells GPUs apart, and the JSON has all of it.
fn short_id(device: &DeviceAllocation) -> String {
    match device.kind {
        DeviceKind::Gpu => device.id.chars().take(12).collect(),
        DeviceKind::Host => device.id.clone(),
    }
}

fn layers(device: &DeviceAllocation) -> String {
    let ranges: Vec<String> = device.layer_ranges.iter().map(|[first, last]| format!("{first}-{last}")).collect();
    if ranges.is_empty() { "-".into() } else { ranges.join(",") }
}

/// Whether it fits, with the numbers.
pub(crate) fn fit(report: &PlanReport) -> String {
    let (plan, fit) = (&report.plan, &report.fit);
    let verdict = if fit.fits { "yes".to_owned() } else { format!("no: {}", fit.reason) };
    let largest = |tokens: Tokens, whereabouts: &str| match tokens.0 {
        0 => format!("no num_ctx {whereabouts}"),
        tokens => format!("num_ctx {tokens} {whereabouts}"),
    };
    let largest = [largest(fit.max_num_ctx_on_gpu, "wholly on GPU"), largest(fit.max_num_ctx, "with layers on CPU")].join(", ");
    [
        paragraph("Processor", &format!("{}, {} of {} layers on GPU", plan.processor, plan.gpu_layers, plan.total_layers)),
        paragraph("Fits", &verdict),
        paragraph("", &fit.message),
        paragraph("Largest", &largest),
    ]
    .concat()
}

/// Changes that would make it fit; empty where there are none.
pub(crate) fn suggestions(report: &PlanReport) -> String {
    if report.fit.suggestions.is_empty() {
        return String::new();
    }
    let lines = report.fit.suggestions.iter().map(|suggestion| {
        let change = format!("{} {}: {}, {}", suggestion.change, suggestion.value, suggestion.processor, suggestion.message);
        paragraph("", &change)
    });
    format!("What would make it fit\n{}", lines.collect::<String>())
}
