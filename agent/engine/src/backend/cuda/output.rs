//! The output layer on a device: the norm of the rows that are wanted, and their products over the vocabulary.

use stowage_placement::Request;
use stowage_placement::compute::{self, ComputeShape};

use super::arguments::{CapArguments, Part, Quantised};
use super::buffers::{OutputBuffers, Rows};
use super::driver::DevicePointer;
use super::kernels::{Kernels, THREADS};
use super::layer::RowNorm;
use super::linear::Linear;
use super::raw_bytes::{bytes, bytes_mut};
use super::weights::Loader;
use crate::api::EngineError;
use crate::graph::Output;

pub struct DeviceOutput {
    hidden: Rows,
    norm: RowNorm,
    /// The same norm of all rows, in place.
    norm_all: RowNorm,
    linear: Linear,
    buffers: OutputBuffers,
    scale: f32,
    softcap: Option<f32>,
    vocabulary: usize,
    logits: Vec<f32>,
}

impl DeviceOutput {
    pub fn load(
        output: &Output,
        hidden: Rows,
        shape: &ComputeShape,
        request: &Request,
        loader: &mut Loader<'_>,
        kernels: &mut Kernels,
    ) -> Result<DeviceOutput, EngineError> {
        let rows = compute::logit_rows(request.parallel);
        let buffers = OutputBuffers::new(&loader.arena, shape, rows)?;
        let norm = loader.norm(&output.norm)?;
        let matrix = loader.matrix(&output.weight)?;
        let vocabulary = output.weight.rows;
        // A step of the output layer has few rows, each of which goes through all of the matrix.
        let mut linear = Linear::exact(buffers.normed, output.weight.columns as u32, buffers.activations);
        let Rows { at: to, stride } = buffers.logits;
        let part = Part { matrix: matrix.matrix, to, bias: DevicePointer::NULL, first: 0, rows: vocabulary as u32, stride, add: 0 };
        linear.push(kernels, matrix.ty, part)?;
        Ok(DeviceOutput {
            hidden,
            norm: RowNorm::new(norm, hidden, buffers.normed, 1),
            norm_all: RowNorm::new(norm, hidden, hidden, 1),
            linear,
            buffers,
            scale: output.scale,
            softcap: output.softcap,
            vocabulary,
            logits: vec![0.0; rows as usize * vocabulary],
        })
    }

    /// Logits of some rows of the hidden state on the device; where `host` has it instead, of its rows.
    pub fn logits(&mut self, kernels: &Kernels, rows: &[u32], host: Option<&[f32]>) -> Result<&[f32], EngineError> {
        let driver = &*kernels.driver;
        let named = match host {
            Some(host) => {
                let width = self.hidden.stride as usize;
                for (to, row) in rows.iter().enumerate() {
                    let row = &host[*row as usize * width..][..width];
                    driver.upload(self.hidden.at.after(4 * to * width), bytes(row))?;
                }
                DevicePointer::NULL
            }
            None => {
                driver.upload(self.buffers.wanted, bytes(rows))?;
                self.buffers.wanted
            }
        };
        let count = rows.len() as u32;
        self.norm.run(kernels, count, named, self.linear.wants(count))?;
        self.linear.run_prepared(kernels, count)?;
        self.cap(kernels, count)?;
        let logits = &mut self.logits[..rows.len() * self.vocabulary];
        driver.download(self.buffers.logits.at, bytes_mut(logits))?;
        Ok(logits)
    }

    fn cap(&self, kernels: &Kernels, rows: u32) -> Result<(), EngineError> {
        if self.scale == 1.0 && self.softcap.is_none() {
            return Ok(());
        }
        let count = u64::from(rows) * self.vocabulary as u64;
        let softcap = self.softcap.unwrap_or(0.0);
        let arguments = CapArguments { values: self.buffers.logits.at, count, scale: self.scale, softcap };
        kernels.launch(kernels.cap, [count.div_ceil(u64::from(THREADS)) as u32, 1, 1], 0, &arguments)
    }

    /// Norms the first rows of the hidden state on the device.
    pub fn normalise(&self, kernels: &Kernels, rows: u32) -> Result<(), EngineError> {
        self.norm_all.run(kernels, rows, DevicePointer::NULL, Quantised::NOWHERE)
    }
}
