use http::StatusCode;
use stowage_placement::gguf::Keep;
use stowage_placement::{Bytes, Reason};
use stowage_sources::{AddressPolicy, RemoteFile, SourceError, header, header_alone};

use crate::server::{Script, Server};
use crate::{model, with_loopback};

async fn refused(script: Script) -> SourceError {
    let server = Server::start(script).await;
    header(&server.model(), Keep::Sizing, &with_loopback()).await.unwrap_err()
}

#[tokio::test]
async fn a_header_is_read_in_ranges_and_the_data_after_it_is_not() {
    let data = 64 << 20;
    let mut file = model().header();
    let header_length = file.len();
    file.resize(header_length + data, 0);
    let server = Server::start(Script { file, etag: Some("\"v1\""), ..Script::default() }).await;
    let read = header(&server.model(), Keep::Sizing, &with_loopback()).await.unwrap();
    assert_eq!(read.header.architecture().unwrap(), "llama");
    assert_eq!(read.size, Bytes((header_length + data) as u64));
    let url = server.model();
    assert_eq!(read.files, [RemoteFile { url, size: read.size, etag: Some("\"v1\"".into()) }]);
    let ranges: Vec<String> = server.asked().into_iter().map(|asked| asked.range.unwrap()).collect();
    assert_eq!(ranges, ["bytes=0-262143", "bytes=262144-786431"]);
}

#[tokio::test]
async fn a_server_that_ignores_ranges_is_read_until_the_header_is_complete() {
    let mut file = model().file(|_, _| 0);
    file.resize(32 << 20, 0);
    let server = Server::start(Script { file, ignores_ranges: true, ..Script::default() }).await;
    let read = header(&server.model(), Keep::Sizing, &with_loopback()).await.unwrap();
    assert_eq!((read.size, read.header.tensors.len()), (Bytes(32 << 20), 1));
    assert_eq!(server.asked().len(), 1);
}

#[tokio::test]
async fn a_file_that_ends_before_its_tensors_do_is_truncated() {
    let mut file = model().file(|_, _| 0);
    let promised = file.len();
    file.truncate(promised - 1000);
    let error = refused(Script { file, ..Script::default() }).await;
    assert_eq!(error.reason(), Reason::InvalidModelFile);
    let text = error.to_string();
    assert!(text.contains(&format!("its header promises {promised} bytes, the server has {} bytes", promised - 1000)), "{text}");
}

#[tokio::test]
async fn a_file_that_ends_after_its_header_is_enough_for_whoever_asks_for_the_header_alone() {
    let (file, promised) = (model().header(), model().file_size());
    let server = Server::start(Script { file, ..Script::default() }).await;
    let read = header_alone(&server.model(), Keep::Sizing, &with_loopback()).await.unwrap();
    assert_eq!(read.size, Bytes(promised));
}

#[tokio::test]
async fn a_file_that_ends_within_its_header_is_an_invalid_file() {
    let mut file = model().header();
    file.truncate(300_000);
    let error = refused(Script { file, ..Script::default() }).await;
    assert_eq!(error.reason(), Reason::InvalidModelFile, "{error}");
}

#[tokio::test]
async fn what_is_no_gguf_file_is_known_by_its_first_bytes_and_not_repeated() {
    let error = refused(Script { file: b"<html>SECRET</html>".repeat(9), ..Script::default() }).await;
    assert_eq!(error.reason(), Reason::InvalidModelFile);
    assert!(error.to_string().contains("does not begin with \"GGUF\" at offset 0"), "{error}");
    assert!(!error.to_string().contains("SECRET") && !error.to_string().contains("<htm"), "{error}");
}

#[tokio::test]
async fn of_a_large_header_no_more_than_one_read_ahead_is_asked_for_beyond_it() {
    let tokens: Vec<String> = (0..400_000).map(|i| format!("a token that is rather long, number {i}")).collect();
    let mut file = model().strings("tokenizer.ggml.merges", tokens.iter().map(String::as_str)).header();
    let header_length = file.len() as u64;
    assert!(header_length > 16 << 20);
    file.resize(file.len() + (24 << 20), 0);
    let server = Server::start(Script { file, ..Script::default() }).await;
    header(&server.model(), Keep::Sizing, &with_loopback()).await.unwrap();
    let asked = server.asked();
    let last: u64 = asked.last().unwrap().range.as_ref().unwrap().rsplit('-').next().unwrap().parse().unwrap();
    assert!(last < header_length + (8 << 20), "{asked:?} of {header_length}");
    assert!(asked.len() < 10, "{asked:?}");
}

