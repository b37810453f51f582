//! The kernels of a run, looked up once, and the shapes in which they are launched.

use std::collections::HashMap;
use std::sync::Arc;

use stowage_placement::gguf::GgmlType;

use super::arguments::Arguments;
use super::driver::{Driver, Kernel, Module, Shape};
use crate::api::EngineError;

/// Threads of every block but the router's, which has a warp.
pub const THREADS: u32 = 128;
pub const WARP: u32 = 32;
/// Columns up to which a matrix is gone through by `matvec`; more are multiplied by tensor cores.
pub const FEW: u32 = 8;

/// Kernels of one device.
pub struct Kernels {
    pub driver: Arc<dyn Driver>,
    pub norm_rows: Kernel,
    pub quantise: Kernel,
    pub halve: Kernel,
    pub activate: Kernel,
    pub combine: Kernel,
    pub cap: Kernel,
    pub rotations: Kernel,
    pub heads: Kernel,
    pub spread_heads: Kernel,
    /// For values of up to 128, 256 and 512 elements.
    pub attend: [Kernel; 3],
    pub attend_combine: Kernel,
    /// For many rows, and keys and values of up to 128 elements.
    pub attend_tiles: Kernel,
    pub experts: Option<ExpertKernels>,
    products: HashMap<GgmlType, ProductKernels>,
}

#[derive(Clone, Copy)]
pub struct ExpertKernels {
    pub choose: Kernel,
    pub sum_experts: Kernel,
    pub sort_by_expert: Kernel,
}

/// Products with weights of one type.
#[derive(Clone, Copy)]
pub struct ProductKernels {
    /// For 1, 2, 4 and 8 columns.
    pub matvec: [Kernel; 4],
    pub matmul: Kernel,
}

impl Kernels {
    pub fn new(driver: Arc<dyn Driver>, has_experts: bool) -> Result<Kernels, EngineError> {
        let rows = |name: &str| driver.kernel(Module::Rows, name);
        let attention = |name: &str| driver.kernel(Module::Attention, name);
        let experts = |name: &str| driver.kernel(Module::Experts, name);
        Ok(Kernels {
            norm_rows: rows("norm_rows")?,
            quantise: rows("quantise")?,
            halve: rows("halve")?,
            activate: rows("activate")?,
            combine: rows("combine")?,
            cap: rows("cap")?,
            rotations: rows("rotations")?,
            heads: driver.kernel(Module::Heads, "heads")?,
            spread_heads: driver.kernel(Module::Heads, "spread_heads")?,
            attend: [attention("attend_128")?, attention("attend_256")?, attention("attend_512")?],
            attend_combine: attention("attend_combine")?,
            attend_tiles: driver.kernel(Module::AttentionTiles, "attend_tiles")?,
            experts: match has_experts {
                true => Some(ExpertKernels {
                    choose: experts("choose")?,
                    sum_experts: experts("sum_experts")?,
                    sort_by_expert: experts("sort_by_expert")?,
                }),
                false => None,
            },
            products: HashMap::new(),
            driver: Arc::clone(&driver),
        })
    }

    /// Looks up the products of a type; they are then there.
    pub fn products(&mut self, ty: GgmlType) -> Result<ProductKernels, EngineError> {
        if let Some(kernels) = self.products.get(&ty) {
            return Ok(*kernels);
        }
        let kernel = |name: String| self.driver.kernel(Module::Products(ty), &name);
        let matvec = [1, 2, 4, 8].map(|columns| kernel(format!("matvec_{columns}_{ty}")));
        let [one, two, four, eight] = matvec;
        let kernels = ProductKernels { matvec: [one?, two?, four?, eight?], matmul: kernel(format!("matmul_{ty}"))? };
        self.products.insert(ty, kernels);
        Ok(kernels)
    }

    pub fn launch(&self, kernel: Kernel, grid: [u32; 3], shared_floats: u32, arguments: &dyn Arguments) -> Result<(), EngineError> {
        self.driver.launch(kernel, Shape { grid, threads: THREADS, shared_bytes: 4 * shared_floats }, arguments)
    }

    /// A launch over rows of so many elements, one thread each.
    pub fn launch_rows(&self, kernel: Kernel, rows: u32, elements: u32, arguments: &dyn Arguments) -> Result<(), EngineError> {
        self.launch(kernel, [rows, elements.div_ceil(THREADS), 1], 0, arguments)
    }
}
