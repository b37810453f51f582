//! The bytes of each layer, and of any run of layers without adding them up again.

use crate::architecture::MAX_CONTEXT;
use crate::footprint::{FootprintError, LayerFootprint, sequences};
use crate::layout::{Backend, weight_bytes};
use crate::model_summary::{LayerKind, ModelSummary, TensorCount, TensorKind};
use crate::request::Request;
use crate::units::Bytes;

/// Summaries come from other nodes' status too; a list of layers is made from what they claim.
const MAX_BLOCKS: u32 = crate::architecture::MAX_BLOCKS as u32;

/// Bytes of a run of layers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Span {
    pub weights: Bytes,
    pub kv_cache: Bytes,
    pub state: Bytes,
    pub checkpoints: Bytes,
}

impl Span {
    pub fn total(self) -> Bytes {
        // The sum over all layers was checked when they were sized.
        [self.weights, self.kv_cache, self.state, self.checkpoints].into_iter().sum()
    }

    fn checked_add(self, other: Span) -> Option<Span> {
        let sum = Span {
            weights: self.weights.checked_add(other.weights)?,
            kv_cache: self.kv_cache.checked_add(other.kv_cache)?,
            state: self.state.checked_add(other.state)?,
            checkpoints: self.checkpoints.checked_add(other.checkpoints)?,
        };
        sum.weights.checked_add(sum.kv_cache)?.checked_add(sum.state)?.checked_add(sum.checkpoints)?;
        Some(sum)
    }

    fn minus(self, other: Span) -> Span {
        Span {
            weights: self.weights.saturating_sub(other.weights),
            kv_cache: self.kv_cache.saturating_sub(other.kv_cache),
            state: self.state.saturating_sub(other.state),
            checkpoints: self.checkpoints.saturating_sub(other.checkpoints),
        }
    }
}

/// Every layer's bytes on one backend for one request, the output layer last.
#[derive(Clone, Debug)]
pub(crate) struct LayerSizes {
    layers: Vec<Span>,
    /// `sums[i]` is the sum of the layers before `i`.
    sums: Vec<Span>,
    /// The same, all kinds together.
    totals: Vec<Bytes>,
    /// The same of the experts alone, which are among the weights; empty where no layer has any.
    experts: Vec<Bytes>,
}

impl LayerSizes {
    /// `on_gpu` decides whether an output layer that shares the token embeddings holds them again.
    pub fn new(summary: &ModelSummary, request: &Request, backend: Backend, on_gpu: bool) -> Result<LayerSizes, FootprintError> {
        if summary.block_count() > MAX_BLOCKS {
            return Err(bad(format!("it claims {} layers, at most {MAX_BLOCKS} are possible", summary.block_count())));
        }
        if request.num_ctx > MAX_CONTEXT {
            return Err(FootprintError::TooManyTokens { num_ctx: request.num_ctx, most: MAX_CONTEXT });
        }
        let bytes = |kind: &TensorKind| weight_bytes(kind.ggml_type, kind.rows, kind.columns, backend);
        let kinds = summary.layer_kinds.iter().map(|kind| {
            let weights = weights_of(summary, &kind.tensors, bytes, "weights of a layer", request)?;
            let kept = sequences::kept(kind, request).ok_or_else(|| FootprintError::overflow("cache of a layer", request))?;
            Ok(Span { weights, ..kept })
        });
        let kinds = kinds.collect::<Result<Vec<Span>, FootprintError>>()?;
        let experts = experts(summary, &kinds, bytes, request)?;
        let mut layers = Vec::with_capacity(summary.block_count() as usize + 1);
        for [kind, count] in &summary.layers {
            let span = kinds.get(*kind as usize).ok_or_else(|| bad(format!("there is no layer kind {kind}")))?;
            layers.extend(std::iter::repeat_n(*span, *count as usize));
        }
        layers.push(output_layer(summary, request, backend, on_gpu)?);
        let sizes = LayerSizes::summed(layers).ok_or_else(|| FootprintError::overflow("sum of all layers", request))?;
        Ok(LayerSizes { experts, ..sizes })
    }

    fn summed(layers: Vec<Span>) -> Option<LayerSizes> {
        let mut sums = Vec::with_capacity(layers.len() + 1);
        let mut sum = Span::default();
        sums.push(sum);
        for layer in &layers {
            sum = sum.checked_add(*layer)?;
            sums.push(sum);
        }
        let totals = sums.iter().map(|sum| sum.total()).collect();
        Some(LayerSizes { layers, sums, totals, experts: Vec::new() })
    }

    /// Blocks and the output layer.
    pub fn count(&self) -> u32 {
        self.layers.len() as u32
    }

    /// Bytes of layers `first` to `end - 1`.
    pub fn span(&self, first: u32, end: u32) -> Span {
        self.sums[end as usize].minus(self.sums[first as usize])
    }

    /// All bytes of layers `first` to `end - 1`.
    pub fn bytes(&self, first: u32, end: u32) -> Bytes {
        self.totals[end as usize].saturating_sub(self.totals[first as usize])
    }

