//! Model files on this node: those that somebody put into the model directory, and those that were downloaded into the cache.
//!
//! Whoever asks for a model gets the path of a file that is whole: one whose header is a GGUF header and whose length covers the tensors that the
//! header names. Files of the cache are named by their digest or, where nobody knows that, by their URL.

mod directory;
mod fetch;
mod local_header;

use std::collections::HashMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use sha2::{Digest, Sha256};
use stowage_crds::model_deployment::{HttpSource, HuggingFaceSource, ModelSource};
use stowage_crds::model_node::{AssignedSource, ModelFile};
use stowage_placement::gguf::Keep;
use stowage_placement::gguf::split::PartName;
use stowage_placement::{Bytes, Reason};
use stowage_sources::{AddressPolicy, SourceError, hugging_face};
use tokio::sync::{OwnedMutexGuard, watch};
use tokio_util::sync::CancellationToken;

pub use stowage_sources::Progress;

use crate::model_header;
use directory::Scanner;
use fetch::{ToFetch, files_to_fetch};

/// Where models come from.
#[derive(Clone, Debug)]
pub struct StoreConfig {
    /// What `path` sources are relative to; without it there are none.
    pub model_dir: Option<PathBuf>,
    pub cache_dir: PathBuf,
    /// Which addresses are downloaded from.
    pub addresses: AddressPolicy,
    /// Address of the Hugging Face hub.
    pub hugging_face: String,
}

impl StoreConfig {
    pub fn new(model_dir: Option<PathBuf>, cache_dir: impl Into<PathBuf>, addresses: AddressPolicy) -> StoreConfig {
        StoreConfig { model_dir, cache_dir: cache_dir.into(), addresses, hugging_face: hugging_face::endpoint() }
    }
}

/// What lies in the model directory.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Models {
    /// In the order of their paths, at most as many as a node publishes.
    pub files: Vec<ModelFile>,
    /// Why they are not all that there are: the directory can't be read, or holds too many.
    pub message: String,
}

/// Why there is no file. `reason` is what status says.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct StoreError {
    pub reason: Reason,
    pub message: String,
}

impl StoreError {
    fn new(reason: Reason, message: impl Into<String>) -> StoreError {
        StoreError { reason, message: message.into() }
    }
}

impl From<SourceError> for StoreError {
    fn from(error: SourceError) -> StoreError {
        StoreError::new(error.reason(), error.to_string())
    }
}

/// The node's model files.
#[derive(Debug)]
pub struct Store {
    config: StoreConfig,
    models: watch::Sender<Models>,
    /// One download of a file at a time, whoever asks for it.
    downloads: Mutex<HashMap<PathBuf, Arc<tokio::sync::Mutex<()>>>>,
}

/// A file behind a URL.
struct Remote {
    url: String,
    /// In hexadecimal.
    sha256: Option<String>,
    size: Option<Bytes>,
}

impl Store {
    pub fn new(config: StoreConfig) -> Store {
        Store { config, models: watch::Sender::default(), downloads: Mutex::default() }
    }

    /// What lies in the model directory, as [`Store::watch`] last saw it: in the order of the paths, each with its summary or with what is wrong with it.
    pub fn models(&self) -> watch::Receiver<Models> {
        self.models.subscribe()
    }

    /// Looks at the model directory now and then, for ever. A file that has not changed is not read again.
    pub async fn watch(&self, interval: Duration) {
        let Some(directory) = self.config.model_dir.clone() else { return std::future::pending().await };
        let mut scanner = Scanner::new(directory);
        loop {
            let scanned = tokio::task::spawn_blocking(move || {
                let models = scanner.scan();
                (scanner, models)
            });
            let models;
            (scanner, models) = match scanned.await {
                Ok(scanned) => scanned,
                Err(error) => return tracing::error!(%error, "the model directory is no longer looked at"),
            };
            self.models.send_if_modified(|seen| {
                let changed = *seen != models;
                *seen = models;
                changed
            });
            tokio::time::sleep(interval).await;
        }
    }

    /// The path of the file, downloaded where it has to be. Dropping the future ends the download; the next one goes on where it was.
    pub async fn ensure(&self, source: &AssignedSource, progress: impl FnMut(Progress) + Send + 'static) -> Result<PathBuf, StoreError> {
        match &source.model {
            ModelSource { path: Some(path), hugging_face: None, http: None } => self.local(path.clone(), source.size_bytes).await,
            ModelSource { http: Some(http), hugging_face: None, path: None } => self.remote(self.of_http(http, source), progress).await,
            ModelSource { hugging_face: Some(file), http: None, path: None } => {
                self.remote(self.of_hugging_face(file, source)?, progress).await
            }
            _ => Err(StoreError::new(Reason::InvalidRequest, "the assignment names no source of the model, or several")),
        }
    }

    async fn local(&self, path: String, expected: Bytes) -> Result<PathBuf, StoreError> {
        let Some(directory) = self.config.model_dir.clone() else {
            let message = format!("`{path}` is to be read from the model directory, and this agent has none (--model-dir)");
            return Err(StoreError::new(Reason::ModelNotFound, message));
        };
        blocking(move || {
            let file = directory::resolve(&directory, &path)?;
            // A part that is missing is told of by name below.
            let size = model_header::size(&file).unwrap_or(expected);
            if expected != Bytes::ZERO && size != expected {
                let message = format!("`{path}` has {} bytes now, and had {} when its place was planned", size.0, expected.0);
                return Err(StoreError::new(Reason::ModelFileChanged, message));
            }
            whole(&file, &path)?;
            Ok(file)
        })
        .await
    }

