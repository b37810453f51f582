//! The folder of packed weights: for each model that ran on this node's CPU a file that the next load of it begins with, and beside it what it was made of.
//!
//! What lies here saves time and nothing else, so it goes whenever it is in the way: when its model has changed or gone, and when the disk gets full.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use rustix::fs::statvfs;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use stowage_engine::packed_file::VERSION;
use stowage_placement::Bytes;

use super::loaded_file::LoadedFile;

const PACKED: &str = "packed";
const DESCRIPTION: &str = "json";
const PARTIAL: &str = "partial";

/// Of what a file was made.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Description {
    version: u32,
    model: LoadedFile,
}

/// The folder.
#[derive(Clone, Debug)]
pub struct PackedWeights {
    folder: PathBuf,
    /// Of its file system, what stays free whatever could be kept, in percent.
    keep_free: u8,
}

/// A file that is being written.
pub struct Partial {
    path: PathBuf,
    to: PathBuf,
    model: LoadedFile,
}

impl PackedWeights {
    pub fn new(folder: impl Into<PathBuf>, keep_free_percent: u8) -> PackedWeights {
        PackedWeights { folder: folder.into(), keep_free: keep_free_percent }
    }

    fn path(&self, model: &LoadedFile) -> PathBuf {
        let known = serde_json::to_vec(model).unwrap_or_default();
        let name: String = Sha256::digest(known).iter().take(16).map(|byte| format!("{byte:02x}")).collect();
        self.folder.join(format!("{name}-v{VERSION}.{PACKED}"))
    }

    /// What was kept of a model that is as it was then. It counts as used now.
    pub fn find(&self, model: &LoadedFile) -> Option<PathBuf> {
        let path = self.path(model);
        let file = File::open(&path).ok()?;
        // Else it goes sooner than it might.
        let _ = file.set_modified(SystemTime::now());
        Some(path)
    }

    /// Removes what was kept of a model.
    pub fn discard(&self, model: &LoadedFile) {
        remove(&self.path(model));
    }

    /// A new file for what will be about so large; an error says why there is to be none.
    pub fn begin(&self, model: &LoadedFile, size: Bytes) -> io::Result<(Partial, File)> {
        fs::create_dir_all(&self.folder)?;
        let (Disk { total, free }, least) = self.disk()?;
        if free < least.saturating_add(size) {
            let message = format!("{free} of {total} are free where {size} were to be kept, and {least} stay free");
            return Err(io::Error::new(io::ErrorKind::StorageFull, message));
        }
        let to = self.path(model);
        let path = to.with_extension(PARTIAL);
        let file = File::create(&path)?;
        Ok((Partial { path, to, model: model.clone() }, file))
    }

    /// Removes what is of no use any more: what was not finished, what was made of models that have changed since, or by another version. And where the disk
    /// gets full, what was not used for longest. Nothing is being written meanwhile.
    pub fn tidy(&self) -> io::Result<()> {
        let entries = match fs::read_dir(&self.folder) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(error) => return Err(error),
        };
        let mut kept = Vec::new();
        for entry in entries {
            let path = entry?.path();
            let is = |extension: &str| path.extension().is_some_and(|found| found == extension);
            if is(PARTIAL) || (is(DESCRIPTION) && !path.with_extension(PACKED).exists()) {
                remove_one(&path);
            } else if is(PACKED) {
                match self.is_current(&path) {
                    true => kept.push((path.metadata()?.modified()?, path)),
                    false => remove(&path),
                }
            }
        }
        kept.sort();
        for (_, path) in kept {
            let (Disk { total: _, free }, least) = self.disk()?;
            if free >= least {
                break;
            }
            tracing::info!(path = %path.display(), %free, %least, "packed weights go, since the disk gets full");
            remove(&path);
        }
        Ok(())
    }

    /// The file system, and what is to stay free of it.
    fn disk(&self) -> io::Result<(Disk, Bytes)> {
        let disk = Disk::of(&self.folder)?;
        let least = Bytes(disk.total.0 / 100 * u64::from(self.keep_free.min(100)));
        Ok((disk, least))
    }

    fn is_current(&self, path: &Path) -> bool {
        let description = fs::read(path.with_extension(DESCRIPTION)).ok();
        let description: Option<Description> = description.and_then(|text| serde_json::from_slice(&text).ok());
        description
            .is_some_and(|Description { version, model }| version == VERSION && self.path(&model) == path && model.change().is_none())
    }
}

