//! Why a model's source was of no use.

use std::io;
use std::path::PathBuf;

use reqwest::StatusCode;
use stowage_placement::gguf::GgufError;
use stowage_placement::gguf::split::SplitError;
use stowage_placement::{Bytes, Reason};

use crate::address_policy::ForbiddenAddress;

/// What went wrong with which URL. URLs are shown without user, password and query, which may hold secrets.
#[derive(Debug, thiserror::Error)]
pub enum SourceError {
    #[error("`{url}` is no URL that a model can be read from: {why}")]
    InvalidUrl { url: String, why: String },
    #[error("`{range}` is no range of addresses such as 10.0.0.0/8")]
    BadRange { range: String },
    #[error("making the HTTP client: {0}")]
    Client(String),
    #[error("reading {url}: {forbidden}")]
    Forbidden { url: String, forbidden: ForbiddenAddress },
    #[error("reading {url}: the server says {}", said(*status))]
    NotFound { url: String, status: StatusCode },
    #[error("reading {url}: the server says {}", said(*status))]
    Status { url: String, status: StatusCode },
    #[error("reading {url}: {why}")]
    Unreachable { url: String, why: String },
    #[error("reading {url}: {why}")]
    BadAnswer { url: String, why: String },
    #[error("reading {url}: the file was replaced by another while it was read")]
    Changed { url: String },
    #[error("{url}: {source}")]
    Header { url: String, source: GgufError },
    #[error("{url}: not a GGUF file: it does not begin with \"GGUF\" at offset 0")]
    NotGguf { url: String },
    #[error("{url}: {source}")]
    Split { url: String, source: SplitError },
    #[error("{url} is truncated: its header promises {promised} bytes, the server has {found} bytes")]
    Truncated { url: String, promised: u64, found: u64 },
    #[error("{url} has {found} bytes; {expected} were expected")]
    SizeMismatch { url: String, expected: u64, found: u64 },
    #[error("the sha256 of {url} is {found}; {expected} was asked for")]
    DigestMismatch { url: String, expected: String, found: String },
    #[error("downloading {url}: {needed} more are needed in {}, and {free} are free", directory.display())]
    InsufficientDisk { url: String, directory: PathBuf, needed: Bytes, free: Bytes },
    #[error("downloading {url}: the disk of {} is full after {written}", path.display())]
    DiskFull { url: String, path: PathBuf, written: Bytes },
    #[error("{what} {}: {source}", path.display())]
    Disk { what: &'static str, path: PathBuf, source: io::Error },
}

impl SourceError {
    /// What status says of it.
    pub fn reason(&self) -> Reason {
        match self {
            SourceError::InvalidUrl { .. } | SourceError::BadRange { .. } => Reason::InvalidRequest,
            SourceError::Forbidden { .. } => Reason::SourceForbidden,
            SourceError::NotFound { .. } => Reason::ModelNotFound,
            SourceError::Header { .. } | SourceError::NotGguf { .. } | SourceError::Split { .. } | SourceError::Truncated { .. } => {
                Reason::InvalidModelFile
            }
            SourceError::DigestMismatch { .. } => Reason::DigestMismatch,
            SourceError::InsufficientDisk { .. } | SourceError::DiskFull { .. } => Reason::InsufficientDisk,
            SourceError::Client(_)
            | SourceError::Status { .. }
            | SourceError::Unreachable { .. }
            | SourceError::BadAnswer { .. }
            | SourceError::Changed { .. }
            | SourceError::SizeMismatch { .. } => Reason::SourceUnavailable,
            SourceError::Disk { .. } => Reason::LoadFailed,
        }
    }

    /// Whether the same request may succeed a moment later.
    pub(crate) fn is_transient(&self) -> bool {
        match self {
            SourceError::Unreachable { .. } | SourceError::Changed { .. } => true,
            SourceError::Status { status, .. } => {
                status.is_server_error() || matches!(*status, StatusCode::TOO_MANY_REQUESTS | StatusCode::REQUEST_TIMEOUT)
            }
            _ => false,
        }
    }

    pub(crate) fn disk(what: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> SourceError {
        let path = path.into();
        move |source| SourceError::Disk { what, path, source }
    }
}

/// The status in words of our own; what the server wrote beside it is not repeated.
fn said(status: StatusCode) -> String {
    match status {
        StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => {
            format!("{status}: the file exists only for those who are known there, or not at all")
        }
        _ => status.to_string(),
    }
}
