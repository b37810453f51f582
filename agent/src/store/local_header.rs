//! The header of a model on this node, with errors as the store has them.

use std::io;
use std::path::Path;

use stowage_placement::gguf::Header;
use stowage_placement::{Bytes, Reason};

use super::StoreError;
use crate::model_header::{self, Data, HeaderError};

/// The header of a model whose data is all there, and the size of its file or files. `shown` is what messages call the file.
pub(super) fn read(path: &Path, shown: &str) -> Result<(Header, Bytes), StoreError> {
    let joined = model_header::read(path, Data::Needed).map_err(|error| store_error(path, shown, error))?;
    let size = joined.size();
    Ok((joined.header, size))
}

fn store_error(asked: &Path, shown: &str, error: HeaderError) -> StoreError {
    // Parts other than the first are called by their own names.
    let called = |path: &Path| match path.file_name() {
        Some(name) if path != asked => name.to_string_lossy().into_owned(),
        _ => shown.to_owned(),
    };
    let invalid = |message: String| StoreError::new(Reason::InvalidModelFile, message);
    match error {
        HeaderError::Io { path, source } => io_error(&called(&path), &source),
        HeaderError::Header { path, source } => invalid(format!("`{}`: {source}", called(&path))),
        HeaderError::Truncated { path, source } => invalid(format!("`{}` is truncated: {source}", called(&path))),
        HeaderError::Split(source) => invalid(format!("`{shown}`: {source}")),
    }
}

fn io_error(shown: &str, error: &io::Error) -> StoreError {
    let reason = if error.kind() == io::ErrorKind::NotFound { Reason::ModelNotFound } else { Reason::LoadFailed };
    StoreError::new(reason, format!("reading `{shown}`: {error}"))
}
