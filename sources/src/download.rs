//! Downloads a file, going on from where it was when a connection drops.

use std::io;
use std::path::Path;
use std::time::Duration;

use backon::{BackoffBuilder, ExponentialBuilder};
use reqwest::Response;
use stowage_placement::Bytes;
use url::Url;

use crate::address_policy::AddressPolicy;
use crate::client::{checked_url, request_error, shown};
use crate::error::SourceError;
use crate::part_file::{PartFile, free_disk, still_needed};
use crate::response::{ByteRange, Given, get, strong_etag};

/// Tries in a row that bring no byte.
const TRIES_WITHOUT_PROGRESS: usize = 6;

/// What to download, and to where.
#[derive(Clone, Copy, Debug)]
pub struct Download<'a> {
    pub url: &'a str,
    /// Appears when it is whole; until then `DESTINATION.part` grows beside it.
    pub destination: &'a Path,
    /// In hexadecimal; checked where it is known.
    pub sha256: Option<&'a str>,
    pub size: Option<Bytes>,
}

/// How far a download is. After a restart from the beginning, `done` falls.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Progress {
    pub done: Bytes,
    pub total: Option<Bytes>,
}

impl Progress {
    /// In whole percent, where the total is known.
    pub fn percent(&self) -> Option<u32> {
        let total = self.total.filter(|total| total.0 > 0)?;
        let percent = u128::from(self.done.0) * 100 / u128::from(total.0);
        Some(u32::try_from(percent.min(100)).unwrap_or(100))
    }
}

/// A file that is there, whole.
#[derive(Clone, Debug)]
pub struct Downloaded {
    pub size: Bytes,
    /// In hexadecimal.
    pub sha256: String,
}

/// Downloads a file. A dropped connection is made again, with a growing delay, and the file goes on from where it was; so does the download of a
/// process that died. A file whose sha256 or size is not the one asked for is removed.
pub async fn download(
    wanted: Download<'_>,
    policy: &AddressPolicy,
    progress: impl FnMut(Progress) + Send,
) -> Result<Downloaded, SourceError> {
    let url = checked_url(wanted.url, policy)?;
    let destination = wanted.destination.to_owned();
    let opened = tokio::task::spawn_blocking(move || PartFile::open(&destination)).await;
    let part = opened.map_err(|error| SourceError::disk("opening", wanted.destination)(io::Error::other(error)))??;
    let mut running = Running { url, wanted, policy, part, total: wanted.size.map(|size| size.0), progress };
    running.check_disk()?;
    running.until_whole().await?;
    running.finish()
}

struct Running<'a, P> {
    url: Url,
    wanted: Download<'a>,
    policy: &'a AddressPolicy,
    part: PartFile,
    total: Option<u64>,
    progress: P,
}

