//! A file server that can be told to misbehave, and remembers what it was asked.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use axum::Router;
use axum::body::Body;
use axum::extract::{OriginalUri, State};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use futures::StreamExt;
use http::{HeaderMap, StatusCode, header};

/// What is served, and how.
#[derive(Clone, Default)]
pub struct Script {
    pub file: Vec<u8>,
    /// More files, by their paths.
    pub files: BTreeMap<String, Vec<u8>>,
    /// What the hub says of any revision: a JSON document.
    pub revision: &'static str,
    pub etag: Option<&'static str>,
    pub ignores_ranges: bool,
    /// Lengths after which answers break off, used up one an answer.
    pub breaks: Vec<usize>,
    /// Said instead of serving the file, one an answer, after the answers that break off.
    pub refusals: Vec<StatusCode>,
}

/// One request, as it came.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Asked {
    pub range: Option<String>,
    pub if_range: Option<String>,
}

pub struct Server {
    pub url: String,
    shared: Shared,
}

#[derive(Clone)]
struct Shared {
    script: Arc<Mutex<Script>>,
    asked: Arc<Mutex<Vec<Asked>>>,
    paths: Arc<Mutex<Vec<String>>>,
}

impl Server {
    pub async fn start(script: Script) -> Server {
        Server::start_at("127.0.0.1", script).await
    }

    /// On a loopback address of its own, so that a policy can permit it and no other.
    pub async fn start_at(address: &str, script: Script) -> Server {
        let shared = Shared { script: Arc::new(Mutex::new(script)), asked: Arc::default(), paths: Arc::default() };
        let router = Router::new()
            .route("/model.gguf", axum::routing::get(serve))
            .route("/inwards", axum::routing::get(|| redirect("http://169.254.169.254/latest/meta-data")))
            .route("/by-name", axum::routing::get(|| redirect("http://localhost:1/model.gguf")))
            .route("/moved", axum::routing::get(|| redirect("/model.gguf")))
            .route("/elsewhere", axum::routing::get(|| redirect("http://secret.invalid:1/SECRET")))
            .fallback(axum::routing::get(serve_by_path))
            .with_state(shared.clone());
        let listener = tokio::net::TcpListener::bind((address, 0)).await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        tokio::spawn(async move { axum::serve(listener, router).await });
        Server { url, shared }
    }

    pub fn model(&self) -> String {
        format!("{}/model.gguf", self.url)
    }

    pub fn asked(&self) -> Vec<Asked> {
        self.shared.asked.lock().unwrap().clone()
    }

    /// Paths of what was asked for, other than `model.gguf`, in order.
    pub fn paths(&self) -> Vec<String> {
        self.shared.paths.lock().unwrap().clone()
    }
}

async fn redirect(to: &'static str) -> Response {
    (StatusCode::FOUND, [(header::LOCATION, to)]).into_response()
}

/// A revision of the hub, or one of the other files.
async fn serve_by_path(State(shared): State<Shared>, OriginalUri(uri): OriginalUri, headers: HeaderMap) -> Response {
    let path = uri.path().to_owned();
    shared.paths.lock().unwrap().push(path.clone());
    let script = shared.script.lock().unwrap().clone();
    if path.starts_with("/api/") {
        let status = if script.revision.is_empty() { StatusCode::NOT_FOUND } else { StatusCode::OK };
        return (status, script.revision).into_response();
    }
    let Some(file) = script.files.get(&path).cloned() else { return (StatusCode::NOT_FOUND, "SECRET of the server").into_response() };
    let range = headers.get(header::RANGE).and_then(|value| value.to_str().ok()).map(str::to_owned);
    answer(&Script { file, ..script }, &Asked { range, if_range: None }, None)
}

async fn serve(State(Shared { script, asked, .. }): State<Shared>, headers: HeaderMap) -> Response {
    let text = |name| headers.get(name).and_then(|value| value.to_str().ok()).map(str::to_owned);
    let request = Asked { range: text(header::RANGE), if_range: text(header::IF_RANGE) };
    asked.lock().unwrap().push(request.clone());
    let mut script = script.lock().unwrap();
    let breaks = if script.breaks.is_empty() { None } else { Some(script.breaks.remove(0)) };
    if breaks.is_none() && !script.refusals.is_empty() {
        return (script.refusals.remove(0), "SECRET of the server").into_response();
    }
    answer(&script, &request, breaks)
}

fn answer(script: &Script, request: &Asked, breaks: Option<usize>) -> Response {
    let size = script.file.len();
    let other_file = request.if_range.is_some() && request.if_range.as_deref() != script.etag;
    let range = request.range.as_deref().filter(|_| !script.ignores_ranges && !other_file);
    let mut response = Response::builder();
    if let Some(etag) = script.etag {
        response = response.header(header::ETAG, etag);
    }
    let (first, last) = range.map_or((0, size.saturating_sub(1)), |range| bounds(range, size));
    if range.is_some() && first >= size {
        let response = response.status(StatusCode::RANGE_NOT_SATISFIABLE).header(header::CONTENT_RANGE, format!("bytes */{size}"));
        return response.body(Body::empty()).unwrap();
    }
    if range.is_some() {
        response = response.status(StatusCode::PARTIAL_CONTENT).header(header::CONTENT_RANGE, format!("bytes {first}-{last}/{size}"));
    }
    let part = &script.file[first..(last + 1).min(size)];
    response.header(header::CONTENT_LENGTH, part.len()).body(body(part, breaks)).unwrap()
}

fn body(part: &[u8], breaks: Option<usize>) -> Body {
    let whole = Bytes::copy_from_slice(part);
    let Some(length) = breaks.filter(|length| *length < whole.len()) else { return Body::from(whole) };
    let breaks_off = async {
        // What was given so far is sent when there is no more for a moment.
        for _ in 0..10 {
            tokio::task::yield_now().await;
        }
        Err(std::io::Error::other("the server drops the connection"))
    };
    let piece = futures::stream::iter([Ok(whole.slice(..length))]);
    Body::from_stream(piece.chain(futures::stream::once(breaks_off)))
}

fn bounds(range: &str, size: usize) -> (usize, usize) {
    let (first, last) = range.strip_prefix("bytes=").unwrap().split_once('-').unwrap();
    (first.parse().unwrap(), last.parse().unwrap_or(size - 1).min(size - 1))
}
