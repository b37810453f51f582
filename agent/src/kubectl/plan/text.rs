//! The cluster's plan as text.

use stowage_placement::{Bytes, DeviceKind, PlanReport, Reason};

use super::{ClusterPlan, NodePlan};
use crate::plan::table;
use crate::plan::text::{columns, paragraph};

pub fn render(plan: &ClusterPlan) -> String {
    let heading = plan.report.as_ref().map(|report| table::model(report) + &table::request(report)).unwrap_or_default();
    let notes = plan.notes.iter().map(|note| paragraph("Assumed", note)).collect::<String>();
    let suggestions = plan.report.as_ref().map(table::suggestions).unwrap_or_default();
    let sections = [heading + &notes, nodes(plan), verdict(plan), suggestions];
    sections.into_iter().filter(|section| !section.is_empty()).collect::<Vec<_>>().join("\n")
}

/// A row for each node: `>` marks the one that it would go to.
fn nodes(plan: &ClusterPlan) -> String {
    if plan.nodes.is_empty() {
        return String::new();
    }
    let mut rows = vec![[" NODE", "CPU/GPU", "LAYERS", "CONTEXT", "VRAM", "FREE", "SHORT", "GPU CTX"].map(str::to_owned)];
    rows.extend(plan.nodes.iter().map(|node| row(node, plan.node.as_deref() == Some(&node.node))));
    let kept_out: Vec<String> =
        plan.nodes.iter().filter(|node| !node.considered).map(|node| format!("{} ({})", node.node, node.reason)).collect();
    let kept_out = if kept_out.is_empty() { String::new() } else { paragraph("", &format!("Not considered: {}.", kept_out.join(", "))) };
    let legend =
        "VRAM: what it would take; FREE: what the GPUs offer it; SHORT: bytes missing; GPU CTX: the largest num_ctx wholly on GPU.";
    columns(&rows) + &paragraph("", legend) + &kept_out
}

fn row(node: &NodePlan, chosen: bool) -> [String; 8] {
    let name = format!("{}{}", if chosen { '>' } else { ' ' }, node.node);
    let Some(PlanReport { plan, request, fit, .. }) = &node.report else {
        let nothing = || "-".to_owned();
        return [name, nothing(), nothing(), nothing(), nothing(), nothing(), nothing(), nothing()];
    };
    let gpus = || plan.devices.iter().filter(|device| device.kind == DeviceKind::Gpu);
    let taken: Bytes = gpus().map(|device| device.total_bytes).sum();
    let free: Bytes = gpus().map(|device| device.free_bytes).sum();
    let dash = |bytes: Bytes| if bytes == Bytes::ZERO { "-".to_owned() } else { bytes.to_string() };
    let largest = if fit.max_num_ctx_on_gpu.0 == 0 { "-".to_owned() } else { fit.max_num_ctx_on_gpu.to_string() };
    let processor = plan.processor.trim_end_matches(" CPU/GPU").to_owned();
    let layers = format!("{}/{}", plan.gpu_layers, plan.total_layers);
    [name, processor, layers, request.num_ctx.to_string(), dash(taken), dash(free), dash(fit.shortfall_bytes), largest]
}

fn verdict(plan: &ClusterPlan) -> String {
    let place = plan.node.as_deref().unwrap_or("no node");
    let how = plan.report.as_ref().filter(|_| plan.node.is_some()).map(|report| format!(", {}", report.plan.processor)).unwrap_or_default();
    let verdict = if plan.fits { "yes".to_owned() } else { format!("no: {}", plan.reason) };
    let message = if plan.message.is_empty() { Reason::meaning(plan.reason) } else { &plan.message };
    paragraph("Goes to", &format!("{place}{how}")) + &paragraph("Fits", &verdict) + &paragraph("", message)
}
