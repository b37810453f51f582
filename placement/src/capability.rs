//! What the engine can run: backend x family x weight type x cache type. Planner and suggestions honour it, so that nothing is placed, or
//! advised, that then could not be loaded.

use crate::gguf::GgmlType;
use crate::layout::Backend;
use crate::request::KvCacheType;

/// Families whose graph the engine has.
pub const ARCHITECTURES: &[&str] = &["llama"];

/// Types of weights that the engine computes with.
pub const WEIGHT_TYPES: &[GgmlType] = &[
    GgmlType::F32,
    GgmlType::F16,
    GgmlType::Q4_0,
    GgmlType::Q4_1,
    GgmlType::Q5_0,
    GgmlType::Q5_1,
    GgmlType::Q8_0,
    GgmlType::Q2_K,
    GgmlType::Q3_K,
    GgmlType::Q4_K,
    GgmlType::Q5_K,
    GgmlType::Q6_K,
];

/// Types of KV cache that the engine keeps.
pub const CACHE_TYPES: &[KvCacheType] = &[KvCacheType::F16];

/// Whether a model of `architecture` with weights of type `ty` and a cache of type `cache` runs on `backend`. Of `Cuda` this says what its
/// backend is made for; whether a node has it, its ModelNode says.
///
/// The error says what is missing and what there is.
pub fn supports(architecture: &str, ty: GgmlType, cache: KvCacheType, backend: Backend) -> Result<(), String> {
    if !ARCHITECTURES.contains(&architecture) {
        return Err(format!("the engine has no graph for the architecture {architecture}; it runs {}", ARCHITECTURES.join(", ")));
    }
    if !WEIGHT_TYPES.contains(&ty) {
        let known = list(WEIGHT_TYPES.iter().map(|ty| ty.to_string()));
        return Err(format!("the {} backend can't compute with weights of type {ty}; it can with {known}", backend.as_str()));
    }
    if !CACHE_TYPES.contains(&cache) {
        let known = list(CACHE_TYPES.iter().map(|cache| cache.to_string()));
        return Err(format!("the {} backend has no KV cache of type {cache}; it has {known}", backend.as_str()));
    }
    Ok(())
}

fn list(names: impl Iterator<Item = String>) -> String {
    names.collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_missing_is_named_beside_what_there_is() {
        assert_eq!(supports("llama", GgmlType::Q4_1, KvCacheType::F16, Backend::Cpu), Ok(()));
        let error = supports("qwen2", GgmlType::Q4_1, KvCacheType::F16, Backend::Cpu).unwrap_err();
        assert!(error.contains("qwen2") && error.contains("llama"), "{error}");
        let error = supports("llama", GgmlType::Q4_1, KvCacheType::Q8_0, Backend::Cpu).unwrap_err();
        assert!(error.contains("q8_0") && error.contains("f16"), "{error}");
    }
}
