//! Reads a GGUF header behind a URL, and no more of the file than that.

use std::time::Duration;

use backon::{ExponentialBuilder, Retryable};
use reqwest::Response;
use stowage_placement::Bytes;
use stowage_placement::gguf::{Feed, GgufError, Header, HeaderReader, Keep};
use url::Url;

use crate::address_policy::AddressPolicy;
use crate::client::{checked_url, request_error, shown};
use crate::error::SourceError;
use crate::response::{ByteRange, Given, get, strong_etag};

/// Small headers come with the first request; a vocabulary of 150 000 tokens takes about 5 MiB.
const FIRST_CHUNK: u64 = 256 << 10;
const LARGEST_CHUNK: u64 = 8 << 20;
/// No real header comes near; a server that sends for ever is left here.
const LONGEST_HEADER: u64 = 512 << 20;
const TRIES: usize = 3;

/// A header, and what is known of the file that it stands in.
#[derive(Clone, Debug)]
pub struct RemoteHeader {
    pub header: Header,
    /// Of the whole file.
    pub size: Bytes,
    /// The server's strong entity tag, quotes included, where it has one.
    pub etag: Option<String>,
}

/// Reads the header of the GGUF file behind `url` by range requests, and checks that the file is long enough for the tensors that it names.
///
/// A server that ignores ranges is read from the beginning until the header is complete, and then left.
pub async fn header(url: &str, keep: Keep, policy: &AddressPolicy) -> Result<RemoteHeader, SourceError> {
    let url = checked_url(url, policy)?;
    let retries = ExponentialBuilder::default().with_min_delay(Duration::from_millis(200)).with_max_times(TRIES - 1);
    (|| Reading::new(&url, keep, policy).run()).retry(retries).when(SourceError::is_transient).await
}

struct Reading<'a> {
    url: &'a Url,
    keep: Keep,
    policy: &'a AddressPolicy,
    reader: Option<HeaderReader>,
    position: u64,
    size: u64,
    etag: Option<String>,
}

impl<'a> Reading<'a> {
    fn new(url: &'a Url, keep: Keep, policy: &'a AddressPolicy) -> Reading<'a> {
        Reading { url, keep, policy, reader: None, position: 0, size: 0, etag: None }
    }

    async fn run(mut self) -> Result<RemoteHeader, SourceError> {
        let mut chunk = FIRST_CHUNK;
        while self.position < LONGEST_HEADER {
            let range = ByteRange { first: self.position, last: Some(self.position + chunk - 1), of: None };
            let feed = match get(self.url, range, self.policy).await? {
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
    async fn whole(mut self, response: Response, size: Option<u64>) -> Result<RemoteHeader, SourceError> {
        let Some(size) = size else {
            let why = "the server supports no ranges and does not say how large the file is".to_owned();
            return Err(SourceError::BadAnswer { url: shown(self.url), why });
        };
        if self.position > 0 {
            return Err(SourceError::Changed { url: shown(self.url) });
        }
        self.same_file(&response, size)?;
        self.feed(response, LONGEST_HEADER).await?;
        self.finish()
    }

    /// Notes size and tag of the first answer; later ones must be of the same file.
    fn same_file(&mut self, response: &Response, size: u64) -> Result<(), SourceError> {
        let etag = strong_etag(response);
        if self.reader.is_none() {
            self.reader = Some(HeaderReader::new(self.keep).with_file_size(Bytes(size)));
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
            let feed = reader.feed(&bytes[..wanted]).map_err(|source| SourceError::Header { url: shown(self.url), source })?;
            if feed == Feed::Complete {
                return Ok(Feed::Complete);
            }
        }
        if self.position == begin {
            return Err(SourceError::BadAnswer { url: shown(self.url), why: format!("the server gave no bytes from {begin} on") });
        }
        Ok(Feed::More)
    }

    fn finish(self) -> Result<RemoteHeader, SourceError> {
        let url = shown(self.url);
        let reader = self.reader.unwrap_or_else(|| HeaderReader::new(self.keep));
        let header = reader.into_header().map_err(|source| SourceError::Header { url: url.clone(), source })?;
        match header.check_file_size(Bytes(self.size)) {
            Ok(()) => Ok(RemoteHeader { header, size: Bytes(self.size), etag: self.etag }),
            Err(GgufError::DataTruncated { file_size, data_end, .. }) => {
                Err(SourceError::Truncated { url, promised: data_end, found: file_size })
            }
            Err(source) => Err(SourceError::Header { url, source }),
        }
    }
}
