//! One GET, with a range where one is asked for, and what its answer says of the file.

use reqwest::header::{CONTENT_RANGE, ETAG, HeaderMap, IF_RANGE, RANGE};
use reqwest::{Response, StatusCode};
use url::Url;

use crate::address_policy::AddressPolicy;
use crate::client::{request_error, shown};
use crate::error::SourceError;

/// What part of a file to ask for.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ByteRange<'a> {
    pub first: u64,
    /// Included; `None`: to the end.
    pub last: Option<u64>,
    /// The part is only wanted of the file that had this entity tag; of another, the whole.
    pub of: Option<&'a str>,
}

/// What the server gave.
pub(crate) enum Given {
    /// From the byte that was asked for. The size is the whole file's.
    Part { response: Response, size: u64 },
    /// The whole file: ranges are ignored there, or it is another file by now.
    Whole { response: Response, size: Option<u64> },
    /// The range begins at or after the end of the file, which has this size.
    Beyond { size: Option<u64> },
}

pub(crate) async fn get(url: &Url, range: ByteRange<'_>, policy: &AddressPolicy) -> Result<Given, SourceError> {
    let last = range.last.map(|last| last.to_string()).unwrap_or_default();
    let mut request = policy.client()?.get(url.clone()).header(RANGE, format!("bytes={}-{last}", range.first));
    if let Some(etag) = range.of {
        request = request.header(IF_RANGE, etag);
    }
    let response = request.send().await.map_err(|error| request_error(url, error))?;
    match response.status() {
        StatusCode::PARTIAL_CONTENT => part(url, range, response),
        StatusCode::OK => Ok(Given::Whole { size: response.content_length(), response }),
        StatusCode::RANGE_NOT_SATISFIABLE => Ok(Given::Beyond { size: content_range(response.headers()).and_then(|(_, size)| size) }),
        status @ (StatusCode::NOT_FOUND | StatusCode::GONE) => Err(SourceError::NotFound { url: shown(url), status }),
        status => Err(SourceError::Status { url: shown(url), status }),
    }
}

fn part(url: &Url, range: ByteRange<'_>, response: Response) -> Result<Given, SourceError> {
    let bad = |why: String| SourceError::BadAnswer { url: shown(url), why };
    let Some((first, size)) = content_range(response.headers()) else {
        return Err(bad("the server gives a part of the file without saying which (no Content-Range)".to_owned()));
    };
    if first != Some(range.first) {
        return Err(bad(format!("the server was asked for bytes from {} on and gave others", range.first)));
    }
    let size = size.ok_or_else(|| bad("the server does not say how large the file is".to_owned()))?;
    Ok(Given::Part { response, size })
}

/// `bytes FIRST-LAST/SIZE`, where FIRST-LAST or SIZE may be `*`.
fn content_range(headers: &HeaderMap) -> Option<(Option<u64>, Option<u64>)> {
    let value = headers.get(CONTENT_RANGE)?.to_str().ok()?;
    let (range, size) = value.strip_prefix("bytes ")?.split_once('/')?;
    let first = range.split_once('-').and_then(|(first, _)| first.parse().ok());
    Some((first, size.parse().ok()))
}

/// The file's entity tag, if it is a strong one: equal tags then mean equal bytes.
pub(crate) fn strong_etag(response: &Response) -> Option<String> {
    let etag = response.headers().get(ETAG)?.to_str().ok()?;
    (etag.starts_with('"') && etag.len() <= 1024).then(|| etag.to_owned())
}
