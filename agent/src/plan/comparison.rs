//! Types of KV cache side by side: what each needs, where the model would go with it, and how long a context may be.

use stowage_placement::{Bytes, PlanReport, Reason, Request, Tokens};

use super::curve::Chart;
use super::text::{columns, paragraph};
use super::{bars, table};

/// A row for each report, their curves in one chart, and what each report says.
pub(super) fn render(reports: &[PlanReport], chart: &Chart) -> String {
    let Some(first) = reports.first() else { return String::new() };
    let heading = table::model(first) + &request(&first.request, reports);
    let verdicts = reports.iter().map(|report| paragraph(report.request.kv_cache_type.as_str(), &report.fit.message)).collect();
    let sections = [heading, rows(reports), bars::render(chart), verdicts];
    sections.into_iter().filter(|section| !section.is_empty()).collect::<Vec<_>>().join("\n")
}

/// What is asked of all. Where nobody asks for a context, each type may get another.
fn request(first: &Request, reports: &[PlanReport]) -> String {
    let Request { num_ctx, num_gpu, kv_cache_type: _, parallel, num_batch } = first;
    let types: Vec<&str> = reports.iter().map(|report| report.request.kv_cache_type.as_str()).collect();
    let context = match reports.iter().all(|report| report.request.num_ctx == *num_ctx) {
        true => format!("num_ctx {num_ctx}"),
        false => {
            let each = reports.iter().map(|report| format!("{} with {}", report.request.num_ctx, report.request.kv_cache_type));
            format!("num_ctx {}", each.collect::<Vec<_>>().join(", "))
        }
    };
    let types = types.join(" or ");
    paragraph("Request", &format!("{context}, num_gpu {num_gpu}, KV cache {types}, parallel {parallel}, num_batch {num_batch}"))
}

fn rows(reports: &[PlanReport]) -> String {
    let mut rows = vec![["TYPE", "CPU/GPU", "LAYERS", "KV CACHE", "TOTAL", "SHORT", "GPU CTX", "MAX CTX", "RUNS"].map(str::to_owned)];
    rows.extend(reports.iter().map(|report| {
        let PlanReport { request, footprint, plan, fit, model: _, defaults: _ } = report;
        [
            request.kv_cache_type.to_string(),
            // The heading says of what the shares are.
            plan.processor.trim_end_matches(" CPU/GPU").to_owned(),
            format!("{}/{}", plan.gpu_layers, plan.total_layers),
            footprint.kv_cache_bytes.to_string(),
            footprint.total_bytes.to_string(),
            if fit.shortfall_bytes == Bytes::ZERO { "-".to_owned() } else { fit.shortfall_bytes.to_string() },
            largest(fit.max_num_ctx_on_gpu),
            largest(fit.max_num_ctx),
            if fit.reason == Reason::EngineCannotRun { "no" } else { "yes" }.to_owned(),
        ]
    }));
    let meaning = "LAYERS on GPU; SHORT: bytes missing; GPU CTX: the largest num_ctx wholly on GPU, MAX CTX: with layers on CPU; RUNS: whether the \
                   engine can run it.";
    columns(&rows) + &paragraph("", meaning)
}

fn largest(num_ctx: Tokens) -> String {
    if num_ctx == Tokens(0) { "-".to_owned() } else { num_ctx.to_string() }
}