    /// Bytes of the experts of layers `first` to `end - 1`.
    pub fn experts(&self, first: u32, end: u32) -> Bytes {
        let sum = |layer: u32| self.experts.get(layer as usize).copied().unwrap_or_default();
        sum(end).saturating_sub(sum(first))
    }

    pub fn all(&self) -> Span {
        self.span(0, self.count())
    }

    pub fn into_layers(self) -> Vec<LayerFootprint> {
        let footprint = |(index, layer): (usize, Span)| LayerFootprint {
            index: index as u32,
            weights_bytes: layer.weights,
            kv_cache_bytes: layer.kv_cache,
            state_bytes: layer.state,
            checkpoint_bytes: layer.checkpoints,
        };
        self.layers.into_iter().enumerate().map(footprint).collect()
    }
}

/// For each block the sum of the experts before it, and after the last one the sum of all, which holds for the output layer too.
fn experts(
    summary: &ModelSummary,
    kinds: &[Span],
    bytes: impl Fn(&TensorKind) -> Option<Bytes>,
    request: &Request,
) -> Result<Vec<Bytes>, FootprintError> {
    if !summary.has_experts() {
        return Ok(Vec::new());
    }
    let of_kind = |(kind, span): (&LayerKind, &Span)| {
        let experts = weights_of(summary, &kind.experts, &bytes, "experts of a layer", request)?;
        if experts <= span.weights { Ok(experts) } else { Err(bad("it claims more bytes of experts than of weights".into())) }
    };
    let of_kind = summary.layer_kinds.iter().zip(kinds).map(of_kind).collect::<Result<Vec<Bytes>, FootprintError>>()?;
    let layers = summary.layers.iter().flat_map(|[kind, count]| std::iter::repeat_n(*kind as usize, *count as usize));
    let mut sums = vec![Bytes::ZERO];
    let mut sum = Bytes::ZERO;
    for kind in layers.chain([usize::MAX]) {
        // The output layer has none.
        sum = sum.saturating_add(of_kind.get(kind).copied().unwrap_or_default());
        sums.push(sum);
    }
    Ok(sums)
}

fn output_layer(summary: &ModelSummary, request: &Request, backend: Backend, on_gpu: bool) -> Result<Span, FootprintError> {
    let bytes = |kind: &TensorKind| weight_bytes(kind.ggml_type, kind.rows, kind.columns, backend);
    let mut tensors = summary.output.clone();
    if let (Some(kind), true) = (summary.tied_output, on_gpu) {
        tensors.push([kind, 1]);
    }
    Ok(Span { weights: weights_of(summary, &tensors, bytes, "weights of the output layer", request)?, ..Span::default() })
}

/// Tensors of the input layer as the host allocates them.
pub(super) fn input_weights(summary: &ModelSummary, request: &Request, backend: Backend) -> Result<Bytes, FootprintError> {
    let bytes = |kind: &TensorKind| weight_bytes(kind.ggml_type, kind.rows, kind.columns, backend);
    weights_of(summary, &summary.input, bytes, "weights of the input layer", request)
}

/// Tensors of the input layer as they lie in the file.
pub(super) fn file_input_weights(summary: &ModelSummary) -> Result<Bytes, FootprintError> {
    weights_of(summary, &summary.input, in_file, "input layer in the file", &Request::default())
}

/// All other tensors as they lie in the file.
pub(super) fn file_weights(summary: &ModelSummary) -> Result<Bytes, FootprintError> {
    let request = Request::default();
    let overflow = || FootprintError::overflow("weights in the file", &request);
    let mut sum = weights_of(summary, &summary.output, in_file, "output layer in the file", &request)?;
    for [index, count] in &summary.layers {
        let kind = summary.layer_kinds.get(*index as usize).ok_or_else(|| bad(format!("there is no layer kind {index}")))?;
        let layer = weights_of(summary, &kind.tensors, in_file, "layer in the file", &request)?;
        sum = layer.checked_mul(u64::from(*count)).and_then(|run| sum.checked_add(run)).ok_or_else(overflow)?;
    }
    Ok(sum)
}

fn in_file(kind: &TensorKind) -> Option<Bytes> {
    kind.ggml_type.bytes(kind.rows.checked_mul(kind.columns)?)
}

fn weights_of(
    summary: &ModelSummary,
    tensors: &[TensorCount],
    bytes: impl Fn(&TensorKind) -> Option<Bytes>,
    what: &str,
    request: &Request,
) -> Result<Bytes, FootprintError> {
    let mut sum = Bytes::ZERO;
    for [index, count] in tensors {
        let kind = summary.tensor_kinds.get(*index as usize).ok_or_else(|| bad(format!("there is no tensor kind {index}")))?;
        let added = bytes(kind).and_then(|bytes| bytes.checked_mul(u64::from(*count))).and_then(|run| sum.checked_add(run));
        sum = added.ok_or_else(|| FootprintError::overflow(what, request))?;
    }
    Ok(sum)
}

fn bad(what: String) -> FootprintError {
    FootprintError::BadSummary { what }
}
