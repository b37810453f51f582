//! Reads tensors into a device's arena, each once.

use std::collections::HashMap;
use std::sync::Arc;

use stowage_placement::gguf::GgmlType;
use stowage_placement::layout::{self, Backend as Layout};
use stowage_placement::{Bytes, Reason};

use super::arguments::Matrix;
use super::driver::DevicePointer;
use super::memory::DeviceArena;
use super::planes;
use super::raw_bytes::bytes;
use crate::api::EngineError;
use crate::arena::Purpose;
use crate::file_mmap::ModelFile;
use crate::graph::{Norm, Weight};
use crate::kernels::matrix::{read_all, read_floats};

/// A matrix on the device.
#[derive(Clone, Copy, Debug)]
pub struct DeviceMatrix {
    pub matrix: Matrix,
    pub ty: GgmlType,
}

/// A norm whose weights are on the device.
#[derive(Clone, Copy, Debug)]
pub struct DeviceNorm {
    pub weight: DevicePointer,
    /// Null: none.
    pub bias: DevicePointer,
    pub length: usize,
    pub epsilon: f32,
}

pub struct Loader<'a> {
    pub arena: Arc<DeviceArena>,
    pub file: &'a ModelFile,
    pub loaded: &'a mut dyn FnMut(Bytes),
    pub matrices: HashMap<String, DeviceMatrix>,
    pub vectors: HashMap<String, DevicePointer>,
}

impl Loader<'_> {
    /// A matrix of several rows; of one row, held as f32.
    pub fn matrix(&mut self, weight: &Weight) -> Result<DeviceMatrix, EngineError> {
        if let Some(matrix) = self.matrices.get(&weight.name) {
            return Ok(*matrix);
        }
        let view = self.file.tensor(&weight.name)?;
        let shape = |data, ty| DeviceMatrix { matrix: Matrix { data, rows: weight.rows as u32, columns: weight.columns as u32 }, ty };
        let matrix = if weight.rows == 1 {
            shape(self.vector(weight)?, GgmlType::F32)
        } else {
            let to = self.take(weight)?;
            planes::upload(&*self.arena.driver, &view, to)?;
            (self.loaded)(Bytes(view.data.len() as u64));
            shape(to, view.ggml_type)
        };
        self.matrices.insert(weight.name.clone(), matrix);
        Ok(matrix)
    }

    /// A tensor of one row, or a table of a few in F32, held as f32.
    pub fn vector(&mut self, weight: &Weight) -> Result<DevicePointer, EngineError> {
        if let Some(vector) = self.vectors.get(&weight.name) {
            return Ok(*vector);
        }
        let view = self.file.tensor(&weight.name)?;
        let mut floats = vec![0f32; weight.rows * weight.columns];
        if weight.rows == 1 {
            read_floats(&view, &mut floats)?;
        } else if view.ggml_type == GgmlType::F32 {
            read_all(&view, &mut floats);
        } else {
            let message = format!("tensor `{}` has type {}; the engine reads such from F32", view.name, view.ggml_type);
            return Err(EngineError::new(Reason::EngineCannotRun, message));
        }
        let to = self.take(weight)?;
        self.arena.driver.upload(to, bytes(&floats))?;
        (self.loaded)(Bytes(view.data.len() as u64));
        self.vectors.insert(weight.name.clone(), to);
        Ok(to)
    }

    /// The same where there is one, else null.
    pub fn optional_vector(&mut self, weight: Option<&Weight>) -> Result<DevicePointer, EngineError> {
        weight.map_or(Ok(DevicePointer::NULL), |weight| self.vector(weight))
    }

    pub fn norm(&mut self, norm: &Norm) -> Result<DeviceNorm, EngineError> {
        Ok(DeviceNorm {
            weight: self.vector(&norm.weight)?,
            bias: self.optional_vector(norm.bias.as_ref())?,
            length: norm.weight.columns,
            epsilon: norm.epsilon,
        })
    }

    fn take(&self, weight: &Weight) -> Result<DevicePointer, EngineError> {
        let view = self.file.tensor(&weight.name)?;
        let bytes = layout::weight_bytes(view.ggml_type, view.rows as u64, view.columns as u64, Layout::Cuda);
        let too_large = || EngineError::new(Reason::InvalidRequest, format!("`{}` needs more bytes than 64 bits can count", weight.name));
        Ok(self.arena.take(Purpose::Weights, bytes.ok_or_else(too_large)?)?.start)
    }
}
