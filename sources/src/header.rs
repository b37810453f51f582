//! Reads a GGUF header behind a URL, and no more of the file than that; of a split model, the headers of all parts.

use std::time::Duration;

use backon::{ExponentialBuilder, Retryable};
use reqwest::Response;
use stowage_placement::Bytes;
use stowage_placement::gguf::split::Joining;
use stowage_placement::gguf::{Feed, GgufError, Header, HeaderReader, Keep};
use url::Url;

use crate::address_policy::AddressPolicy;
use crate::client::{checked_url, request_error, shown};
use crate::error::SourceError;
use crate::response::{ByteRange, Given, get, strong_etag};

/// Small headers come with the first request; a vocabulary of 150 000 tokens takes about 5 MiB.
const FIRST_CHUNK: u64 = 256 << 10;
const LARGEST_CHUNK: u64 = 8 << 20;
/// No real header comes near, nor those of all parts; a server that sends for ever is left here.
const LONGEST_HEADER: u64 = 512 << 20;
const TRIES: usize = 3;

/// A model's header, and what is known of the files that it lies in.
#[derive(Clone, Debug)]
pub struct RemoteHeader {
    /// Of a split model, its parts' joined ([`stowage_placement::gguf::split::Joined`]).
    pub header: Header,
    /// Of all files.
    pub size: Bytes,
    /// In order; a model that is not split has one.
    pub files: Vec<RemoteFile>,
}

/// One file of a model.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RemoteFile {
    pub url: String,
    pub size: Bytes,
    /// The server's strong entity tag, quotes included, where it has one.
    pub etag: Option<String>,
}

/// Reads the header of the GGUF file behind `url` by range requests, and checks that the file is long enough for the tensors that it names. Of the
/// first part of a split model, the other parts are read as well, each beside it under its own name.
///
/// What is asked for is the header and one read-ahead: of 256 KiB at first, then of as much as was read before, and never of more than 8 MiB. A
/// server that ignores ranges is read from the beginning until the header is complete, and then left.
pub async fn header(url: &str, keep: Keep, policy: &AddressPolicy) -> Result<RemoteHeader, SourceError> {
    read(url, How { keep, policy, data_needed: true }).await
}

/// The same of files that may end after their headers, for whoever only plans. Sizes are then those that the headers promise.
pub async fn header_alone(url: &str, keep: Keep, policy: &AddressPolicy) -> Result<RemoteHeader, SourceError> {
    read(url, How { keep, policy, data_needed: false }).await
}

/// How to read a header.
#[derive(Clone, Copy)]
struct How<'a> {
    keep: Keep,
    policy: &'a AddressPolicy,
    /// Whether a file must be long enough for its tensors.
    data_needed: bool,
}

async fn read(url: &str, how: How<'_>) -> Result<RemoteHeader, SourceError> {
    let mut url = checked_url(url, how.policy)?;
    let first_url = shown(&url);
    let split = |source| SourceError::Split { url: first_url.clone(), source };
    let first = one(&url, how, LONGEST_HEADER).await?;
    let mut left = LONGEST_HEADER.saturating_sub(first.header_length);
    let mut files = vec![first.file];
    let mut joining = Joining::new(url.path(), first.header, files[0].size).map_err(split)?;
    while let Some(path) = joining.next_part() {
        url.set_path(&path);
        let part = one(&url, how, left).await?;
        left = left.saturating_sub(part.header_length);
        joining.add(part.header, part.file.size).map_err(split)?;
        files.push(part.file);
    }
    let joined = joining.finish().map_err(split)?;
    Ok(RemoteHeader { size: joined.size(), header: joined.header, files })
}

/// What one file gives.
struct OneFile {
    header: Header,
    /// In the file.
    header_length: u64,
    file: RemoteFile,
}

async fn one(url: &Url, how: How<'_>, longest: u64) -> Result<OneFile, SourceError> {
    let retries = ExponentialBuilder::default().with_min_delay(Duration::from_millis(200)).with_max_times(TRIES - 1);
    (|| Reading::new(url, how, longest).run()).retry(retries).when(SourceError::is_transient).await
}

struct Reading<'a> {
    url: &'a Url,
    how: How<'a>,
    /// Bytes of header that are read at most.
    longest: u64,
    reader: Option<HeaderReader>,
    position: u64,
    size: u64,
    etag: Option<String>,
}

