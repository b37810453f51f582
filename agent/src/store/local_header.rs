//! The header of a file on this node.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

use stowage_placement::gguf::{Feed, GgufError, Header, HeaderReader, Keep};
use stowage_placement::{Bytes, Reason};

use super::StoreError;

const CHUNK: usize = 1 << 20;

/// A file's header and the file's size. `shown` is what messages call the file.
pub(super) fn read(path: &Path, shown: &str) -> Result<(Header, Bytes), StoreError> {
    let opened = File::open(path).and_then(|file| Ok((Bytes(file.metadata()?.len()), file)));
    let (size, mut file) = opened.map_err(|error| io_error(shown, &error))?;
    let mut reader = HeaderReader::new(Keep::Sizing).with_file_size(size);
    let mut chunk = vec![0; CHUNK];
    loop {
        let read = file.read(&mut chunk).map_err(|error| io_error(shown, &error))?;
        let feed = reader.feed(&chunk[..read]).map_err(|error| damaged(shown, &error))?;
        if read == 0 || feed == Feed::Complete {
            return reader.into_header().map(|header| (header, size)).map_err(|error| damaged(shown, &error));
        }
    }
}

fn damaged(shown: &str, error: &GgufError) -> StoreError {
    StoreError::new(Reason::InvalidModelFile, format!("`{shown}`: {error}"))
}

fn io_error(shown: &str, error: &io::Error) -> StoreError {
    let reason = if error.kind() == io::ErrorKind::NotFound { Reason::ModelNotFound } else { Reason::LoadFailed };
    StoreError::new(reason, format!("reading `{shown}`: {error}"))
}
