//! What rows are put through between products.

use super::arguments::{ActivateArguments, CombineArguments, Quantised};
use super::buffers::Rows;
use super::driver::DevicePointer;
use super::kernels::Kernels;
use crate::api::EngineError;
use crate::graph::Activation;

/// A gate, or a value alone, put through an activation.
pub struct Activate(ActivateArguments);

impl Activate {
    /// `gate = activation(gate) x up`
    pub fn gated(activation: Activation, gate: Rows, up: Rows, length: u32) -> Activate {
        let (activation, alpha, limit) = match activation {
            Activation::Silu => (0, 0.0, 0.0),
            Activation::GeluTanh => (1, 0.0, 0.0),
            Activation::ClampedSwiGlu { alpha, limit } => (2, alpha, limit),
        };
        Activate(ActivateArguments {
            gate: gate.at,
            up: up.at,
            stride: gate.stride,
            length,
            activation,
            alpha,
            limit,
            quantised: Quantised::NOWHERE,
        })
    }

    /// `value = gelu(value)`
    pub fn gelu(value: Rows, length: u32) -> Activate {
        let Rows { at: gate, stride } = value;
        Activate(ActivateArguments {
            gate,
            up: DevicePointer::NULL,
            stride,
            length,
            activation: 3,
            alpha: 0.0,
            limit: 0.0,
            quantised: Quantised::NOWHERE,
        })
    }

    /// Where what it gives lies.
    pub fn result(&self) -> DevicePointer {
        self.0.gate
    }

    /// The result goes into 8 bits, too, where that is asked for.
    pub fn run(&self, kernels: &Kernels, rows: u32, quantised: Quantised) -> Result<(), EngineError> {
        kernels.launch_rows(kernels.activate, rows, self.0.length, &ActivateArguments { quantised, ..self.0 })
    }
}

/// A row, changed by another.
pub struct Combine(CombineArguments);

impl Combine {
    /// `to = to + from x scale`
    pub fn add(to: Rows, from: Rows, length: u32, scale: f32) -> Combine {
        Combine(CombineArguments { to: to.at, from: from.at, by: DevicePointer::NULL, stride: to.stride, length, scale })
    }

    /// `value = value x sigmoid(by)`, with one number a row.
    pub fn share(value: Rows, by: Rows, length: u32) -> Combine {
        Combine(CombineArguments { to: value.at, from: DevicePointer::NULL, by: by.at, stride: value.stride, length, scale: 1.0 })
    }

    pub fn run(&self, kernels: &Kernels, rows: u32) -> Result<(), EngineError> {
        kernels.launch_rows(kernels.combine, rows, self.0.length, &self.0)
    }
}
