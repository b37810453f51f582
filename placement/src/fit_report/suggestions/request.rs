//! Changes to the request itself.

use crate::fit_report::Suggestion;
use crate::fit_report::considered::{Considered, Limits, Outcome, consider};
use crate::fit_report::demand::Demand;
use crate::fit_report::suggestions::{met, resolved, suggestion};
use crate::request::{Asked, KvCacheType, PlacementPolicy};
use crate::units::Tokens;

/// Fewer tokens in a step of prefill than this leave any device idle most of the time.
const SMALLEST_BATCH: u32 = 32;

/// The largest power of two that does.
pub(super) fn smaller_batch(considered: &Considered<'_>) -> Option<Suggestion> {
    let asked = resolved(considered);
    let with = |num_batch: u32| {
        let message = format!(
            "reads a prompt in steps of {num_batch} tokens instead of {}: slower to begin an answer, the same answers",
            asked.num_batch
        );
        met(considered, &Asked { num_batch, ..asked.clone() }, "numBatch", num_batch.to_string(), message)
    };
    if asked.num_batch <= SMALLEST_BATCH {
        return None;
    }
    with(SMALLEST_BATCH)?;
    (0..u32::BITS).rev().map(|power| 1 << power).filter(|batch| *batch < asked.num_batch).find_map(with)
}

/// The most precise that does. Where the engine lacks the one that was asked for, also a larger one.
pub(super) fn cache_type(considered: &Considered<'_>) -> Option<Suggestion> {
    let asked = resolved(considered);
    let any = matches!(considered.outcome, Outcome::CannotRun(_));
    let others = KvCacheType::ALL.into_iter().filter(|cache| *cache > asked.kv_cache_type || any && *cache != asked.kv_cache_type);
    let mut found = others.filter_map(|cache| {
        let effect = if cache > asked.kv_cache_type { "less room, slightly less precise" } else { "more room, and the engine can run it" };
        let message = format!("keeps the memory of past tokens as {cache} instead of {}: {effect}", asked.kv_cache_type);
        met(considered, &Asked { kv_cache_type: cache, ..asked.clone() }, "kvCacheType", cache.to_string(), message)
    });
    found.next()
}

/// The longest with which the request is met as wished; where it is refused and none is, the longest with which it runs at all.
pub(super) fn context(considered: &Considered<'_>, limits: Limits) -> Option<Suggestion> {
    let candidates = match considered.demand {
        Demand::AsManyAsFit => [limits.on_gpu, limits.anywhere],
        Demand::All => [limits.on_gpu; 2],
        Demand::Exactly(_) | Demand::None => [limits.anywhere; 2],
    };
    let shorter = candidates.into_iter().filter(|num_ctx| Tokens(0) < *num_ctx && *num_ctx < considered.request.num_ctx);
    let mut found = shorter.filter_map(|num_ctx| {
        let asked = Asked { num_ctx: Some(num_ctx), ..resolved(considered) };
        let changed = consider(considered.engine, considered.summary, &asked, considered.devices).ok()?;
        let enough = changed.outcome == Outcome::Fits || changed.outcome.is_placed() && !considered.outcome.is_placed();
        let message = format!("the longest context that fits, instead of {}", considered.request.num_ctx);
        enough.then(|| suggestion(&changed, "numCtx", num_ctx.to_string(), message))
    });
    found.next()
}

/// As many as fit; another sequence never needs fewer bytes.
pub(super) fn fewer_sequences(considered: &Considered<'_>) -> Option<Suggestion> {
    let asked = resolved(considered);
    let with = |parallel: u32| {
        let requests = if parallel == 1 { "1 request".into() } else { format!("{parallel} requests") };
        let message = format!("serves {requests} at a time instead of {}; the others wait", asked.parallel);
        met(considered, &Asked { parallel, ..asked.clone() }, "parallel", parallel.to_string(), message)
    };
    let (mut fewest, mut most, mut found) = (1, asked.parallel - 1, None);
    while fewest <= most {
        let middle = fewest + (most - fewest) / 2;
        match with(middle) {
            None => most = middle - 1,
            suggestion => (fewest, found) = (middle + 1, suggestion),
        }
    }
    found
}

/// Where a number of layers was demanded and is too much: the number that fits.
pub(super) fn best_split(considered: &Considered<'_>) -> Option<Suggestion> {
    let demanded = considered.asked.num_gpu > 0 && considered.asked.policy == PlacementPolicy::PreferGPU;
    let layers = considered.plan().gpu_layers;
    if !demanded || layers.0 == 0 || considered.outcome.is_placed() {
        return None;
    }
    let message = format!("the most layers that fit on GPU, of {}; the others run on CPU", considered.plan().total_layers);
    met(considered, &Asked { num_gpu: layers.0.into(), ..resolved(considered) }, "numGpu", layers.to_string(), message)
}
