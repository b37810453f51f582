//! Tensors on their way from the model's file into an arena.

use std::collections::HashMap;
use std::sync::Arc;

use stowage_placement::Bytes;
use stowage_placement::Reason;
use stowage_placement::gguf::GgmlType;
use stowage_placement::layout::{self, Backend as Layout};

use super::{CpuBackend, Floats, InputTables, RowNorm, Vector, too_large};
use crate::api::EngineError;
use crate::arena::{Purpose, Region};
use crate::file_mmap::{ModelFile, TensorView};
use crate::graph::{Input, Norm, Weight};
use crate::kernels::held::Mapped;
use crate::kernels::matrix::{Matrix, read_all, read_floats};

/// Reads tensors into an arena, each once.
pub(super) struct Loader<'a> {
    backend: &'a CpuBackend,
    file: &'a ModelFile,
    loaded: &'a mut dyn FnMut(Bytes),
    /// What stays in the model's file for now.
    in_place: HashMap<String, Mapped>,
    matrices: HashMap<String, Arc<Matrix>>,
    pub in_file: Vec<Arc<Matrix>>,
    vectors: HashMap<String, Arc<Vector>>,
}

impl<'a> Loader<'a> {
    pub fn new(backend: &'a CpuBackend, file: &'a ModelFile, loaded: &'a mut dyn FnMut(Bytes)) -> Loader<'a> {
        let (in_place, matrices, in_file, vectors) = Default::default();
        Loader { backend, file, loaded, in_place, matrices, in_file, vectors }
    }

    fn region(&self, purpose: Purpose, weight: &Weight) -> Result<Region, EngineError> {
        let view = self.file.tensor(&weight.name)?;
        let bytes = layout::weight_bytes(view.ggml_type, view.rows as u64, view.columns as u64, Layout::Cpu);
        self.backend.arena.take(purpose, bytes.ok_or_else(|| too_large(&weight.name))?)
    }

    pub fn matrix(&mut self, weight: &Weight) -> Result<Arc<Matrix>, EngineError> {
        if let Some(matrix) = self.matrices.get(&weight.name) {
            return Ok(Arc::clone(matrix));
        }
        let view = self.file.tensor(&weight.name)?;
        let purpose = if view.rows > 1 { Purpose::Weights } else { Purpose::Vectors };
        let (activations, region) = (self.backend.computing.activations, self.region(purpose, weight)?);
        let matrix = match self.in_place.remove(&weight.name) {
            Some(mapped) => Matrix::in_place(&view, activations, mapped, region)?,
            None => {
                let matrix = Matrix::load(&view, activations, region, &self.backend.pool)?;
                (self.loaded)(Bytes(view.data.len() as u64));
                matrix
            }
        };
        let matrix = Arc::new(matrix);
        if matrix.in_file() > 0 {
            self.in_file.push(Arc::clone(&matrix));
        }
        self.matrices.insert(weight.name.clone(), Arc::clone(&matrix));
        Ok(matrix)
    }

    /// Has the matrices that stay in the model's file for now in memory as its pages: in the order in which they lie there, which is how a disk is fast.
    pub fn read_in_place(&mut self, weights: &[&Weight]) -> Result<(), EngineError> {
        let views = weights.iter().map(|weight| self.file.tensor(&weight.name)).collect::<Result<Vec<_>, _>>()?;
        let mut matrices: Vec<_> = views.into_iter().filter(|view| view.rows > 1).collect();
        matrices.sort_by_key(|view| view.data.as_ptr());
        for view in matrices {
            if let Some(mapped) = Mapped::read(&view) {
                (self.loaded)(Bytes(view.data.len() as u64));
                self.in_place.insert(view.name.to_owned(), mapped);
            }
        }
        Ok(())
    }

    pub fn norm(&mut self, norm: &Norm) -> Result<RowNorm, EngineError> {
        let bias = norm.bias.as_ref().map(|bias| self.vector(bias)).transpose()?;
        Ok(RowNorm { weight: self.vector(&norm.weight)?, bias, epsilon: norm.epsilon })
    }

    pub fn input(&mut self, input: &Input) -> Result<InputTables, EngineError> {
        for vector in &input.vectors {
            // Counted among the input layer's weights, and small: every device computes its frequencies from them at load.
            self.vector(vector)?;
        }
        let of_type = |types: &Weight| {
            let mut row = vec![0.0; types.columns];
            self.matrix(types)?.read_row(0, &mut row);
            Ok::<_, EngineError>(row)
        };
        let of_type = input.types.as_ref().map(of_type).transpose()?;
        let positions = input.positions.as_ref().map(|positions| self.matrix(positions)).transpose()?;
        let norm = input.norm.as_ref().map(|norm| self.norm(norm)).transpose()?;
        Ok(InputTables { embeddings: self.matrix(&input.embeddings)?, scale: input.scale, of_type, positions, norm })
    }

    /// A vector of which several operations take their part.
    pub fn shared_vector(&mut self, weight: &Weight) -> Result<Arc<Vector>, EngineError> {
        if let Some(vector) = self.vectors.get(&weight.name) {
            return Ok(Arc::clone(vector));
        }
        let vector = Arc::new(self.vector(weight)?);
        self.vectors.insert(weight.name.clone(), Arc::clone(&vector));
        Ok(vector)
    }

    /// A small table, which files have in F32.
    pub fn floats(&mut self, weight: &Weight) -> Result<Floats, EngineError> {
        let view = self.file.tensor(&weight.name)?;
        if view.ggml_type != GgmlType::F32 {
            let message = format!("tensor `{}` has type {}; the engine reads such from F32", view.name, view.ggml_type);
            return Err(EngineError::new(Reason::EngineCannotRun, message));
        }
        let mut region = self.region(Purpose::Vectors, weight)?;
        read_all(&view, region.floats_mut());
        self.read(&view);
        Ok(Floats { region, columns: weight.columns })
    }

    pub fn vector(&mut self, weight: &Weight) -> Result<Vector, EngineError> {
        let view = self.file.tensor(&weight.name)?;
        let mut region = self.region(Purpose::Vectors, weight)?;
        read_floats(&view, region.floats_mut())?;
        self.read(&view);
        Ok(Vector { region, length: weight.columns })
    }

    /// A tensor of the model's own file was read, and is read no more.
    fn read(&mut self, view: &TensorView<'_>) {
        view.let_go(0..view.data.len());
        (self.loaded)(Bytes(view.data.len() as u64));
    }
}
