//! The kernels' sources, and the architectures that they are compiled for.

use stowage_placement::capability::WEIGHT_TYPES;

use super::driver::Module;

macro_rules! sources {
    ($($name:literal),+) => { &[$(($name, include_str!(concat!("kernels/", $name)))),+] };
}

/// What the modules include.
pub const HEADERS: &[(&str, &str)] =
    sources!("cache.cuh", "matmul.cuh", "matvec.cuh", "prelude.cuh", "products.cuh", "spans.cuh", "tensor_core.cuh", "weights.cuh");

/// Compute capabilities that kernels are compiled for ahead of time: each runs on every later one with the same major number.
pub const ARCHITECTURES: &[(u32, u32)] = &[(7, 5), (8, 0), (8, 6), (8, 9), (9, 0), (10, 0), (12, 0)];

/// All modules.
pub fn modules() -> impl Iterator<Item = Module> {
    let products = WEIGHT_TYPES.iter().map(|ty| Module::Products(*ty));
    [Module::Rows, Module::Heads, Module::Attention, Module::AttentionTiles, Module::Experts, Module::Measure].into_iter().chain(products)
}

/// A module's source, and what it is compiled with beside the architecture.
pub fn source(module: Module) -> (&'static str, Vec<String>) {
    match module {
        Module::Rows => (include_str!("kernels/rows.cu"), Vec::new()),
        Module::Heads => (include_str!("kernels/heads.cu"), Vec::new()),
        Module::Attention => (include_str!("kernels/attention.cu"), Vec::new()),
        Module::AttentionTiles => (include_str!("kernels/attention_tiles.cu"), Vec::new()),
        Module::Experts => (include_str!("kernels/experts.cu"), Vec::new()),
        Module::Measure => (include_str!("kernels/measure.cu"), Vec::new()),
        Module::Products(ty) => (include_str!("kernels/products.cu"), vec![format!("--define-macro=WEIGHTS={ty}")]),
    }
}
