//! The bytes that a model needs, by kind and by layer, for given parameters.

mod layer_sizes;
mod sequences;

pub(crate) use layer_sizes::{LayerSizes, Span};
pub use sequences::CHECKPOINTS;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::compute::{ComputeShape, DeviceRole, scratch_bytes};
use crate::layout::Backend;
use crate::model_summary::ModelSummary;
use crate::reason::Reason;
use crate::request::Request;
use crate::units::{Bytes, Tokens};

/// Bytes for all layers on one GPU. The `file…` fields count tensors as they lie in the file, the others as the backend allocates them.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Footprint {
    /// Tensors of the layers. An output layer that shares the token embeddings' matrix has none of its own in the file.
    pub file_weights_bytes: Bytes,
    /// Tensors of the input layer, as they lie in the file.
    pub file_host_weights_bytes: Bytes,
    /// Tensors of the layers, as the GPU has them.
    pub weights_bytes: Bytes,
    /// Tensors of the input layer, which stay in host memory.
    pub host_weights_bytes: Bytes,
    /// Keys and values of `num_ctx` tokens, for all sequences.
    pub kv_cache_bytes: Bytes,
    /// Recurrent states, for all sequences.
    pub state_bytes: Bytes,
    /// Copies of rings and states, from which a prefix of a sequence can be gone on.
    pub checkpoint_bytes: Bytes,
    /// Working space for `num_batch` tokens.
    pub compute_bytes: Bytes,
    /// What the GPU's driver and libraries take for a replica.
    pub overhead_bytes: Bytes,
    /// What the GPU needs: all of the above but what is in the file and on the host.
    pub total_bytes: Bytes,
    /// One entry a layer, the output layer last. Left out of Kubernetes objects.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub layers: Vec<LayerFootprint>,
}

/// What one layer takes.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct LayerFootprint {
    /// Of the layer, from 0.
    pub index: u32,
    /// Its tensors, as the GPU has them.
    pub weights_bytes: Bytes,
    /// Its keys and values.
    pub kv_cache_bytes: Bytes,
    /// Its recurrent state.
    pub state_bytes: Bytes,
    /// Copies of its ring or state.
    #[serde(default)]
    pub checkpoint_bytes: Bytes,
}

/// Why there is no number.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FootprintError {
    #[error("the {what} for num_ctx {}, parallel {}, num_batch {} needs more bytes than 64 bits can count", request.num_ctx, request.parallel, request.num_batch)]
    Overflow { what: String, request: Box<Request> },
    #[error("num_ctx {num_ctx} is more than any model has; at most {most} tokens can be counted with")]
    TooManyTokens { num_ctx: Tokens, most: Tokens },
    #[error("the model's summary is damaged: {what}")]
    BadSummary { what: String },
}

impl FootprintError {
    pub fn reason(&self) -> Reason {
        match self {
            FootprintError::Overflow { .. } | FootprintError::TooManyTokens { .. } => Reason::InvalidRequest,
            FootprintError::BadSummary { .. } => Reason::InvalidModelFile,
        }
    }

    pub(crate) fn overflow(what: impl Into<String>, request: &Request) -> FootprintError {
        FootprintError::Overflow { what: what.into(), request: Box::new(request.clone()) }
    }
}

impl Footprint {
    /// The bytes of all layers on one GPU of this backend, where a context and libraries take `overhead`, and of the input layer on a host of `host_backend`.
    pub fn new(
        summary: &ModelSummary,
        request: &Request,
        backend: Backend,
        overhead: Bytes,
        host_backend: Backend,
    ) -> Result<Footprint, FootprintError> {
        let sizes = LayerSizes::new(summary, request, backend, true)?;
        let Span { weights, kv_cache, state, checkpoints } = sizes.all();
        let compute = compute_bytes(summary, request, backend, DeviceRole { layers: true, output: true, input: false })?;
        let total = [weights, kv_cache, state, checkpoints, compute, overhead].into_iter().try_fold(Bytes::ZERO, Bytes::checked_add);
        Ok(Footprint {
            file_weights_bytes: layer_sizes::file_weights(summary)?,
            file_host_weights_bytes: layer_sizes::file_input_weights(summary)?,
            weights_bytes: weights,
            host_weights_bytes: layer_sizes::input_weights(summary, request, host_backend)?,
            kv_cache_bytes: kv_cache,
            state_bytes: state,
            checkpoint_bytes: checkpoints,
            compute_bytes: compute,
            overhead_bytes: overhead,
            total_bytes: total.ok_or_else(|| FootprintError::overflow("whole model", request))?,
            layers: sizes.into_layers(),
        })
    }

    /// As it stands in a Kubernetes object.
    pub fn without_layers(mut self) -> Footprint {
        self.layers = Vec::new();
        self
    }
}

/// Scratch memory of a device with this role.
pub(crate) fn compute_bytes(
    summary: &ModelSummary,
    request: &Request,
    backend: Backend,
    role: DeviceRole,
) -> Result<Bytes, FootprintError> {
    let shape = ComputeShape::from(&summary.shape);
    let bytes = scratch_bytes(&shape, request.num_batch, request.parallel, backend, role);
    bytes.ok_or_else(|| FootprintError::overflow("scratch memory", request))
}

/// What the host needs for the input layer, whichever layers it holds besides.
pub(crate) fn input_weights(summary: &ModelSummary, request: &Request, backend: Backend) -> Result<Bytes, FootprintError> {
    layer_sizes::input_weights(summary, request, backend)
}

#[cfg(test)]
mod tests;
