//! API keys: who may ask, where that is not everybody who can reach the port.
//!
//! Keys lie in a folder, a file each, as Kubernetes mounts a Secret. Only their hashes are kept and handed on to workers, and no key is ever logged.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use axum::Router;
use axum::extract::{Request, State};
use axum::middleware::{self, Next};
use axum::response::Response;
use http::{HeaderMap, HeaderValue, header};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use subtle::{Choice, ConstantTimeEq};
use tokio::sync::watch;

use super::error::{Dialect, Fault, FaultKind};

/// Answered without a key: they say nothing of what is asked or answered.
const OPEN: [&str; 4] = ["/healthz", "/readyz", "/metrics", "/metrics/workers"];

/// SHA-256 of a key.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct KeyHash([u8; 32]);

impl KeyHash {
    pub fn of(key: &str) -> KeyHash {
        KeyHash(Sha256::digest(key).into())
    }
}

impl std::fmt::Debug for KeyHash {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("KeyHash")
    }
}

/// The keys that count now. `None`: there are none, and everybody may ask. An empty list lets nobody in.
pub type Keys = Option<Vec<KeyHash>>;

/// Has all of a router's paths, but for those of probes and metrics, ask for a key.
pub fn guarded(router: Router, keys: watch::Receiver<Keys>) -> Router {
    router.layer(middleware::from_fn_with_state(keys, check))
}

async fn check(State(keys): State<watch::Receiver<Keys>>, request: Request, next: Next) -> Response {
    let path = request.uri().path();
    let refused = match &*keys.borrow() {
        Some(keys) if !OPEN.contains(&path) => refusal(keys, request.headers()),
        _ => None,
    };
    let Some(fault) = refused else { return next.run(request).await };
    let mut response = fault.response(Dialect::of_path(path));
    response.headers_mut().insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
    response
}

fn refusal(keys: &[KeyHash], headers: &HeaderMap) -> Option<Fault> {
    let message = match bearer(headers) {
        Some(key) if is_one_of(keys, key) => return None,
        Some(_) => "this API key is not known here",
        None => "an API key is needed: send it in the header `Authorization: Bearer KEY`",
    };
    Some(Fault::new(FaultKind::Unauthorized, message))
}

/// What stands behind `Bearer`, which is written in either case.
fn bearer(headers: &HeaderMap) -> Option<&str> {
    let (scheme, key) = headers.get(header::AUTHORIZATION)?.to_str().ok()?.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then(|| key.trim())
}

/// Takes as long whichever it is, and however much of a key was guessed.
fn is_one_of(keys: &[KeyHash], key: &str) -> bool {
    let KeyHash(asked) = KeyHash::of(key);
    keys.iter().fold(Choice::from(0), |found, KeyHash(known)| found | known.ct_eq(&asked)).into()
}

/// Why keys can't be read.
#[derive(Debug, thiserror::Error)]
pub enum KeysError {
    #[error("reading the API keys in {}: {source}", path.display())]
    Io { path: PathBuf, source: io::Error },
    #[error("the API key in {} is empty", .0.display())]
    Empty(PathBuf),
}

/// What is kept of the keys of a folder.
pub fn read(folder: &Path) -> Result<Vec<KeyHash>, KeysError> {
    let mut keys: Vec<_> = keys_in(folder)?.iter().map(|key| KeyHash::of(key)).collect();
    keys.sort_unstable();
    Ok(keys)
}

/// The keys of a folder: of each file all but the space around it. Names that begin with a dot are left out: Kubernetes has its own there.
pub fn keys_in(folder: &Path) -> Result<Vec<String>, KeysError> {
    let failed = |path: &Path, source| KeysError::Io { path: path.to_owned(), source };
    let mut keys = Vec::new();
    for entry in fs::read_dir(folder).map_err(|error| failed(folder, error))? {
        let entry = entry.map_err(|error| failed(folder, error))?;
        if entry.file_name().as_encoded_bytes().starts_with(b".") {
            continue;
        }
        let path = entry.path();
        let text = fs::read_to_string(&path).map_err(|error| failed(&path, error))?;
        let key = text.trim();
        if key.is_empty() {
            return Err(KeysError::Empty(path));
        }
        keys.push(key.to_owned());
    }
    Ok(keys)
}

/// The keys of a folder, followed as they change; it is looked at every so often. Where they can't be read any more, those that were read last count on.
pub async fn follow(folder: PathBuf, every: Duration, keys: watch::Sender<Keys>) {
    let mut troubled = false;
    loop {
        tokio::time::sleep(every).await;
        match read(&folder) {
            Ok(now) => {
                troubled = false;
                let changed = keys.send_if_modified(|keys| {
                    let changed = keys.as_ref() != Some(&now);
                    *keys = Some(now);
                    changed
                });
                if changed {
                    tracing::info!(keys = keys.borrow().as_ref().map(Vec::len), "the API keys have changed");
                }
            }
            Err(error) if !troubled => {
                troubled = true;
                tracing::error!(%error, "the API keys that were read last count on");
            }
            Err(_) => {}
        }
    }
}
