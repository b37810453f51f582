//! A file server for tests that can be unkind: it serves ranges, and may drop the first connection in the middle of a file.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};

use anyhow::{Context, Result};
use axum::Router;
use axum::body::Body;
use axum::extract::{Path, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::Response;
use futures::stream;

use crate::tls::Tls;

/// Bytes sent before a connection is dropped.
const DROPPED_AFTER: usize = 20 << 20;
const PIECE: usize = 1 << 20;
/// A range longer than this belongs to a download, not to the reading of a header.
const DOWNLOAD: usize = 32 << 20;

/// A request that was answered: the path, the first byte asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    pub path: String,
    pub start: usize,
}

#[derive(Clone)]
pub struct FileServer {
    pub address: SocketAddr,
    file: Arc<PathBuf>,
    requests: Arc<Mutex<Vec<Request>>>,
}

impl FileServer {
    /// Serves `file` under every path. Below `/dropped/`, the first download breaks off after 20 MiB.
    pub async fn start(file: PathBuf) -> Result<FileServer> {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.context("binding the file server")?;
        let (server, router) = FileServer::at(listener.local_addr()?, file);
        tokio::spawn(async move { axum::serve(listener, router).await });
        Ok(server)
    }

    /// The same by HTTPS, as `localhost`; with its certificate, as PEM.
    pub async fn start_https(file: PathBuf) -> Result<(FileServer, String)> {
        let listener = Tls::bind().await?;
        let (server, router) = FileServer::at(listener.address()?, file);
        let certificate = listener.certificate.clone();
        tokio::spawn(async move { axum::serve(listener, router).await });
        Ok((server, certificate))
    }

    fn at(address: SocketAddr, file: PathBuf) -> (FileServer, Router) {
        let server = FileServer { address, file: Arc::new(file), requests: Arc::default() };
        let router = Router::new().route("/{*path}", axum::routing::get(serve)).with_state(server.clone());
        (server, router)
    }

    pub fn url(&self, path: &str) -> String {
        format!("http://{}/{path}", self.address)
    }

    /// First bytes of the downloads of `path`, in order.
    pub fn downloads(&self, path: &str) -> Vec<usize> {
        let requests = self.requests.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        requests.iter().filter(|request| request.path == path).map(|request| request.start).collect()
    }

    /// Notes a download and says whether it is the first of its path.
    fn note(&self, path: &str, start: usize) -> bool {
        let mut requests = self.requests.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        let first = !requests.iter().any(|request| request.path == path);
        requests.push(Request { path: path.to_owned(), start });
        first
    }
}

async fn serve(State(server): State<FileServer>, Path(path): Path<String>, headers: HeaderMap) -> Response {
    match answer(&server, &path, &headers).await {
        Ok(response) => response,
        Err(error) => {
            let mut response = Response::new(Body::from(error.to_string()));
            *response.status_mut() = StatusCode::INTERNAL_SERVER_ERROR;
            response
        }
    }
}

async fn answer(server: &FileServer, path: &str, headers: &HeaderMap) -> Result<Response> {
    let data = tokio::fs::read(server.file.as_ref()).await?;
    let total = data.len();
    let range = headers.get(header::RANGE).and_then(|value| value.to_str().ok()).and_then(parse_range);
    let (start, end) = range.map_or((0, total), |(start, end)| (start.min(total), end.map_or(total, |end| (end + 1).min(total))));
    let body = data.get(start..end).unwrap_or_default().to_vec();
    let is_download = body.len() > DOWNLOAD || (start > 0 && end == total);
    let drops = is_download && server.note(path, start) && path.starts_with("dropped/");
    let builder =
        Response::builder().header(header::ACCEPT_RANGES, "bytes").header(header::ETAG, "\"1\"").header(header::CONTENT_LENGTH, body.len());
    let builder = match range {
        Some(_) => {
            let content_range = format!("bytes {start}-{}/{total}", end.saturating_sub(1));
            builder.status(StatusCode::PARTIAL_CONTENT).header(header::CONTENT_RANGE, content_range)
        }
        None => builder,
    };
    Ok(builder.body(pieces(body, drops))?)
}

/// In pieces, the last of which is an error where the connection is to be dropped.
fn pieces(body: Vec<u8>, drops: bool) -> Body {
    let sent = if drops { DROPPED_AFTER.min(body.len()) } else { body.len() };
    let mut pieces: Vec<std::io::Result<Vec<u8>>> = body[..sent].chunks(PIECE).map(|piece| Ok(piece.to_vec())).collect();
    if drops {
        pieces.push(Err(std::io::Error::other("dropped on purpose")));
    }
    Body::from_stream(stream::iter(pieces))
}

/// `bytes=START-` or `bytes=START-END`.
fn parse_range(value: &str) -> Option<(usize, Option<usize>)> {
    let (start, end) = value.strip_prefix("bytes=")?.split_once('-')?;
    Some((start.parse().ok()?, if end.is_empty() { None } else { Some(end.parse().ok()?) }))
}
