//! What would make it fit. Each change is planned like a request of its own, so it does what it says.

use crate::fit_report::Suggestion;
use crate::fit_report::considered::{Considered, Limits, Outcome, consider};
use crate::fit_report::demand::Demand;
use crate::request::{Asked, ContextPolicy, KvCacheType, PlacementPolicy};
use crate::units::Tokens;

/// A batch that still keeps a GPU busy while its scratch memory is a quarter of the default's.
const SMALL_BATCH: u32 = 128;

/// Best first: what keeps the most of what was asked.
pub(super) fn of(considered: &Considered<'_>, limits: Limits) -> Vec<Suggestion> {
    if considered.outcome == Outcome::Fits || considered.devices.gpus.is_empty() && considered.demand != Demand::None {
        return Vec::new();
    }
    let changes = smaller_batch(considered).into_iter().chain(cache_types(considered)).chain(context(considered, limits));
    changes.chain(one_sequence(considered)).chain(best_split(considered)).collect()
}

/// The change as a suggestion, if with it the request is met as wished.
fn met(considered: &Considered<'_>, asked: &Asked, change: &str, value: String, message: String) -> Option<Suggestion> {
    let changed = consider(considered.summary, asked, considered.devices).ok()?;
    let processor = changed.plan.processor.clone();
    (changed.outcome == Outcome::Fits).then(|| Suggestion { change: change.into(), value, processor, message })
}

/// The request as it was resolved, so that one change is one change.
fn resolved(considered: &Considered<'_>) -> Asked {
    let num_ctx = Some(considered.request.num_ctx);
    Asked { num_ctx, context_policy: ContextPolicy::Exact, min_context: None, ..considered.asked.clone() }
}

fn smaller_batch(considered: &Considered<'_>) -> Option<Suggestion> {
    let asked = resolved(considered);
    let num_batch = SMALL_BATCH;
    let message = format!(
        "reads a prompt in steps of {num_batch} tokens instead of {}: slower to begin an answer, the same answers",
        asked.num_batch
    );
    (asked.num_batch > num_batch)
        .then(|| met(considered, &Asked { num_batch, ..asked }, "numBatch", num_batch.to_string(), message))
        .flatten()
}

fn cache_types(considered: &Considered<'_>) -> Option<Suggestion> {
    let asked = resolved(considered);
    let smaller = KvCacheType::ALL.into_iter().filter(|cache| *cache > asked.kv_cache_type);
    // q8_0 comes first, and where it is enough, q4_0 would only lose precision.
    let mut found = smaller.filter_map(|cache| {
        let message =
            format!("keeps the memory of past tokens as {cache} instead of {}: less room, slightly less precise", asked.kv_cache_type);
        met(considered, &Asked { kv_cache_type: cache, ..asked.clone() }, "kvCacheType", cache.to_string(), message)
    });
    found.next()
}

fn context(considered: &Considered<'_>, limits: Limits) -> Option<Suggestion> {
    let asked = resolved(considered);
    let num_ctx = match considered.demand {
        Demand::AsManyAsFit | Demand::All => limits.on_gpu,
        Demand::Exactly(_) | Demand::None => limits.anywhere,
    };
    if num_ctx == Tokens(0) || num_ctx >= considered.request.num_ctx {
        return None;
    }
    let message = format!("the longest context that fits, instead of {}", considered.request.num_ctx);
    met(considered, &Asked { num_ctx: Some(num_ctx), ..asked }, "numCtx", num_ctx.to_string(), message)
}

fn one_sequence(considered: &Considered<'_>) -> Option<Suggestion> {
    let asked = resolved(considered);
    let message = format!("serves one request at a time instead of {}; the others wait", asked.parallel);
    (asked.parallel > 1).then(|| met(considered, &Asked { parallel: 1, ..asked }, "parallel", "1".into(), message)).flatten()
}

/// Where a number of layers was demanded and is too much: the number that fits.
fn best_split(considered: &Considered<'_>) -> Option<Suggestion> {
    let demanded = considered.asked.num_gpu > 0 && considered.asked.policy == PlacementPolicy::PreferGPU;
    let layers = considered.plan.gpu_layers;
    if !demanded || layers.0 == 0 || considered.outcome.is_placed() {
        return None;
    }
    let message = format!("the most layers that fit on GPU, of {}; the others run on CPU", considered.plan.total_layers);
    met(considered, &Asked { num_gpu: layers.0.into(), ..resolved(considered) }, "numGpu", layers.to_string(), message)
}
