//! What would make it fit. Each change is planned like a request of its own, so it does what it says.

use crate::device_plan::{Device, NodeDevices, Planner};
use crate::fit_report::Suggestion;
use crate::fit_report::considered::{Considered, Limits, Outcome, consider};
use crate::fit_report::demand::Demand;
use crate::request::{Asked, ContextPolicy, KvCacheType, PlacementPolicy};
use crate::units::{Bytes, Tokens};

/// Fewer tokens in a step of prefill than this leave any device idle most of the time.
const SMALLEST_BATCH: u32 = 32;

/// Best first: what keeps the most of what was asked, and last what only other hardware gives.
pub(super) fn of(considered: &Considered<'_>, limits: Limits) -> Vec<Suggestion> {
    if considered.outcome == Outcome::Fits {
        return Vec::new();
    }
    let changes = [
        smaller_batch(considered),
        cache_type(considered),
        context(considered, limits),
        fewer_sequences(considered),
        best_split(considered),
        device(considered),
    ];
    changes.into_iter().flatten().collect()
}

/// The change as a suggestion, if with it the request is met as wished.
fn met(considered: &Considered<'_>, asked: &Asked, change: &str, value: String, message: String) -> Option<Suggestion> {
    let changed = consider(considered.summary, asked, considered.devices).ok()?;
    (changed.outcome == Outcome::Fits).then(|| suggestion(&changed, change, value, message))
}

fn suggestion(changed: &Considered<'_>, change: &str, value: String, message: String) -> Suggestion {
    Suggestion { change: change.into(), value, processor: changed.plan().processor.clone(), message }
}

/// The request as it was resolved, so that one change is one change.
fn resolved(considered: &Considered<'_>) -> Asked {
    let num_ctx = Some(considered.request.num_ctx);
    Asked { num_ctx, context_policy: ContextPolicy::Exact, min_context: None, ..considered.asked.clone() }
}

/// The largest power of two that does.
fn smaller_batch(considered: &Considered<'_>) -> Option<Suggestion> {
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
fn cache_type(considered: &Considered<'_>) -> Option<Suggestion> {
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
fn context(considered: &Considered<'_>, limits: Limits) -> Option<Suggestion> {
    let candidates = match considered.demand {
        Demand::AsManyAsFit => [limits.on_gpu, limits.anywhere],
        Demand::All => [limits.on_gpu; 2],
        Demand::Exactly(_) | Demand::None => [limits.anywhere; 2],
    };
    let shorter = candidates.into_iter().filter(|num_ctx| Tokens(0) < *num_ctx && *num_ctx < considered.request.num_ctx);
    let mut found = shorter.filter_map(|num_ctx| {
        let asked = Asked { num_ctx: Some(num_ctx), ..resolved(considered) };
        let changed = consider(considered.summary, &asked, considered.devices).ok()?;
        let enough = changed.outcome == Outcome::Fits || changed.outcome.is_placed() && !considered.outcome.is_placed();
        let message = format!("the longest context that fits, instead of {}", considered.request.num_ctx);
        enough.then(|| suggestion(&changed, "numCtx", num_ctx.to_string(), message))
    });
    found.next()
}

/// As many as fit; another sequence never needs fewer bytes.
fn fewer_sequences(considered: &Considered<'_>) -> Option<Suggestion> {
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
fn best_split(considered: &Considered<'_>) -> Option<Suggestion> {
    let demanded = considered.asked.num_gpu > 0 && considered.asked.policy == PlacementPolicy::PreferGPU;
    let layers = considered.plan().gpu_layers;
    if !demanded || layers.0 == 0 || considered.outcome.is_placed() {
        return None;
    }
    let message = format!("the most layers that fit on GPU, of {}; the others run on CPU", considered.plan().total_layers);
    met(considered, &Asked { num_gpu: layers.0.into(), ..resolved(considered) }, "numGpu", layers.to_string(), message)
}

/// The size of one GPU, of the kind that the node has, that would do beside the same host. In whole GiB, as `agent plan --gpu` takes it.
fn device(considered: &Considered<'_>) -> Option<Suggestion> {
    let (wished, (backend, overhead)) = (considered.demand.wished(considered.plan().total_layers.0), considered.gpu_kind());
    if wished == 0 {
        return None;
    }
    let NodeDevices { gpus: _, host, defaults } = considered.devices;
    let node = |offered| NodeDevices {
        gpus: vec![Device { id: "gpu0".into(), backend, offered, overhead, ..Device::default() }],
        host: host.clone(),
        defaults: *defaults,
    };
    let (asked, unlimited) = (resolved(considered), node(Bytes::MAX));
    let planner = Planner::new(considered.summary, &unlimited, |_| true, asked.max_devices);
    let needed = planner.sized(&considered.request).ok()?.gpu_needs(wished, 1).total();
    let size = defaults.smallest_gpu(needed)?;
    let larger = node(defaults.offered_by(size));
    let changed = consider(considered.summary, &asked, &larger).ok()?;
    let gib = size.0 >> 30;
    let message = format!("one GPU of {gib} GiB with nothing else on it holds the {needed} that this needs there");
    (changed.outcome == Outcome::Fits).then(|| suggestion(&changed, "device", format!("{gib}GiB"), message))
}
