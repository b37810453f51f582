//! The report in words, for someone who has never heard of a KV cache: what it needs, what there is, what is missing, and how long a context may be.

use crate::device_plan::{DevicePlan, Needs, Planner, SizedPlanner};
use crate::fit_report::considered::{Considered, Limits, Outcome};
use crate::fit_report::demand::Demand;
use crate::reason::Reason;
use crate::units::Bytes;

/// `missing`: bytes missing on GPU for the layers wished there.
pub(super) fn of(considered: &Considered<'_>, planner: &Planner<'_>, sized: &SizedPlanner<'_>, limits: Limits, missing: Bytes) -> String {
    let sentences = match &considered.outcome {
        Outcome::Fits => vec![fitting(considered)],
        Outcome::CannotRun(lacking) => vec![format!("The engine can't run it: {lacking}.")],
        Outcome::Refused(Reason::ContextBeyondTrained) => vec![beyond_trained(considered, limits)],
        Outcome::Refused(Reason::InsufficientMemory) => {
            let mut sentences = missing_on_gpu(considered, planner, sized, missing);
            sentences.push(missing_on_host(considered, sized));
            sentences.extend(largest_anywhere(considered, limits));
            sentences
        }
        Outcome::Refused(_) | Outcome::LessOnGpu(_) => {
            let mut sentences = missing_on_gpu(considered, planner, sized, missing);
            sentences.extend(largest_on_gpu(considered, planner, limits));
            sentences.push(consequence(considered));
            sentences
        }
    };
    sentences.join(" ")
}

fn fitting(considered: &Considered<'_>) -> String {
    let plan = considered.plan();
    let on_gpu: Vec<&str> = plan.devices.iter().filter(|d| d.id != crate::device_plan::HOST).map(|d| d.id.as_str()).collect();
    match (on_gpu.len(), plan.gpu_layers == plan.total_layers) {
        (0, _) => format!("num_ctx {} runs on CPU, as asked.", considered.request.num_ctx),
        (1, true) => format!("num_ctx {} fits wholly on GPU.", considered.request.num_ctx),
        (gpus, true) => format!("num_ctx {} fits wholly on GPU, on {gpus} of them.", considered.request.num_ctx),
        _ => format!(
            "num_ctx {} fits with {} of {} layers on GPU, as asked.",
            considered.request.num_ctx, plan.gpu_layers, plan.total_layers
        ),
    }
}

fn beyond_trained(considered: &Considered<'_>, limits: Limits) -> String {
    let trained = considered.summary.trained_context;
    let mut text = format!("num_ctx {} is beyond the {trained} tokens that the model was trained for.", considered.request.num_ctx);
    if limits.on_gpu.0 > 0 {
        text += &format!(" Up to num_ctx {} it fits wholly on GPU.", limits.on_gpu);
    } else if limits.anywhere.0 > 0 {
        text += &format!(" Up to num_ctx {} it fits with layers on CPU.", limits.anywhere);
    }
    text
}

/// "num_ctx 131072 needs 29.1 GiB of GPU memory (…); the GPU offers 23.0 GiB: 6.1 GiB are missing."
fn missing_on_gpu(considered: &Considered<'_>, planner: &Planner<'_>, sized: &SizedPlanner<'_>, missing: Bytes) -> Vec<String> {
    let wished = considered.demand.wished(sized.total_layers());
    if planner.gpus.is_empty() && wished > 0 {
        let needs = sized.gpu_needs(wished, 1);
        let layers = if wished == sized.total_layers() { String::new() } else { format!("{wished} layers of ") };
        let whole = format!(
            "On a GPU, {layers}num_ctx {} would need {} ({}).",
            considered.request.num_ctx,
            needs.total(),
            parts(considered, needs, 1)
        );
        return match &considered.unusable {
            Some(lacking) => vec![format!("There is no GPU that the engine can use for it: {lacking}."), whole],
            None => vec!["There is no GPU that the engine can use.".into(), whole],
        };
    }
    if missing == Bytes::ZERO {
        return Vec::new();
    }
    let offered: Bytes = planner.gpus.iter().map(|gpu| gpu.offered).sum();
    let gpus = planner.gpus.len().min(planner.max_gpus() as usize);
    let needs = sized.gpu_needs(wished, gpus as u64);
    let subject = if wished == sized.total_layers() { String::new() } else { format!("with {wished} layers on GPU, ") };
    let mut sentence = format!(
        "{subject}num_ctx {} needs {} of GPU memory ({})",
        considered.request.num_ctx,
        needs.total(),
        parts(considered, needs, gpus)
    );
    sentence += &match gpus {
        1 if planner.gpus.len() == 1 => format!("; the GPU offers {offered}: {missing} {} missing.", are(missing)),
        1 => format!("; the largest GPU offers {}: {missing} {} missing.", largest(planner), are(missing)),
        _ if needs.total() > offered => {
            format!("; the {} GPUs offer {offered} together: at least {missing} {} missing.", planner.gpus.len(), are(missing))
        }
        _ => format!(
            "; the {} GPUs offer {offered} together, but layers can't be cut in two: at least {missing} more on one of them {} missing.",
            planner.gpus.len(),
            are(missing)
        ),
    };
    vec![sentence]
}

