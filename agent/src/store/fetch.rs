//! The files of a remote model, one after another.

use std::path::{Path, PathBuf};

use stowage_placement::Bytes;
use stowage_placement::gguf::split::PartName;
use stowage_sources::{AddressPolicy, Download, Progress, RemoteHeader, SourceError, free_disk, still_needed};

use super::Remote;

/// One file that is to lie in the cache.
pub(super) struct ToFetch {
    url: String,
    destination: PathBuf,
    sha256: Option<String>,
    size: Option<Bytes>,
}

/// The files of the model whose header was read, `path` being that of the only one or the first. Of a split model the first comes last: where it lies,
/// all others do. A sha256 that was asked for is that of the file that was named, and a size that of all.
pub(super) fn files_to_fetch(remote: Remote, header: RemoteHeader, path: &Path) -> Result<Vec<ToFetch>, SourceError> {
    let Remote { url, sha256, size } = remote;
    let named = path.file_name().and_then(|name| PartName::parse(&name.to_string_lossy()));
    let Some(named) = named.filter(|_| header.files.len() > 1) else {
        return Ok(vec![ToFetch { url, destination: path.to_owned(), sha256, size }]);
    };
    if let Some(expected) = size.filter(|size| *size != header.size) {
        let url = super::shown_url(&url).to_owned();
        return Err(SourceError::SizeMismatch { url, expected: expected.0, found: header.size.0 });
    }
    let parts = (1..).zip(header.files).map(|(number, file)| ToFetch {
        url: file.url,
        destination: path.with_file_name(named.of(number)),
        sha256: sha256.clone().filter(|_| number == 1),
        size: Some(file.size),
    });
    let mut parts: Vec<ToFetch> = parts.collect();
    parts.rotate_left(1);
    Ok(parts)
}

impl ToFetch {
    /// Only what is whole has its name.
    fn is_there(&self) -> bool {
        let length = self.destination.metadata().map(|metadata| Bytes(metadata.len())).ok();
        length.is_some() && length == self.size
    }
}

/// Whether there is room for all files; that there is for each is looked at as it is downloaded.
fn check_disk(files: &[ToFetch]) -> Result<(), SourceError> {
    let [first, _, ..] = files else { return Ok(()) };
    let directory = first.destination.parent().unwrap_or(Path::new("."));
    // A directory that is not there yet is made by the first download.
    let Ok(free) = free_disk(directory) else { return Ok(()) };
    let missing = files.iter().filter(|file| !file.is_there());
    let needed: Bytes = missing.filter_map(|file| Some(still_needed(&file.destination, file.size?))).sum();
    if needed <= free {
        return Ok(());
    }
    Err(SourceError::InsufficientDisk { url: super::shown_url(&first.url).to_owned(), directory: directory.to_owned(), needed, free })
}

/// Downloads what is not there yet. Progress is that of all files together.
pub(super) async fn all(
    files: Vec<ToFetch>,
    addresses: &AddressPolicy,
    mut progress: impl FnMut(Progress) + Send,
) -> Result<(), SourceError> {
    check_disk(&files)?;
    let total: Option<Bytes> = files.iter().map(|file| file.size).sum();
    let mut before = Bytes::ZERO;
    for file in &files {
        let ToFetch { url, destination, sha256, size } = file;
        if !file.is_there() {
            let wanted = Download { url, destination, sha256: sha256.as_deref(), size: *size };
            let report = |one: Progress| progress(Progress { done: before.saturating_add(one.done), total: total.or(one.total) });
            stowage_sources::download(wanted, addresses, report).await?;
        }
        before = before.saturating_add(size.unwrap_or(Bytes::ZERO));
    }
    Ok(())
}
