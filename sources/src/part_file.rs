//! The file that a download grows in, until it is whole and gets its name.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use rustix::fs::{FallocateFlags, FlockOperation, fallocate, flock, statvfs};
use rustix::io::Errno;
use sha2::{Digest, Sha256};
use stowage_placement::Bytes;

use crate::error::SourceError;

/// In which `stat` counts what a file takes of its disk, whatever the file system's own blocks are.
const BLOCK: u64 = 512;

/// `NAME.part`, with the server's entity tag beside it in `NAME.part-etag`, so that another process can go on where this one was.
pub(crate) struct PartFile {
    destination: PathBuf,
    path: PathBuf,
    file: File,
    hash: Sha256,
    length: u64,
    etag: Option<String>,
}

fn beside(destination: &Path, suffix: &str) -> PathBuf {
    let mut name = destination.file_name().unwrap_or_default().to_owned();
    name.push(suffix);
    destination.with_file_name(name)
}

impl PartFile {
    /// Opens what an earlier download left, or begins anew. Reads what is there, for its hash.
    pub fn open(destination: &Path) -> Result<PartFile, SourceError> {
        let path = beside(destination, ".part");
        if let Some(directory) = destination.parent() {
            fs::create_dir_all(directory).map_err(SourceError::disk("creating", directory))?;
        }
        let opened = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(&path);
        let mut file = opened.map_err(SourceError::disk("opening", &path))?;
        flock(&file, FlockOperation::NonBlockingLockExclusive)
            .map_err(|error| SourceError::disk("locking (does another process download it?)", &path)(error.into()))?;
        let (hash, length) = hash_of(&mut file).map_err(SourceError::disk("reading", &path))?;
        let etag = fs::read_to_string(beside(destination, ".part-etag")).ok().filter(|etag| !etag.is_empty());
        Ok(PartFile { destination: destination.to_owned(), path, file, hash, length, etag })
    }

    pub fn length(&self) -> u64 {
        self.length
    }

    /// Of the file that the part is of.
    pub fn etag(&self) -> Option<&str> {
        self.etag.as_deref()
    }

    pub fn set_etag(&mut self, etag: Option<String>) -> Result<(), SourceError> {
        let path = beside(&self.destination, ".part-etag");
        match &etag {
            Some(text) => fs::write(&path, text).map_err(SourceError::disk("writing", &path))?,
            None => remove(&path)?,
        }
        self.etag = etag;
        Ok(())
    }

    /// Throws away what there is.
    pub fn restart(&mut self) -> Result<(), SourceError> {
        use std::io::Seek;
        self.file.set_len(0).and_then(|()| self.file.rewind()).map_err(SourceError::disk("truncating", &self.path))?;
        self.hash = Sha256::new();
        self.length = 0;
        self.set_etag(None)
    }

    pub fn append(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.file.write_all(bytes)?;
        self.hash.update(bytes);
        self.length += bytes.len() as u64;
        Ok(())
    }

    pub fn sha256(&self) -> String {
        hexadecimal(&self.hash.clone().finalize())
    }

    /// Makes it last and gives it its name.
    pub fn finish(self) -> Result<(), SourceError> {
        self.file.sync_all().map_err(SourceError::disk("writing", &self.path))?;
        fs::rename(&self.path, &self.destination).map_err(SourceError::disk("renaming", &self.path))?;
        if let Some(directory) = self.destination.parent() {
            File::open(directory).and_then(|directory| directory.sync_all()).map_err(SourceError::disk("writing", directory))?;
        }
        remove(&beside(&self.destination, ".part-etag"))
    }

    pub fn discard(&self) -> Result<(), SourceError> {
        remove(&self.path)?;
        remove(&beside(&self.destination, ".part-etag"))
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Has the disk keep room for the whole file, so that the last of it is not counted on by two downloads. Not every file system can.
    pub fn reserve(&self, total: u64) -> io::Result<()> {
        match fallocate(&self.file, FallocateFlags::KEEP_SIZE, 0, total) {
            Ok(()) | Err(Errno::OPNOTSUPP | Errno::NOSYS | Errno::INVAL) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }
}

/// What the disk has free in this directory.
pub fn free_disk(directory: &Path) -> Result<Bytes, SourceError> {
    let disk = statvfs(directory).map_err(|error| SourceError::disk("asking for free disk of", directory)(error.into()))?;
    Ok(Bytes(disk.f_bavail.saturating_mul(disk.f_frsize)))
}

/// What the disk must still find for a file of `total` bytes at `destination`: what an earlier download left of it, or had reserved for it, is not free
/// any more and not needed any more.
pub fn still_needed(destination: &Path, total: Bytes) -> Bytes {
    let taken = |part: fs::Metadata| Bytes(part.len().max(part.blocks().saturating_mul(BLOCK)));
    // Where nothing is left, all is needed.
    total.saturating_sub(fs::metadata(beside(destination, ".part")).map(taken).unwrap_or_default())
}

impl Drop for PartFile {
    /// Not left to closing the file: a process that is being started has it open too, for a moment.
    fn drop(&mut self) {
        // Fails for no file that is locked.
        let _ = flock(&self.file, FlockOperation::Unlock);
    }
}

fn remove(path: &Path) -> Result<(), SourceError> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(SourceError::disk("removing", path)(error)),
        _ => Ok(()),
    }
}

fn hash_of(file: &mut File) -> io::Result<(Sha256, u64)> {
    let (mut hash, mut length) = (Sha256::new(), 0);
    let mut buffer = vec![0; 1 << 20];
    loop {
        match file.read(&mut buffer)? {
            0 => return Ok((hash, length)),
            read => {
                hash.update(&buffer[..read]);
                length += read as u64;
            }
        }
    }
}

fn hexadecimal(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_an_earlier_download_left_or_reserved_is_not_needed_again() {
        let directory = tempfile::tempdir().unwrap();
        let destination = directory.path().join("m.gguf");
        let total = Bytes::mib(4);
        assert_eq!(still_needed(&destination, total), total);
        let mut part = PartFile::open(&destination).unwrap();
        part.append(&vec![1; 1 << 20]).unwrap();
        assert!(still_needed(&destination, total) <= Bytes::mib(3));
        part.reserve(total.0).unwrap();
        if fs::metadata(beside(&destination, ".part")).unwrap().blocks() * BLOCK >= total.0 {
            assert_eq!(still_needed(&destination, total), Bytes::ZERO);
        }
        part.discard().unwrap();
        assert_eq!(still_needed(&destination, total), total);
    }
}
