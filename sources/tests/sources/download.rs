use std::path::PathBuf;

use stowage_placement::{Bytes, Reason};
use stowage_sources::{Download, Downloaded, Progress, SourceError, download};
use tempfile::TempDir;

use crate::server::{Asked, Script, Server};
use crate::{sha256, with_loopback};

fn content() -> Vec<u8> {
    (0..300_000u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 24) as u8).collect()
}

struct Target {
    directory: TempDir,
}

impl Target {
    fn new() -> Target {
        Target { directory: tempfile::tempdir().unwrap() }
    }

    fn path(&self) -> PathBuf {
        self.directory.path().join("model.gguf")
    }

    fn names(&self) -> Vec<String> {
        let entries = std::fs::read_dir(self.directory.path()).unwrap();
        let mut names: Vec<String> = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    async fn fetch(&self, server: &Server, sha256: Option<&str>, size: Option<u64>) -> Result<Downloaded, SourceError> {
        let url = server.model();
        let wanted = Download { url: &url, destination: &self.path(), sha256, size: size.map(Bytes) };
        download(wanted, &with_loopback(), |_| {}).await
    }
}

fn asked(range: &str, if_range: Option<&str>) -> Asked {
    Asked { range: Some(range.into()), if_range: if_range.map(str::to_owned) }
}

#[tokio::test]
async fn a_download_goes_on_from_where_the_connection_dropped() {
    let server = Server::start(Script { file: content(), etag: Some("\"v1\""), breaks: vec![100_000, 50_000], ..Script::default() }).await;
    let target = Target::new();
    let (url, digest) = (server.model(), sha256(&content()));
    let wanted = Download { url: &url, destination: &target.path(), sha256: Some(&digest), size: Some(Bytes(300_000)) };
    let mut last = Progress { done: Bytes::ZERO, total: None };
    let downloaded = download(wanted, &with_loopback(), |progress| last = progress).await.unwrap();
    assert_eq!((downloaded.size, downloaded.sha256), (Bytes(300_000), digest));
    assert_eq!(std::fs::read(target.path()).unwrap(), content());
    assert_eq!(target.names(), ["model.gguf"]);
    assert_eq!(last.percent(), Some(100));
    let tag = Some("\"v1\"");
    assert_eq!(server.asked(), [asked("bytes=0-", None), asked("bytes=100000-", tag), asked("bytes=150000-", tag)]);
}

#[tokio::test]
async fn a_download_goes_on_where_a_process_that_died_was() {
    let server = Server::start(Script { file: content(), etag: Some("\"v1\""), ..Script::default() }).await;
    let target = Target::new();
    std::fs::write(target.directory.path().join("model.gguf.part"), &content()[..123_456]).unwrap();
    std::fs::write(target.directory.path().join("model.gguf.part-etag"), "\"v1\"").unwrap();
    target.fetch(&server, Some(&sha256(&content())), None).await.unwrap();
    assert_eq!(std::fs::read(target.path()).unwrap(), content());
    assert_eq!(server.asked(), [asked("bytes=123456-", Some("\"v1\""))]);
    assert_eq!(target.names(), ["model.gguf"]);
}

#[tokio::test]
async fn a_part_that_was_whole_needs_no_more_bytes() {
    let server = Server::start(Script { file: content(), etag: Some("\"v1\""), ..Script::default() }).await;
    let target = Target::new();
    std::fs::write(target.directory.path().join("model.gguf.part"), content()).unwrap();
    std::fs::write(target.directory.path().join("model.gguf.part-etag"), "\"v1\"").unwrap();
    target.fetch(&server, None, Some(300_000)).await.unwrap();
    assert_eq!(target.names(), ["model.gguf"]);
}

#[tokio::test]
async fn a_file_that_was_replaced_is_begun_anew() {
    let server = Server::start(Script { file: content(), etag: Some("\"v2\""), ..Script::default() }).await;
    let target = Target::new();
    std::fs::write(target.directory.path().join("model.gguf.part"), [7; 1000]).unwrap();
    std::fs::write(target.directory.path().join("model.gguf.part-etag"), "\"v1\"").unwrap();
    target.fetch(&server, None, None).await.unwrap();
    assert_eq!(std::fs::read(target.path()).unwrap(), content());
}

#[tokio::test]
async fn a_part_of_nobody_knows_what_is_thrown_away_unless_a_digest_will_tell() {
    let server = Server::start(Script { file: content(), ..Script::default() }).await;
    let target = Target::new();
    std::fs::write(target.directory.path().join("model.gguf.part"), [7; 1000]).unwrap();
    target.fetch(&server, None, None).await.unwrap();
    assert_eq!(std::fs::read(target.path()).unwrap(), content());
    assert_eq!(server.asked(), [asked("bytes=0-", None)]);
}

#[tokio::test]
async fn a_server_that_ignores_ranges_is_read_from_the_beginning_again() {
    let script = Script { file: content(), etag: Some("\"v1\""), ignores_ranges: true, breaks: vec![100_000], ..Script::default() };
    let server = Server::start(script).await;
    let target = Target::new();
    target.fetch(&server, Some(&sha256(&content())), None).await.unwrap();
    assert_eq!(std::fs::read(target.path()).unwrap(), content());
}

#[tokio::test]
async fn a_wrong_sha256_is_told_with_both_and_leaves_no_file() {
    let server = Server::start(Script { file: content(), ..Script::default() }).await;
    let target = Target::new();
    let wrong = "0".repeat(64);
    let error = target.fetch(&server, Some(&wrong), None).await.unwrap_err();
    assert_eq!(error.reason(), Reason::DigestMismatch);
    let text = error.to_string();
    assert!(text.contains(&wrong) && text.contains(&sha256(&content())), "{text}");
    assert_eq!(target.names(), Vec::<String>::new());
}

#[tokio::test]
async fn a_file_of_another_size_than_expected_is_not_downloaded() {
    let server = Server::start(Script { file: content(), ..Script::default() }).await;
    let target = Target::new();
    let error = target.fetch(&server, None, Some(300_001)).await.unwrap_err();
    assert!(error.to_string().contains("has 300000 bytes; 300001 were expected"), "{error}");
    assert_eq!(target.names(), Vec::<String>::new());
}

#[tokio::test]
async fn a_file_larger_than_the_disk_is_refused_before_a_byte_is_asked_for() {
    let server = Server::start(Script { file: content(), ..Script::default() }).await;
    let target = Target::new();
    let error = target.fetch(&server, None, Some(1 << 60)).await.unwrap_err();
    assert_eq!(error.reason(), Reason::InsufficientDisk);
    assert!(error.to_string().contains("1048576.0 TiB more are needed"), "{error}");
    assert_eq!(server.asked(), []);
    assert_eq!(target.names(), Vec::<String>::new());
}

#[tokio::test]
async fn what_was_downloaded_before_the_server_said_no_is_kept_for_the_next_time() {
    let gone = vec![http::StatusCode::FORBIDDEN];
    let script = Script { file: content(), etag: Some("\"v1\""), breaks: vec![100_000], refusals: gone, ..Script::default() };
    let server = Server::start(script).await;
    let target = Target::new();
    let error = target.fetch(&server, None, None).await.unwrap_err();
    assert_eq!(error.reason(), Reason::SourceUnavailable);
    assert_eq!(target.names(), ["model.gguf.part", "model.gguf.part-etag"]);
    target.fetch(&server, None, None).await.unwrap();
    assert_eq!(server.asked().last(), Some(&asked("bytes=100000-", Some("\"v1\""))));
    assert_eq!(std::fs::read(target.path()).unwrap(), content());
}