fn largest(planner: &Planner<'_>) -> Bytes {
    planner.gpus.iter().map(|gpu| gpu.offered).max().unwrap_or_default()
}

fn parts(considered: &Considered<'_>, needs: Needs, gpus: usize) -> String {
    let Needs { weights, cache, compute, overhead } = needs;
    let on = if gpus > 1 { format!(" on {gpus} GPUs") } else { String::new() };
    let tokens = considered.request.num_ctx;
    let sequences = match considered.request.parallel {
        1 => String::new(),
        parallel => format!(" in each of {parallel} sequences"),
    };
    format!(
        "weights {weights}, memory of {tokens} tokens{sequences} (KV cache) {cache}, working space {compute}{on}, GPU libraries {overhead}{on}"
    )
}

fn missing_on_host(considered: &Considered<'_>, sized: &SizedPlanner<'_>) -> String {
    let needs = sized.host_needs(considered.split);
    let offered = considered.devices.host.offered;
    let missing = needs.saturating_sub(offered);
    let what = match considered.split.gpu_layers {
        0 => "On CPU, it".to_owned(),
        gpu_layers if gpu_layers == sized.total_layers() => "What stays in host memory".to_owned(),
        gpu_layers => format!("With {gpu_layers} of {} layers on GPU, the rest", sized.total_layers()),
    };
    format!("{what} needs {needs} of host memory; the host offers {offered}: {missing} {} missing.", are(missing))
}

fn largest_on_gpu(considered: &Considered<'_>, planner: &Planner<'_>, limits: Limits) -> Option<String> {
    if planner.gpus.is_empty() || considered.demand.wished(considered.summary.total_layers().0) < considered.summary.total_layers().0 {
        return None;
    }
    Some(match limits.on_gpu.0 {
        0 => "No context is short enough for it to stay wholly on the GPU.".into(),
        // Another request than this one is in the way.
        on_gpu if on_gpu >= considered.request.num_ctx.0 => return None,
        on_gpu => format!("Up to num_ctx {on_gpu} it stays wholly on the GPU."),
    })
}

fn largest_anywhere(considered: &Considered<'_>, limits: Limits) -> Option<String> {
    let fits = limits.anywhere.0 > 0 && limits.anywhere < considered.request.num_ctx;
    fits.then(|| format!("Up to num_ctx {} it fits.", limits.anywhere))
}

fn consequence(considered: &Considered<'_>) -> String {
    let plan = considered.plan();
    match (&considered.outcome, considered.demand) {
        (Outcome::LessOnGpu(_), _) if plan.gpu_layers.0 == 0 => "It runs on CPU.".into(),
        (Outcome::LessOnGpu(_), _) if considered.split.without_experts > 0 => without_experts(plan),
        (Outcome::LessOnGpu(_), _) => {
            format!("{} of {} layers run on GPU, the others on CPU ({}).", plan.gpu_layers, plan.total_layers, plan.processor)
        }
        (_, Demand::Exactly(layers)) => {
            format!("num_gpu {layers} is a demand, so nothing is loaded; {} layers would fit.", plan.gpu_layers)
        }
        _ if considered.asked.num_gpu > 0 => {
            format!(
                "num_gpu {} is a demand, so nothing is loaded; {} of {} layers would fit.",
                considered.asked.num_gpu, plan.gpu_layers, plan.total_layers
            )
        }
        _ => "The policy RequireGPU wants it wholly on GPU, so nothing is loaded.".into(),
    }
}

/// "All 49 layers run on GPU, but 20 of them leave their experts (weights of which each token uses a few) in host memory, where the CPU computes them
/// (40%/60% CPU/GPU)."
fn without_experts(plan: &DevicePlan) -> String {
    format!(
        "All {} layers run on GPU, but {} of them leave their experts (weights of which each token uses a few) in host memory, where the CPU computes \
         them ({}).",
        plan.total_layers,
        plan.layers_without_experts(),
        plan.processor
    )
}

fn are(bytes: Bytes) -> &'static str {
    if bytes.0 == 1 { "is" } else { "are" }
}
