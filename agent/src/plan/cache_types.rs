//! Types of KV cache as `--kv-cache-type` and `--compare` name them.

use std::str::FromStr;

use stowage_placement::KvCacheType;

/// Types to compare, none of them twice.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CacheTypes(pub Vec<KvCacheType>);

impl FromStr for CacheTypes {
    type Err = String;

    fn from_str(text: &str) -> Result<CacheTypes, String> {
        let mut types = Vec::new();
        for name in text.split(',') {
            let cache = cache_type(name.trim())?;
            if types.contains(&cache) {
                return Err(format!("{cache} is named twice; each type is compared once"));
            }
            types.push(cache);
        }
        Ok(CacheTypes(types))
    }
}

pub(super) fn cache_type(text: &str) -> Result<KvCacheType, String> {
    let known = KvCacheType::ALL.into_iter().find(|cache| cache.as_str() == text);
    known.ok_or_else(|| format!("there is {}", KvCacheType::ALL.map(KvCacheType::as_str).join(", ")))
}
