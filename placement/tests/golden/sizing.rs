//! `docs/sizing.md`: how long a context common models have on GPUs of common sizes. `STOWAGE_UPDATE_DOCS=1` writes it anew.

use std::path::Path;

use stowage_placement::layout::Backend;
use stowage_placement::{Asked, Bytes, Defaults, Device, KvCacheType, ModelSummary, NodeDevices, PlanReport, Tokens, capability, decide};

use crate::case::Case;

/// Sizes of GPUs, in GiB.
const GPUS: [u64; 5] = [16, 24, 48, 80, 141];
/// Memory of the host beside it, in GiB.
const HOST: u64 = 256;
const CONTEXTS: [u64; 3] = [8192, 32_768, 131_072];
/// Cases that say nothing more to a user: one is planned under another name too, the others generate no text.
const LEFT_OUT: [&str; 3] = ["deepseek-r1-32b-report", "bge-large-en", "nomic-embed-text"];

#[test]
fn the_page_on_sizes_shows_what_is_planned() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/sizing.md");
    let made = page();
    if std::env::var_os("STOWAGE_UPDATE_DOCS").is_some() {
        std::fs::write(&path, &made).unwrap();
    }
    let shown = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(shown == made, "{} is stale: STOWAGE_UPDATE_DOCS=1 cargo test -p stowage-placement --test golden sizes", path.display());
}

struct Model {
    name: String,
    quantization: String,
    summary: ModelSummary,
}

/// Those that the engine runs, the smallest first.
fn models() -> Vec<Model> {
    let is_left_out = |case: &Case| LEFT_OUT.iter().any(|name| case.path.ends_with(format!("{name}.input.yaml")));
    let cases = Case::all().into_iter().filter(|case| !is_left_out(case));
    let model = |case: Case| {
        let summary = case.summary();
        Model { name: case.input.name.clone(), quantization: summary.quantization.clone(), summary }
    };
    let mut models: Vec<Model> = cases.map(model).filter(|model| runs(&model.summary)).collect();
    models.sort_by_key(|model| model.summary.size_bytes);
    models
}

fn runs(summary: &ModelSummary) -> bool {
    KvCacheType::ALL.iter().all(|cache| capability::runs(summary, *cache, Backend::Cuda).is_ok())
}

fn page() -> String {
    let models = models();
    let mut text = format!(
        "\
# Sizing

<!-- Written by `STOWAGE_UPDATE_DOCS=1 cargo test -p stowage-placement --test golden sizes`. -->

How long a context fits wholly on one GPU, by model and GPU, and where a model runs that does not. It is what `stowage-agent plan FILE --gpu 24GiB --memory {HOST}GiB` says,
with nothing else on the GPU: {} % of it, at least {}, left free, and {} for its driver and libraries. One sequence (`parallel: 1`); each further one takes the
same cache again. Your own model and machine: [Ask before you apply](../README.md#ask-before-you-apply), and in a cluster
[`kubectl stowage plan`](kubectl-stowage.md#plan).

The sizes follow from the models' published configurations, quantised as the second column says, and are exact but for what a driver takes. Here are the models
of `placement/tests/golden` that the engine runs and that generate text.

## The largest `num_ctx` that is wholly on GPU

With a KV cache of type `f16`, and after the stroke with `q8_0`. *all*: every token that the model was trained for. A dash: no context is short enough.

",
        Defaults::default().margin_percent,
        Defaults::default().least_margin_bytes,
        Defaults::default().overhead_bytes,
    );
    text += &table(&["model", "", "file", "trained for"], &models, |model| Some(largest(model)));
    for num_ctx in CONTEXTS {
        text += &format!(
            "\n## Where it runs with `num_ctx` {num_ctx}\n\nShares of bytes on CPU and GPU with an `f16` cache; with `q8_0` after the stroke, where that is another. Models that were trained for less are left out.\n\n"
        );
        text += &table(&["model", ""], &models, |model| processors(model, Tokens(num_ctx)));
    }
    text
}

/// A row for each model that has one, a column for each GPU.
fn table(before: &[&str], models: &[Model], row: impl Fn(&Model) -> Option<Vec<String>>) -> String {
    let heads: Vec<String> = before.iter().map(|head| (*head).to_owned()).chain(GPUS.map(|gpu| format!("{gpu} GiB"))).collect();
    let line = |cells: &[String]| format!("| {} |\n", cells.join(" | "));
    let rule = format!("|{}\n", "---|".repeat(heads.len()));
    let named = |model: &Model| Some([vec![model.name.clone(), model.quantization.clone()], row(model)?].concat());
    line(&heads) + &rule + &models.iter().filter_map(named).map(|cells| line(&cells)).collect::<String>()
}

fn largest(model: &Model) -> Vec<String> {
    let trained = model.summary.trained_context;
    let told = |num_ctx: Tokens| match num_ctx {
        Tokens(0) => "–".to_owned(),
        // Contexts are looked for in steps of 256.
        Tokens(most) if most + 256 > trained.0 => "*all*".to_owned(),
        Tokens(most) => most.to_string(),
    };
    let on = |gpu: u64| {
        let [f16, q8_0] = [KvCacheType::F16, KvCacheType::Q8_0].map(|cache| told(plan(model, None, cache, gpu).fit.max_num_ctx_on_gpu));
        if f16 == q8_0 { f16 } else { format!("{f16} / {q8_0}") }
    };
    [model.summary.size_bytes.to_string(), trained.to_string()].into_iter().chain(GPUS.map(on)).collect()
}

fn processors(model: &Model, num_ctx: Tokens) -> Option<Vec<String>> {
    let on = |gpu: u64| {
        let [f16, q8_0] = [KvCacheType::F16, KvCacheType::Q8_0].map(|cache| processor(&plan(model, Some(num_ctx), cache, gpu)));
        if f16 == q8_0 { f16 } else { format!("{f16} / {q8_0}") }
    };
    (num_ctx <= model.summary.trained_context).then(|| GPUS.map(on).to_vec())
}

/// `38%/62%` of CPU and GPU; a reason where it would not run at all.
fn processor(report: &PlanReport) -> String {
    match report.fit.max_num_ctx >= report.request.num_ctx {
        true => report.plan.processor.trim_end_matches(" CPU/GPU").to_owned(),
        false => report.fit.reason.to_string(),
    }
}

fn plan(model: &Model, num_ctx: Option<Tokens>, cache: KvCacheType, gpu: u64) -> PlanReport {
    let defaults = Defaults::default();
    let offered = defaults.offered_by(Bytes::gib(gpu));
    let device = Device { id: "gpu0".into(), backend: Backend::Cuda, offered, overhead: defaults.overhead_bytes, ..Device::default() };
    let devices = NodeDevices::new(vec![device], defaults.offered_by(Bytes::gib(HOST)));
    let asked = Asked { num_ctx, kv_cache_type: cache, ..Asked::default() };
    decide(&model.summary, &asked, &devices).unwrap().report
}
