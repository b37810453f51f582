//! What the runners of fuzzing on a stable compiler share: `placement/examples/fuzz_header.rs` and `agent/examples/fuzz_requests.rs`.

use std::path::{Path, PathBuf};
use std::{fs, io};

/// The inputs in these folders.
pub fn read_corpus(folders: &[&str]) -> io::Result<Vec<Vec<u8>>> {
    let mut inputs = Vec::new();
    for folder in folders {
        for entry in fs::read_dir(folder)? {
            inputs.push(fs::read(entry?.path())?);
        }
    }
    if inputs.is_empty() {
        return Err(io::Error::other("the corpus has no input"));
    }
    Ok(inputs)
}

/// Writes an input that fails into this folder, and says where.
pub fn keep(folder: &str, input: &[u8]) -> io::Result<PathBuf> {
    fs::create_dir_all(folder)?;
    let path = Path::new(folder).join(format!("stable-{:016x}", rand::random::<u64>()));
    fs::write(&path, input)?;
    Ok(path)
}
