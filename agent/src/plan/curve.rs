//! How many bytes a model needs on GPU, context by context, and where the devices end: what the charts draw.

use stowage_placement::{Asked, Bytes, ContextPolicy, Footprint, KvCacheType, ModelSummary, NodeDevices, PlanReport, Tokens, decide};

/// The first context that is drawn; each further one is twice as long.
const SHORTEST: u64 = 1024;

/// What takes GPU memory, in the order in which it is stacked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Weights,
    /// KV cache, states, and copies of them.
    Cache,
    WorkingSpace,
    Libraries,
}

impl Kind {
    pub const ALL: [Kind; 4] = [Kind::Weights, Kind::Cache, Kind::WorkingSpace, Kind::Libraries];

    /// As the messages of a fit report call it.
    pub fn name(self) -> &'static str {
        match self {
            Kind::Weights => "weights",
            Kind::Cache => "cache",
            Kind::WorkingSpace => "working space",
            Kind::Libraries => "GPU libraries",
        }
    }
}

/// What all layers need on one GPU at one context.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Need {
    pub num_ctx: Tokens,
    /// In the order of [`Kind::ALL`].
    pub bytes: [Bytes; 4],
}

impl Need {
    fn new(num_ctx: Tokens, footprint: &Footprint) -> Need {
        let cache = [footprint.kv_cache_bytes, footprint.state_bytes, footprint.checkpoint_bytes].into_iter().sum();
        Need { num_ctx, bytes: [footprint.weights_bytes, cache, footprint.compute_bytes, footprint.overhead_bytes] }
    }

    /// Where each kind ends when they are stacked; the last is the total.
    pub fn stacked(&self) -> [Bytes; 4] {
        let mut end = Bytes::ZERO;
        self.bytes.map(|bytes| {
            end = end.saturating_add(bytes);
            end
        })
    }

    pub fn total(&self) -> Bytes {
        self.bytes.into_iter().sum()
    }
}

/// What one type of KV cache leads to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Curve {
    pub cache_type: KvCacheType,
    /// The context that is asked about.
    pub asked: Tokens,
    /// By context, the shortest first.
    pub needs: Vec<Need>,
}

impl Curve {
    pub fn at(&self, num_ctx: Tokens) -> Option<&Need> {
        self.needs.iter().find(|need| need.num_ctx == num_ctx)
    }
}

/// A GPU, and where it ends when the GPUs are counted one after another.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct End {
    pub gpu: String,
    pub at: Bytes,
}

/// One curve, or one for each type of cache that is compared, over the same contexts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Chart {
    pub(super) curves: Vec<Curve>,
    pub(super) ends: Vec<End>,
}

impl Chart {
    /// Over contexts from 1024 tokens to the trained one, with those that the reports are about among them.
    pub(super) fn new(summary: &ModelSummary, asked: &Asked, devices: &NodeDevices, reports: &[PlanReport]) -> Chart {
        let contexts = contexts(summary.trained_context, reports.iter().map(|report| report.request.num_ctx));
        let curve = |report: &PlanReport| {
            let cache_type = report.request.kv_cache_type;
            let exact = Asked { kv_cache_type: cache_type, context_policy: ContextPolicy::Exact, min_context: None, ..asked.clone() };
            let need = |num_ctx: &Tokens| {
                let asked = Asked { num_ctx: Some(*num_ctx), ..exact.clone() };
                Some(Need::new(*num_ctx, &decide(summary, &asked, devices).ok()?.report.footprint))
            };
            Curve { cache_type, asked: report.request.num_ctx, needs: contexts.iter().filter_map(need).collect() }
        };
        let mut at = Bytes::ZERO;
        let ends = devices.gpus.iter().map(|gpu| {
            at = at.saturating_add(gpu.offered);
            End { gpu: gpu.id.clone(), at }
        });
        Chart { curves: reports.iter().map(curve).collect(), ends: ends.collect() }
    }

    pub(super) fn needs(&self) -> impl Iterator<Item = &Need> {
        self.curves.iter().flat_map(|curve| &curve.needs)
    }

    /// All contexts that are drawn, the shortest first.
    pub(super) fn contexts(&self) -> Vec<Tokens> {
        let mut contexts: Vec<Tokens> = self.needs().map(|need| need.num_ctx).collect();
        contexts.sort_unstable();
        contexts.dedup();
        contexts
    }

    /// The kinds that take anything at all.
    pub(super) fn kinds(&self) -> Vec<Kind> {
        let taken = |kind: &Kind| self.needs().any(|need| need.bytes[*kind as usize] > Bytes::ZERO);
        Kind::ALL.into_iter().filter(taken).collect()
    }

    /// The most that any context needs or all GPUs offer.
    pub(super) fn largest(&self) -> Bytes {
        let offered = self.ends.last().map(|end| end.at);
        self.needs().map(Need::total).chain(offered).max().unwrap_or_default()
    }
}

fn contexts(trained: Tokens, asked: impl Iterator<Item = Tokens>) -> Vec<Tokens> {
    let doubled = std::iter::successors(Some(SHORTEST), |context| context.checked_mul(2)).take_while(|context| *context < trained.0);
    let mut contexts: Vec<Tokens> = doubled.map(Tokens).chain([trained]).chain(asked).collect();
    contexts.sort_unstable();
    contexts.dedup();
    contexts
}

#[cfg(test)]
mod tests {
    use stowage_placement::testing::{SMOLLM2_135M, devices};

    use super::*;

    #[test]
    fn contexts_double_up_to_the_trained_one_and_have_those_that_are_asked_about() {
        let of = |trained, asked: &[u64]| {
            contexts(Tokens(trained), asked.iter().copied().map(Tokens)).into_iter().map(|c| c.0).collect::<Vec<_>>()
        };
        assert_eq!(of(8192, &[4096]), [1024, 2048, 4096, 8192]);
        assert_eq!(of(5000, &[300, 3000, 300]), [300, 1024, 2048, 3000, 4096, 5000]);
        assert_eq!(of(512, &[512]), [512]);
        assert_eq!(of(1 << 20, &[1 << 20]).len(), 11);
    }

    #[test]
    fn what_is_stacked_is_what_the_report_counts_and_ends_add_up() {
        let (summary, devices) = (SMOLLM2_135M.summary(), devices(&[Bytes::gib(1), Bytes::mib(512)], Bytes::gib(8)));
        let asked = Asked { num_ctx: Some(Tokens(3000)), ..Asked::default() };
        let report = decide(&summary, &asked, &devices).unwrap().report;
        let chart = Chart::new(&summary, &asked, &devices, std::slice::from_ref(&report));
        let need = chart.needs().find(|need| need.num_ctx == Tokens(3000)).unwrap();
        assert_eq!(need.total(), report.footprint.total_bytes);
        assert_eq!(need.stacked()[3], need.total());
        assert_eq!(need.bytes[Kind::Cache as usize], report.footprint.kv_cache_bytes);
        assert_eq!(chart.ends, [("gpu0", 1024), ("gpu1", 1536)].map(|(gpu, mib)| End { gpu: gpu.into(), at: Bytes::mib(mib) }));
        assert_eq!(chart.kinds(), [Kind::Weights, Kind::Cache, Kind::WorkingSpace], "these GPUs have no overhead");
        assert_eq!(chart.largest(), Bytes::mib(1536));
    }
}
