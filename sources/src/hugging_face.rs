//! URLs of the Hugging Face hub, or of a mirror that speaks like it.

use serde::Deserialize;
use url::Url;

use crate::address_policy::AddressPolicy;
use crate::client::{checked_url, request_error, shown, shown_text};
use crate::error::SourceError;

const ENDPOINT: &str = "https://huggingface.co";
/// Of an answer that names a commit among other things.
const LONGEST_ANSWER: usize = 4 << 20;

/// The hub's address: `HF_ENDPOINT` where it is set, as Hugging Face's own programs take it.
pub fn endpoint() -> String {
    endpoint_or_hub(std::env::var("HF_ENDPOINT").ok().as_deref())
}

fn endpoint_or_hub(set: Option<&str>) -> String {
    let set = set.map(|endpoint| endpoint.trim().trim_end_matches('/')).filter(|endpoint| !endpoint.is_empty());
    set.unwrap_or(ENDPOINT).to_owned()
}

/// Where a file of a repository is read: `ENDPOINT/REPOSITORY/resolve/REVISION/FILE`. The revision may be a branch, a tag or a commit.
pub fn file_url(endpoint: &str, repository: &str, revision: &str, file: &str) -> Result<String, SourceError> {
    let segments = repository.split('/').chain(["resolve", revision]).chain(file.split('/'));
    url_of(endpoint, segments)
}

/// The commit that a revision stands for now. One that is a commit already stands for itself, and nobody is asked.
pub async fn commit(endpoint: &str, repository: &str, revision: &str, policy: &AddressPolicy) -> Result<String, SourceError> {
    #[derive(Deserialize)]
    struct Answer {
        sha: String,
    }
    if is_commit(revision) {
        return Ok(revision.to_ascii_lowercase());
    }
    let segments = ["api", "models"].into_iter().chain(repository.split('/')).chain(["revision", revision]);
    let url = checked_url(&url_of(endpoint, segments)?, policy)?;
    let mut response = policy.client()?.get(url.clone()).send().await.map_err(|error| request_error(&url, error))?;
    match response.status() {
        status if status.is_success() => {}
        status if status.as_u16() == 404 => return Err(SourceError::NotFound { url: shown(&url), status }),
        status => return Err(SourceError::Status { url: shown(&url), status }),
    }
    let mut body = Vec::new();
    while let Some(bytes) = response.chunk().await.map_err(|error| request_error(&url, error))? {
        if body.len() + bytes.len() > LONGEST_ANSWER {
            return Err(SourceError::BadAnswer { url: shown(&url), why: format!("its answer is longer than {LONGEST_ANSWER} bytes") });
        }
        body.extend_from_slice(&bytes);
    }
    let answer = serde_json::from_slice::<Answer>(&body).ok().map(|answer| answer.sha);
    answer
        .filter(|sha| is_commit(sha))
        .ok_or_else(|| SourceError::BadAnswer { url: shown(&url), why: "its answer names no commit".to_owned() })
}

fn is_commit(revision: &str) -> bool {
    revision.len() == 40 && revision.bytes().all(|byte| byte.is_ascii_hexdigit())
}

fn url_of<'a>(endpoint: &str, segments: impl Iterator<Item = &'a str>) -> Result<String, SourceError> {
    let invalid = |why: String| SourceError::InvalidUrl { url: shown_text(endpoint), why };
    let mut url = Url::parse(endpoint).map_err(|why| invalid(why.to_string()))?;
    let segments: Vec<&str> = segments.collect();
    if let Some(bad) = segments.iter().find(|segment| matches!(**segment, "" | "." | "..")) {
        return Err(invalid(format!("`{bad}` is no part of a path there")));
    }
    url.path_segments_mut().map_err(|()| invalid("it can have no path".to_owned()))?.pop_if_empty().extend(segments);
    Ok(url.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_url_names_repository_revision_and_file() {
        let url = file_url("https://huggingface.co", "bartowski/Qwen-GGUF", "main", "sub dir/Qwen Q4.gguf").unwrap();
        assert_eq!(url, "https://huggingface.co/bartowski/Qwen-GGUF/resolve/main/sub%20dir/Qwen%20Q4.gguf");
        let url = file_url("http://mirror.example/hf", "a/b", "refs/pr/1", "m.gguf").unwrap();
        assert_eq!(url, "http://mirror.example/hf/a/b/resolve/refs%2Fpr%2F1/m.gguf");
    }

    #[test]
    fn the_endpoint_is_the_hub_unless_another_is_set() {
        assert_eq!(endpoint_or_hub(None), "https://huggingface.co");
        assert_eq!(endpoint_or_hub(Some("  ")), "https://huggingface.co");
        assert_eq!(endpoint_or_hub(Some(" https://mirror.example/hf/ ")), "https://mirror.example/hf");
    }

    #[test]
    fn an_endpoint_that_is_none_is_told_without_its_password() {
        let error = file_url("user:hunter2@mirror", "a/b", "main", "x.gguf").unwrap_err().to_string();
        assert!(!error.contains("hunter2"), "{error}");
        let error = file_url("https://user:hunter2@mirror.example", "a/b", "main", "../x.gguf").unwrap_err().to_string();
        assert!(!error.contains("hunter2") && error.contains("mirror.example"), "{error}");
    }

    #[test]
    fn a_file_that_climbs_out_of_its_repository_has_no_url() {
        assert!(file_url("https://huggingface.co", "a/b", "main", "../../c/d/resolve/main/x.gguf").is_err());
        assert!(file_url("https://huggingface.co", "a/..", "main", "x.gguf").is_err());
    }
}