    fn of_http(&self, http: &HttpSource, source: &AssignedSource) -> Remote {
        let known = source.digest.strip_prefix("sha256:").map(str::to_owned);
        Remote { url: http.url.clone(), sha256: http.sha256.clone().or(known), size: known_size(source) }
    }

    fn of_hugging_face(&self, file: &HuggingFaceSource, source: &AssignedSource) -> Result<Remote, StoreError> {
        let revision = if source.commit.is_empty() { &file.revision } else { &source.commit };
        let url = hugging_face::file_url(&self.config.hugging_face, &file.repository, revision, &file.file)?;
        Ok(Remote { url, sha256: source.digest.strip_prefix("sha256:").map(str::to_owned), size: known_size(source) })
    }

    async fn remote(&self, remote: Remote, progress: impl FnMut(Progress) + Send + 'static) -> Result<PathBuf, StoreError> {
        let path = self.config.cache_dir.join(cache_name(&remote));
        let guard = self.lock(&path).lock_owned().await;
        let shown = shown_url(&remote.url).to_owned();
        if path.exists() {
            let (kept, name) = (path.clone(), shown.clone());
            match blocking(move || whole(&kept, &name)).await {
                Ok(_) => return Ok(path),
                Err(error) if remote.sha256.is_some() => return Err(error),
                // Named by its URL, behind which there may be a better one by now.
                Err(_) => remove_model(&path)?,
            }
        }
        // A file that is no model is found out before it is downloaded, which may be often.
        let header = stowage_sources::header(&remote.url, Keep::Sizing, &self.config.addresses).await?;
        self.download(files_to_fetch(remote, header, &path)?, guard, progress).await?;
        blocking(move || whole(&path, &shown).map(|_| path)).await
    }

    /// One file after another, on a thread of its own, since disks can be slow. Ends, with the lock, when this future is dropped.
    async fn download(
        &self,
        files: Vec<ToFetch>,
        guard: OwnedMutexGuard<()>,
        progress: impl FnMut(Progress) + Send + 'static,
    ) -> Result<(), StoreError> {
        let addresses = self.config.addresses.clone();
        let cancelled = CancellationToken::new();
        let _cancel = cancelled.clone().drop_guard();
        let runtime = tokio::runtime::Handle::current();
        let downloading = tokio::task::spawn_blocking(move || {
            let _guard = guard;
            runtime.block_on(cancelled.run_until_cancelled(fetch::all(files, &addresses, progress)))
        });
        match downloading.await {
            Ok(Some(downloaded)) => Ok(downloaded?),
            // Only this future cancels, by being dropped.
            Ok(None) => std::future::pending().await,
            Err(error) => Err(StoreError::new(Reason::LoadFailed, format!("the thread of a download broke: {error}"))),
        }
    }

    fn lock(&self, path: &Path) -> Arc<tokio::sync::Mutex<()>> {
        let mut downloads = self.downloads.lock().unwrap_or_else(PoisonError::into_inner);
        downloads.entry(path.to_owned()).or_default().clone()
    }
}

/// Without the query, in which secrets travel.
fn shown_url(url: &str) -> &str {
    url.split(['?', '#']).next().unwrap_or_default()
}

fn known_size(source: &AssignedSource) -> Option<Bytes> {
    (source.size_bytes != Bytes::ZERO).then_some(source.size_bytes)
}

/// Of a split model, the name of its first part: the others' follow from it, as they do where they come from.
fn cache_name(remote: &Remote) -> String {
    let first = PartName::parse(shown_url(&remote.url)).filter(|name| name.number() == 1 && name.count() > 1);
    let part = first.map(|name| format!("-00001-of-{:05}", name.count())).unwrap_or_default();
    match &remote.sha256 {
        Some(sha256) => format!("sha256-{}{part}.gguf", sha256.to_ascii_lowercase()),
        None => {
            let hash = Sha256::digest(remote.url.as_bytes());
            let hash: String = hash.iter().map(|byte| format!("{byte:02x}")).collect();
            format!("url-{hash}{part}.gguf")
        }
    }
}

/// The size of a file that holds all that its header names, or of all files of a split model. `shown` is what messages call it.
fn whole(path: &Path, shown: &str) -> Result<Bytes, StoreError> {
    local_header::read(path, shown).map(|(_, size)| size)
}

/// Of a split model, all parts.
fn remove_model(path: &Path) -> Result<(), StoreError> {
    for file in model_header::files(path) {
        match std::fs::remove_file(&file) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(disk("removing", &file, &error)),
            _ => {}
        }
    }
    Ok(())
}

fn disk(what: &str, path: &Path, error: &io::Error) -> StoreError {
    StoreError::new(Reason::LoadFailed, format!("{what} {}: {error}", path.display()))
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T, StoreError> + Send + 'static) -> Result<T, StoreError> {
    let done = tokio::task::spawn_blocking(work).await;
    done.unwrap_or_else(|error| Err(StoreError::new(Reason::LoadFailed, format!("a thread that reads a model file broke: {error}"))))
}

#[cfg(test)]
mod tests;
