//! Routed experts on a device. Which of them tokens go to is decided there, and stays there.

use stowage_placement::Reason;
use stowage_placement::compute::cuda::TILE_COLUMNS;

use super::activation::Activate;
use super::arguments::{ChooseArguments, Part, Quantised, SortArguments, SumExpertsArguments};
use super::buffers::{Buffers, ExpertBuffers, Rows};
use super::driver::{DevicePointer, Shape};
use super::kernels::{ExpertKernels, FEW, Kernels, WARP};
use super::linear::{Linear, Routed, most_tiles};
use super::weights::Loader;
use crate::api::EngineError;
use crate::graph::{ExpertMatrix, Experts, Gating, Operand};

/// The experts of one block.
pub struct DeviceExperts {
    router: Linear,
    choose: ChooseArguments,
    widen: Linear,
    activate: Activate,
    narrow: Linear,
    buffers: ExpertBuffers,
    kernels: ExpertKernels,
    hidden: Rows,
    embedding: u32,
}

impl DeviceExperts {
    pub fn load(
        experts: &Experts,
        buffers: &Buffers,
        loader: &mut Loader<'_>,
        kernels: &mut Kernels,
    ) -> Result<DeviceExperts, EngineError> {
        let (own, normed) = (buffers.experts()?, buffers.rows(Operand::Normed)?);
        let embedding = experts.down.rows as u32;
        let mut router = Linear::exact(normed, embedding, buffers.activations);
        let matrix = loader.matrix(&experts.router)?;
        let bias = loader.optional_vector(experts.router_bias.as_ref())?;
        let whole = Part {
            matrix: matrix.matrix,
            to: own.router.at,
            bias,
            first: 0,
            rows: experts.count as u32,
            stride: own.router.stride,
            add: 0,
        };
        router.push(kernels, matrix.ty, whole)?;
        let mut widen = Linear::new(normed, embedding, buffers.activations);
        for (matrix, to) in [(&experts.gate, own.gate), (&experts.up, own.up)] {
            push(&mut widen, matrix, to, loader, kernels)?;
        }
        let mut narrow = Linear::new(own.gate, experts.feed_forward as u32, own.activations);
        push(&mut narrow, &experts.down, own.given, loader, kernels)?;
        let missing = || EngineError::new(Reason::EngineCannotRun, "the kernels of experts were not loaded");
        Ok(DeviceExperts {
            router,
            choose: choose(experts, &own, loader)?,
            widen,
            activate: Activate::gated(experts.activation, own.gate, own.up, experts.feed_forward as u32),
            narrow,
            buffers: own,
            kernels: kernels.experts.ok_or_else(missing)?,
            hidden: buffers.rows(Operand::Hidden)?,
            embedding,
        })
    }

    /// Adds to Hidden what the experts make of Normed.
    pub fn run(&self, kernels: &Kernels, tokens: u32) -> Result<(), EngineError> {
        let ChooseArguments { count, used, groups, .. } = self.choose;
        self.router.run(kernels, tokens)?;
        let shape = Shape { grid: [tokens, 1, 1], threads: WARP, shared_bytes: 4 * (2 * count + groups + used) };
        kernels.driver.launch(self.kernels.choose, shape, &self.choose)?;
        if tokens > FEW {
            self.sort(kernels, tokens)?;
        }
        let ExpertBuffers { choices, tiles, sorted_pairs, given, .. } = self.buffers;
        let routed = Routed { choices, tiles, sorted_pairs, used, experts: count, by_token: true };
        self.widen.run_routed(kernels, tokens, routed)?;
        self.activate.run(kernels, tokens * used, Quantised::NOWHERE)?;
        self.narrow.run_routed(kernels, tokens, Routed { by_token: false, ..routed })?;
        let sum = SumExpertsArguments { to: self.hidden.at, from: given.at, choices, used, length: self.embedding };
        kernels.launch_rows(self.kernels.sum_experts, tokens, self.embedding, &sum)
    }

    fn sort(&self, kernels: &Kernels, tokens: u32) -> Result<(), EngineError> {
        let ChooseArguments { count: experts, used, choices, .. } = self.choose;
        let ExpertBuffers { tiles, sorted_pairs, .. } = self.buffers;
        let pairs = tokens * used;
        let (most_tiles, tile_columns) = (most_tiles(pairs, experts), TILE_COLUMNS as u32);
        let arguments = SortArguments { choices, sorted_pairs, tiles, pairs, experts, most_tiles, tile_columns };
        kernels.launch(self.kernels.sort_by_expert, [1, 1, 1], experts, &arguments)
    }
}

fn push(linear: &mut Linear, matrix: &ExpertMatrix, to: Rows, loader: &mut Loader<'_>, kernels: &mut Kernels) -> Result<(), EngineError> {
    let weights = loader.matrix(&matrix.weight)?;
    let bias = loader.optional_vector(matrix.bias.as_ref())?;
    let part = Part { matrix: weights.matrix, to: to.at, bias, first: 0, rows: matrix.rows as u32, stride: to.stride, add: 0 };
    linear.push(kernels, weights.ty, part)
}

fn choose(experts: &Experts, buffers: &ExpertBuffers, loader: &mut Loader<'_>) -> Result<ChooseArguments, EngineError> {
    let selection_bias: DevicePointer = loader.optional_vector(experts.selection_bias.as_ref())?;
    let (groups, groups_used) = experts.groups.map_or((0, 0), |groups| (groups.count as u32, groups.used as u32));
    Ok(ChooseArguments {
        logits: buffers.router.at,
        selection_bias,
        choices: buffers.choices,
        count: experts.count as u32,
        used: experts.used as u32,
        gating: match experts.gating {
            Gating::Softmax => 0,
            Gating::Sigmoid => 1,
            Gating::SoftmaxOfChosen => 2,
        },
        groups,
        groups_used,
        renormalise: experts.renormalise.into(),
        scale: experts.scale,
    })
}
