//! The model directory: which models lie there.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Component, Path, PathBuf};
use std::time::SystemTime;

use stowage_crds::model_node::{MAX_MODELS, ModelFile};
use stowage_placement::gguf::split::PartName;
use stowage_placement::{Bytes, ModelSummary, Reason};

use super::{Models, StoreError, local_header};

/// Directories in directories that are looked into.
const DEEPEST: usize = 8;

/// The file that `path`, relative to the model directory, names; of a split model the first part, beside which all others are. One that is outside,
/// by `..` or by a link, is not given out.
pub(super) fn resolve(directory: &Path, path: &str) -> Result<PathBuf, StoreError> {
    let file = resolve_one(directory, path)?;
    let Some(name) = PartName::parse(path).filter(|name| name.number() == 1 && name.count() > 1) else { return Ok(file) };
    for number in 2..=name.count() {
        resolve_one(directory, &name.of(number))?;
    }
    // The others are found by the first one's name, so one that is a link stays a link.
    let root = directory.canonicalize().map_err(|error| missing(&format!("the model directory {}", directory.display()), &error))?;
    Ok(root.join(path))
}

fn resolve_one(directory: &Path, path: &str) -> Result<PathBuf, StoreError> {
    let relative = Path::new(path);
    if path.is_empty() || !relative.components().all(|part| matches!(part, Component::Normal(_))) {
        let message = format!("`{path}` is no path in the model directory: no leading '/', no '.' and no '..' in it");
        return Err(StoreError::new(Reason::InvalidRequest, message));
    }
    let root = directory.canonicalize().map_err(|error| missing(&format!("the model directory {}", directory.display()), &error))?;
    let file = root.join(relative).canonicalize().map_err(|error| missing(&format!("`{path}` in the model directory"), &error))?;
    if !file.starts_with(&root) {
        let message = format!("`{path}` leads out of the model directory, by a link");
        return Err(StoreError::new(Reason::InvalidRequest, message));
    }
    if !file.is_file() {
        return Err(StoreError::new(Reason::ModelNotFound, format!("`{path}` in the model directory is no file")));
    }
    Ok(file)
}

fn missing(what: &str, error: &io::Error) -> StoreError {
    let reason = if error.kind() == io::ErrorKind::NotFound { Reason::ModelNotFound } else { Reason::LoadFailed };
    StoreError::new(reason, format!("{what} can't be read: {error}"))
}

/// By what a file is taken for unchanged.
type Stamp = (u64, Option<SystemTime>);

/// Looks at the model directory, and remembers what it read.
#[derive(Debug)]
pub(super) struct Scanner {
    directory: PathBuf,
    seen: BTreeMap<String, (Stamp, ModelFile)>,
    complaint: String,
}

impl Scanner {
    pub fn new(directory: PathBuf) -> Scanner {
        Scanner { directory, seen: BTreeMap::new(), complaint: String::new() }
    }

    /// What lies there now.
    pub fn scan(&mut self) -> Models {
        let mut found = BTreeMap::new();
        let listed = self.directory.canonicalize().and_then(|root| list(&root, &root, 0, &mut found));
        let found = without_parts(found);
        let message = self.complaint(listed.err(), found.len());
        let mut seen = BTreeMap::new();
        for (path, stamp) in found.into_iter().take(MAX_MODELS) {
            let known = self.seen.remove(&path).filter(|(before, _)| *before == stamp);
            let entry = known.unwrap_or_else(|| (stamp, self.describe(&path, stamp)));
            seen.insert(path, entry);
        }
        self.seen = seen;
        Models { files: self.seen.values().map(|(_, model)| model.clone()).collect(), message }
    }

    /// What is wrong with the directory as a whole; logged when it is news.
    fn complaint(&mut self, error: Option<io::Error>, found: usize) -> String {
        let directory = self.directory.display();
        let complaint = match error {
            Some(error) => format!("the model directory {directory} can't be read: {error}"),
            None if found > MAX_MODELS => {
                format!("the model directory {directory} holds {found} models, of which the first {MAX_MODELS} are published")
            }
            None => String::new(),
        };
        if complaint != self.complaint && !complaint.is_empty() {
            tracing::warn!("{complaint}");
        }
        self.complaint.clone_from(&complaint);
        complaint
    }

    fn describe(&self, path: &str, (size, _): Stamp) -> ModelFile {
        let model = ModelFile { path: path.to_owned(), size_bytes: Bytes(size), ..ModelFile::default() };
        match summarise(&self.directory, path) {
            Ok(summary) => ModelFile { summary: Some(summary), ..model },
            Err(error) => ModelFile { reason: Some(error.reason), message: error.message, ..model },
        }
    }
}

fn summarise(directory: &Path, path: &str) -> Result<ModelSummary, StoreError> {
    let (header, size) = local_header::read(&resolve(directory, path)?, path)?;
    ModelSummary::from_header(&header, size).map_err(|error| StoreError::new(error.reason(), format!("`{path}`: {error}")))
}

/// A split model is one entry, that of its first part, which counts as changed when any part has.
fn without_parts(mut found: BTreeMap<String, Stamp>) -> BTreeMap<String, Stamp> {
    let parts: Vec<PartName> = found.keys().filter_map(|path| PartName::parse(path)).filter(|part| part.number() > 1).collect();
    for part in parts {
        if !found.contains_key(&part.of(1)) {
            continue;
        }
        let own = found.remove(&part.of(part.number()));
        if let (Some((size, changed)), Some(first)) = (own, found.get_mut(&part.of(1))) {
            *first = (first.0.saturating_add(size), first.1.max(changed));
        }
    }
    found
}

/// Files by their path relative to `root`. Links to directories are not followed; what is no UTF-8 has no place in a Kubernetes object.
fn list(root: &Path, directory: &Path, depth: usize, found: &mut BTreeMap<String, Stamp>) -> io::Result<()> {
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        let path = entry.path();
        if entry.file_type()?.is_dir() {
            if depth < DEEPEST {
                list(root, &path, depth + 1, found)?;
            }
            continue;
        }
        if path.extension().is_none_or(|extension| extension != "gguf") {
            continue;
        }
        // Of a link, the file's; one that leads nowhere is left out.
        let Ok(metadata) = fs::metadata(&path) else { continue };
        let relative = path.strip_prefix(root).ok().and_then(Path::to_str);
        if let Some(relative) = relative.filter(|_| metadata.is_file()) {
            found.insert(relative.to_owned(), (metadata.len(), metadata.modified().ok()));
        }
    }
    Ok(())
}