impl Partial {
    /// It is whole: from now on it is found.
    pub fn finish(self, file: &File) -> io::Result<()> {
        file.sync_all()?;
        let description = Description { version: VERSION, model: self.model.clone() };
        fs::write(self.to.with_extension(DESCRIPTION), serde_json::to_vec(&description)?)?;
        fs::rename(&self.path, &self.to)
    }
}

impl Drop for Partial {
    fn drop(&mut self) {
        remove_one(&self.path);
    }
}

/// A file system's bytes.
struct Disk {
    total: Bytes,
    /// For whoever is not root.
    free: Bytes,
}

impl Disk {
    fn of(path: &Path) -> io::Result<Disk> {
        let found = statvfs(path)?;
        let bytes = |blocks: u64| Bytes(blocks.saturating_mul(found.f_frsize));
        Ok(Disk { total: bytes(found.f_blocks), free: bytes(found.f_bavail) })
    }
}

fn remove(packed: &Path) {
    remove_one(packed);
    remove_one(&packed.with_extension(DESCRIPTION));
}

fn remove_one(path: &Path) {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            tracing::warn!(path = %path.display(), %error, "a file of packed weights that is of no use stays behind");
        }
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    fn model(folder: &Path, name: &str) -> LoadedFile {
        let path = folder.join(name);
        fs::write(&path, name).unwrap();
        LoadedFile::now(&path).unwrap()
    }

    fn keep(packed: &PackedWeights, model: &LoadedFile) {
        let (partial, mut file) = packed.begin(model, Bytes(3)).unwrap();
        file.write_all(b"abc").unwrap();
        assert_eq!(packed.find(model), None, "not before it is whole");
        partial.finish(&file).unwrap();
        assert_eq!(fs::read(packed.find(model).unwrap()).unwrap(), b"abc");
    }

    fn files(folder: &Path) -> usize {
        fs::read_dir(folder).unwrap().count()
    }

    #[test]
    fn what_is_kept_of_a_model_goes_when_the_model_changes_and_other_models_keep_theirs() {
        let folder = tempfile::tempdir().unwrap();
        let packed = PackedWeights::new(folder.path().join("packed"), 0);
        packed.tidy().unwrap();
        let (one, other) = (model(folder.path(), "one.gguf"), model(folder.path(), "other.gguf"));
        keep(&packed, &one);
        keep(&packed, &other);
        packed.tidy().unwrap();
        assert!(packed.find(&one).is_some() && packed.find(&other).is_some());
        fs::remove_file(folder.path().join("one.gguf")).unwrap();
        packed.tidy().unwrap();
        assert_eq!((packed.find(&one), files(&packed.folder)), (None, 2));
        packed.discard(&other);
        assert_eq!(files(&packed.folder), 0);
    }

    #[test]
    fn what_was_not_finished_or_has_no_description_is_removed() {
        let folder = tempfile::tempdir().unwrap();
        let packed = PackedWeights::new(folder.path().join("packed"), 0);
        let one = model(folder.path(), "one.gguf");
        let (partial, _) = packed.begin(&one, Bytes(1)).unwrap();
        // As where the agent was killed.
        std::mem::forget(partial);
        fs::write(packed.folder.join(format!("0-v{VERSION}.packed")), "").unwrap();
        fs::write(packed.folder.join("1-v0.json"), "").unwrap();
        packed.tidy().unwrap();
        assert_eq!(files(&packed.folder), 0);
    }

    #[test]
    fn nothing_is_kept_that_would_fill_the_disk_and_where_it_is_full_what_is_kept_goes() {
        let folder = tempfile::tempdir().unwrap();
        let packed = PackedWeights::new(folder.path().join("packed"), 0);
        let (one, other) = (model(folder.path(), "one.gguf"), model(folder.path(), "other.gguf"));
        keep(&packed, &one);
        let full = PackedWeights { keep_free: 100, ..packed.clone() };
        let error = full.begin(&other, Bytes(1)).err().unwrap();
        assert_eq!(error.kind(), io::ErrorKind::StorageFull);
        assert!(error.to_string().contains(" are free where 1 B were to be kept, and "), "{error}");
        packed.tidy().unwrap();
        assert!(packed.find(&one).is_some());
        full.tidy().unwrap();
        assert_eq!(files(&packed.folder), 0);
    }
}