impl<P: FnMut(Progress) + Send> Running<'_, P> {
    async fn until_whole(&mut self) -> Result<(), SourceError> {
        let backoff = ExponentialBuilder::default()
            .with_min_delay(Duration::from_millis(100))
            .with_max_delay(Duration::from_secs(20))
            .with_max_times(TRIES_WITHOUT_PROGRESS);
        let mut delays = backoff.build();
        loop {
            let before = self.part.length();
            let Err(error) = self.attempt().await else { return Ok(()) };
            if !error.is_transient() {
                return Err(error);
            }
            if self.part.length() > before {
                delays = backoff.build();
            }
            let Some(delay) = delays.next() else { return Err(error) };
            tracing::info!(%error, done = self.part.length(), ?delay, "the download goes on after a pause");
            tokio::time::sleep(delay).await;
        }
    }

    /// One connection.
    async fn attempt(&mut self) -> Result<(), SourceError> {
        if self.part.length() > 0 && self.part.etag().is_none() && self.wanted.sha256.is_none() {
            // Nothing would show that the rest belongs to the same file.
            self.part.restart()?;
        }
        let etag = self.part.etag().map(str::to_owned);
        let range = ByteRange { first: self.part.length(), last: None, of: etag.as_deref().filter(|_| self.part.length() > 0) };
        match get(&self.url, range, self.policy).await? {
            Given::Part { response, size } => {
                self.note(&response, Some(size))?;
                self.receive(response).await
            }
            Given::Whole { response, size } => {
                self.part.restart()?;
                self.note(&response, size)?;
                self.receive(response).await
            }
            // The part was whole already: the process ended before it got its name.
            Given::Beyond { size: Some(size) } if size == self.part.length() && size > 0 => {
                self.total = Some(size);
                Ok(())
            }
            Given::Beyond { .. } if self.part.length() > 0 => {
                self.part.restart()?;
                Err(SourceError::Changed { url: shown(&self.url) })
            }
            Given::Beyond { .. } => Err(SourceError::BadAnswer { url: shown(&self.url), why: "the file is empty".to_owned() }),
        }
    }

    /// Notes what the answer says of the file, and looks whether there is room for it.
    fn note(&mut self, response: &Response, size: Option<u64>) -> Result<(), SourceError> {
        if let (Some(expected), Some(found)) = (self.wanted.size, size)
            && expected.0 != found
        {
            self.part.discard()?;
            return Err(SourceError::SizeMismatch { url: shown(&self.url), expected: expected.0, found });
        }
        self.total = size.or(self.wanted.size.map(|size| size.0));
        let etag = strong_etag(response);
        if etag.as_deref() != self.part.etag() {
            self.part.set_etag(etag)?;
        }
        self.check_disk()
    }

    fn check_disk(&self) -> Result<(), SourceError> {
        let Some(total) = self.total else { return Ok(()) };
        let directory = self.wanted.destination.parent().unwrap_or(Path::new("."));
        let (needed, free) = (still_needed(self.wanted.destination, Bytes(total)), free_disk(directory)?);
        if needed <= free {
            match self.part.reserve(total) {
                Ok(()) => return Ok(()),
                // Somebody was faster.
                Err(error) if is_full(&error) => {}
                Err(error) => return Err(SourceError::disk("reserving room for", self.part.path())(error)),
            }
        }
        self.part.discard()?;
        Err(SourceError::InsufficientDisk { url: shown(&self.url), directory: directory.to_owned(), needed, free })
    }

    async fn receive(&mut self, mut response: Response) -> Result<(), SourceError> {
        self.report();
        while let Some(bytes) = response.chunk().await.map_err(|error| request_error(&self.url, error))? {
            self.part.append(&bytes).map_err(|error| self.write_error(error))?;
            self.report();
        }
        match self.total {
            Some(total) if self.part.length() < total => {
                let why = format!("the server closed the connection after {} of {total} bytes", self.part.length());
                Err(SourceError::Unreachable { url: shown(&self.url), why })
            }
            _ => Ok(()),
        }
    }

    fn report(&mut self) {
        (self.progress)(Progress { done: Bytes(self.part.length()), total: self.total.map(Bytes) });
    }

    /// A disk that is full is made less full by what was written here.
    fn write_error(&self, error: io::Error) -> SourceError {
        let path = self.part.path().to_owned();
        if is_full(&error) {
            let written = Bytes(self.part.length());
            return match self.part.discard() {
                Ok(()) => SourceError::DiskFull { url: shown(&self.url), path, written },
                Err(error) => error,
            };
        }
        SourceError::disk("writing", path)(error)
    }

    fn finish(self) -> Result<Downloaded, SourceError> {
        let found = self.part.length();
        if let Some(expected) = self.total
            && expected != found
        {
            self.part.discard()?;
            return Err(SourceError::SizeMismatch { url: shown(&self.url), expected, found });
        }
        let sha256 = self.part.sha256();
        if let Some(expected) = self.wanted.sha256
            && !expected.eq_ignore_ascii_case(&sha256)
        {
            self.part.discard()?;
            return Err(SourceError::DigestMismatch { url: shown(&self.url), expected: expected.to_owned(), found: sha256 });
        }
        self.part.finish()?;
        Ok(Downloaded { size: Bytes(found), sha256 })
    }
}

fn is_full(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}