impl<'a> Reading<'a> {
    fn new(url: &'a Url, how: How<'a>, longest: u64) -> Reading<'a> {
        Reading { url, how, longest, reader: None, position: 0, size: 0, etag: None }
    }

    async fn run(mut self) -> Result<OneFile, SourceError> {
        let mut chunk = FIRST_CHUNK;
        while self.position < self.longest {
            let range = ByteRange { first: self.position, last: Some(self.position + chunk - 1), of: None };
            let feed = match get(self.url, range, self.how.policy).await? {
                Given::Part { response, size } => {
                    self.same_file(&response, size)?;
                    let limit = self.position.saturating_add(chunk);
                    self.feed(response, limit).await?
                }
                Given::Whole { response, size } => return self.whole(response, size).await,
                Given::Beyond { .. } => break,
            };
            if feed == Feed::Complete {
                return self.finish();
            }
            if self.position >= self.size {
                break;
            }
            chunk = (chunk * 2).min(LARGEST_CHUNK);
        }
        self.finish()
    }

    /// Of a server that ignores ranges.
    async fn whole(mut self, response: Response, size: Option<u64>) -> Result<OneFile, SourceError> {
        let Some(size) = size else {
            let why = "the server supports no ranges and does not say how large the file is".to_owned();
            return Err(SourceError::BadAnswer { url: shown(self.url), why });
        };
        if self.position > 0 {
            return Err(SourceError::Changed { url: shown(self.url) });
        }
        self.same_file(&response, size)?;
        self.feed(response, self.longest).await?;
        self.finish()
    }

    /// Notes size and tag of the first answer; later ones must be of the same file.
    fn same_file(&mut self, response: &Response, size: u64) -> Result<(), SourceError> {
        let etag = strong_etag(response);
        if self.reader.is_none() {
            self.reader = Some(HeaderReader::new(self.how.keep).with_file_size(Bytes(size)));
            (self.size, self.etag) = (size, etag);
            return Ok(());
        }
        if (self.size, &self.etag) != (size, &etag) {
            return Err(SourceError::Changed { url: shown(self.url) });
        }
        Ok(())
    }

    /// Feeds what comes, up to byte `limit` of the file.
    async fn feed(&mut self, mut response: Response, limit: u64) -> Result<Feed, SourceError> {
        let begin = self.position;
        while self.position < limit {
            let Some(bytes) = response.chunk().await.map_err(|error| request_error(self.url, error))? else { break };
            let wanted = usize::try_from(limit - self.position).unwrap_or(usize::MAX).min(bytes.len());
            self.position += wanted as u64;
            let reader = self.reader.as_mut().expect("same_file makes the reader before anything is fed");
            let feed = reader.feed(&bytes[..wanted]).map_err(|source| header_error(self.url, source))?;
            if feed == Feed::Complete {
                return Ok(Feed::Complete);
            }
        }
        if self.position == begin {
            return Err(SourceError::BadAnswer { url: shown(self.url), why: format!("the server gave no bytes from {begin} on") });
        }
        Ok(Feed::More)
    }

    fn finish(self) -> Result<OneFile, SourceError> {
        let reader = self.reader.unwrap_or_else(|| HeaderReader::new(self.how.keep));
        let header = reader.into_header().map_err(|source| match source {
            GgufError::Truncated { offset, .. } if self.position >= self.longest => {
                header_error(self.url, GgufError::HeaderTooLarge { limit: Bytes(LONGEST_HEADER), offset })
            }
            source => header_error(self.url, source),
        })?;
        if self.how.data_needed {
            header.check_file_size(Bytes(self.size)).map_err(|source| header_error(self.url, source))?;
        }
        let file = RemoteFile { url: self.url.as_str().to_owned(), size: Bytes(self.size), etag: self.etag };
        Ok(OneFile { header_length: header.data_offset, header, file })
    }
}

/// What is wrong with a header, without the bytes that stand there instead of one: they may be an answer that was meant for nobody outside.
fn header_error(url: &Url, source: GgufError) -> SourceError {
    let url = shown(url);
    match source {
        GgufError::NotGguf { .. } => SourceError::NotGguf { url },
        GgufError::DataTruncated { file_size, data_end, .. } => SourceError::Truncated { url, promised: data_end, found: file_size },
        source => SourceError::Header { url, source },
    }
}