#[tokio::test]
async fn a_file_that_is_not_there_is_not_found_and_what_the_server_says_of_it_is_not_repeated() {
    let error = refused(Script { refusals: vec![StatusCode::NOT_FOUND], ..Script::default() }).await;
    assert_eq!(error.reason(), Reason::ModelNotFound);
    assert!(error.to_string().contains("404") && !error.to_string().contains("SECRET"), "{error}");
}

#[tokio::test]
async fn a_server_that_is_busy_for_a_moment_is_asked_again() {
    let file = model().file(|_, _| 0);
    let server = Server::start(Script { file, refusals: vec![StatusCode::SERVICE_UNAVAILABLE], ..Script::default() }).await;
    header(&server.model(), Keep::Sizing, &with_loopback()).await.unwrap();
}

#[tokio::test]
async fn a_redirect_is_followed_to_where_one_may_read_and_no_further() {
    let server = Server::start(Script { file: model().file(|_, _| 0), ..Script::default() }).await;
    header(&format!("{}/moved", server.url), Keep::Sizing, &with_loopback()).await.unwrap();
    let error = header(&format!("{}/inwards", server.url), Keep::Sizing, &with_loopback()).await.unwrap_err();
    assert_eq!(error.reason(), Reason::SourceForbidden, "{error}");
    assert!(error.to_string().contains("169.254.169.254, a link-local address"), "{error}");
    let error = header(&format!("{}/elsewhere", server.url), Keep::Sizing, &with_loopback()).await.unwrap_err();
    assert!(!error.to_string().to_lowercase().contains("secret"), "{error}");
}

#[tokio::test]
async fn a_redirect_to_a_name_within_is_refused_when_the_name_is_resolved_and_the_name_is_not_repeated() {
    let server = Server::start_at("127.0.0.2", Script::default()).await;
    let that_one = AddressPolicy::parse(["127.0.0.2"]).unwrap();
    let error = header(&format!("{}/by-name", server.url), Keep::Sizing, &that_one).await.unwrap_err();
    assert_eq!(error.reason(), Reason::SourceForbidden, "{error}");
    assert!(error.to_string().contains("the host that it redirects to is at"), "{error}");
    assert!(!error.to_string().contains("localhost"), "{error}");
}

#[tokio::test]
async fn this_machine_is_not_read_from_by_address_by_name_or_by_redirect() {
    let server = Server::start(Script { file: model().file(|_, _| 0), ..Script::default() }).await;
    let by_name = server.model().replace("127.0.0.1", "localhost");
    for url in [server.model(), by_name, "http://[::1]:1/x".into(), "http://[::ffff:127.0.0.1]:1/x".into(), "http://2130706433/x".into()] {
        let error = header(&url, Keep::Sizing, &AddressPolicy::public()).await.unwrap_err();
        assert_eq!(error.reason(), Reason::SourceForbidden, "{url}: {error}");
    }
    assert_eq!(server.asked(), []);
    // Allowed to read from 127.0.0.1 as an address of its own, and sent to a name that resolves to a loopback address that is not allowed.
    let this_one = AddressPolicy::parse(["127.0.0.1"]).unwrap();
    let allowed = header(&format!("{}/moved", server.url), Keep::Sizing, &this_one).await;
    assert!(allowed.is_ok(), "{allowed:?}");
}

#[tokio::test]
async fn secrets_in_a_url_are_not_shown() {
    let server = Server::start(Script { refusals: vec![StatusCode::FORBIDDEN], ..Script::default() }).await;
    let url = server.model().replace("http://", "http://user:hunter2@") + "?token=hunter3";
    let error = header(&url, Keep::Sizing, &with_loopback()).await.unwrap_err();
    assert!(!error.to_string().contains("hunter"), "{error}");
    assert_eq!(error.reason(), Reason::SourceUnavailable);
    let error = header("ftp://user:hunter2@example.com/x", Keep::Sizing, &with_loopback()).await.unwrap_err();
    assert!(!error.to_string().contains("hunter"), "{error}");
}
