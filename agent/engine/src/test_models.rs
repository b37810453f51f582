//! Where tests find real models. They are not in the repository; a test that needs one passes without it, and `make test` fetches it first.

use std::path::PathBuf;

const SMOLLM2: &str = "smollm2-135m-instruct-q4_1.gguf";

/// SmolLM2-135M-Instruct in Q4_1: in `STOWAGE_TEST_MODELS`, else in the cache. Where the variable is set, the file must be there.
pub fn smollm2() -> Option<PathBuf> {
    if let Some(folder) = std::env::var_os("STOWAGE_TEST_MODELS") {
        let path = PathBuf::from(folder).join(SMOLLM2);
        assert!(path.exists(), "STOWAGE_TEST_MODELS is set, but there is no {}", path.display());
        return Some(path);
    }
    let cache =
        std::env::var_os("XDG_CACHE_HOME").map(PathBuf::from).or_else(|| Some(PathBuf::from(std::env::var_os("HOME")?).join(".cache")))?;
    Some(cache.join("stowage/models").join(SMOLLM2)).filter(|path| path.exists())
}
