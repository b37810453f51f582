//! The header of a model on this machine, be it in one file or split over several.

use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use stowage_placement::Bytes;
use stowage_placement::gguf::split::{Joined, Joining, MAX_PARTS, PartName, SplitError};
use stowage_placement::gguf::{Feed, GgufError, Header, HeaderReader, Keep};

/// Read at once from a file; a header seldom has more than a few MiB.
const PIECE: usize = 1 << 20;

/// Why a model's header can't be read.
#[derive(Debug, thiserror::Error)]
pub enum HeaderError {
    #[error("reading {}: {source}", path.display())]
    Io { path: PathBuf, source: io::Error },
    #[error("the header of {}: {source}", path.display())]
    Header { path: PathBuf, source: Box<GgufError> },
    #[error("{} is truncated: {source}", path.display())]
    Truncated { path: PathBuf, source: Box<GgufError> },
    #[error("{0}")]
    Split(#[from] SplitError),
}

/// What must be in the files beside their headers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Data {
    /// Nothing: they may end after their headers.
    MayBeMissing,
    /// All that the headers name.
    Needed,
}

/// The header of the model that `path` names, of a split model that of all its parts, which lie beside the first.
pub fn read(path: &Path, data: Data) -> Result<Joined, HeaderError> {
    let (header, size) = read_file(path, data)?;
    let mut joining = Joining::new(&file_name(path), header, size)?;
    while let Some(next) = joining.next_part() {
        let (header, size) = read_file(&path.with_file_name(next), data)?;
        joining.add(header, size)?;
    }
    Ok(joining.finish()?)
}

/// The files of the model that `path` names, as far as its name tells: itself or, of the first part of a split model, all parts.
pub fn files(path: &Path) -> Vec<PathBuf> {
    match PartName::parse(&file_name(path)) {
        Some(name) if name.number() == 1 => (1..=name.count().min(MAX_PARTS)).map(|number| path.with_file_name(name.of(number))).collect(),
        _ => vec![path.to_owned()],
    }
}

/// Bytes of all files of the model that `path` names.
pub fn size(path: &Path) -> io::Result<Bytes> {
    files(path).iter().map(|file| Ok(Bytes(file.metadata()?.len()))).sum()
}

/// A name that is no UTF-8 is that of no part.
fn file_name(path: &Path) -> String {
    path.file_name().map(OsStr::to_string_lossy).unwrap_or_default().into_owned()
}

/// One file's header and the file's size.
fn read_file(path: &Path, data: Data) -> Result<(Header, Bytes), HeaderError> {
    let io = |source| HeaderError::Io { path: path.to_owned(), source };
    let damaged = |source| HeaderError::Header { path: path.to_owned(), source: Box::new(source) };
    let mut file = File::open(path).map_err(io)?;
    let size = Bytes(file.metadata().map_err(io)?.len());
    let mut reader = HeaderReader::new(Keep::Sizing).with_file_size(size);
    let mut piece = vec![0; PIECE];
    loop {
        let read = file.read(&mut piece).map_err(io)?;
        if read == 0 || reader.feed(&piece[..read]).map_err(damaged)? == Feed::Complete {
            break;
        }
    }
    let header = reader.into_header().map_err(damaged)?;
    if data == Data::Needed {
        let truncated = |source| HeaderError::Truncated { path: path.to_owned(), source: Box::new(source) };
        header.check_file_size(size).map_err(truncated)?;
    }
    Ok((header, size))
}
