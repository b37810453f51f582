//! The file that a replica was loaded from, as it was then, so that one that was changed since is told from it.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use stowage_placement::Bytes;

use crate::model_header;

/// A model's file, or all its parts, by what shows that they were written to or replaced.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct LoadedFile {
    parts: Vec<Part>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Part {
    path: PathBuf,
    size: Bytes,
    inode: u64,
    /// Seconds and nanoseconds since 1970.
    modified: (i64, i64),
}

impl LoadedFile {
    pub fn now(path: &Path) -> io::Result<LoadedFile> {
        Ok(LoadedFile { parts: model_header::files(path).iter().map(|part| Part::now(part)).collect::<io::Result<_>>()? })
    }

    /// What became of it since; `None` where it is as it was. Blocks for as long as its disk does.
    pub fn change(&self) -> Option<String> {
        let happened = self.parts.iter().find_map(Part::change)?;
        Some(format!("{happened}. The replica serves on with what it loaded"))
    }
}

impl Part {
    fn now(path: &Path) -> io::Result<Part> {
        let metadata = fs::metadata(path)?;
        let modified = (metadata.mtime(), metadata.mtime_nsec());
        Ok(Part { path: path.to_owned(), size: Bytes(metadata.len()), inode: metadata.ino(), modified })
    }

    fn change(&self) -> Option<String> {
        let (name, was) = (self.path.file_name().unwrap_or_default().to_string_lossy(), self.size);
        match Part::now(&self.path) {
            Ok(now) if now == *self => None,
            Ok(now) if now.size != was => Some(format!("{name} had {was} when it was loaded, and has {} now", now.size)),
            Ok(_) => Some(format!("{name} ({was}) was replaced or written to since it was loaded")),
            Err(error) => Some(format!("{name} ({was}) can't be reached any more: {error}")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_that_is_as_it_was_has_not_changed_and_any_other_says_how() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("m.gguf");
        fs::write(&path, vec![0; 2 << 20]).unwrap();
        let loaded = LoadedFile::now(&path).unwrap();
        assert_eq!(loaded.change(), None);
        let changed = || loaded.change().unwrap();
        fs::write(directory.path().join("other"), vec![0; 2 << 20]).unwrap();
        fs::rename(directory.path().join("other"), &path).unwrap();
        assert!(changed().starts_with("m.gguf (2.00 MiB) was replaced or written to since it was loaded. "), "{}", changed());
        fs::write(&path, vec![0; 1 << 20]).unwrap();
        assert!(changed().starts_with("m.gguf had 2.00 MiB when it was loaded, and has 1.00 MiB now. "), "{}", changed());
        fs::remove_file(&path).unwrap();
        assert!(changed().starts_with("m.gguf (2.00 MiB) can't be reached any more: No such file"), "{}", changed());
    }
}
