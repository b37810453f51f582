//! Where the models are that `make models` fetches.

use std::path::PathBuf;

use anyhow::{Context, Result};
use stowage_control_plane::binaries::cache_directory;

/// SmolLM2-135M-Instruct in Q4_1.
pub const SMOLLM2: &str = "smollm2-135m-instruct-q4_1.gguf";

/// `STOWAGE_TEST_MODELS`, or the folder `models` of the cache.
pub fn directory() -> Result<PathBuf> {
    let directory = std::env::var_os("STOWAGE_TEST_MODELS").map(PathBuf::from).unwrap_or_else(|| cache_directory().join("models"));
    let found = directory.join(SMOLLM2).is_file().then_some(directory.clone());
    found.with_context(|| format!("{SMOLLM2} is not in {}: `make models` fetches it", directory.display()))
}
