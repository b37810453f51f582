//! Connections, and how long a client may take over them.
//!
//! An answer waits in memory until it is taken, and a connection is one of a limited number of open files: a client that stopped sending or taking
//! without a word is let go of.

use std::error::Error;
use std::future::Future;
use std::io;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::Router;
use axum::body::{Body, BodyDataStream, HttpBody};
use axum::extract::Request;
use axum::extract::rejection::BytesRejection;
use axum::middleware::{Next, from_fn};
use axum::response::Response;
use bytes::Bytes;
use futures::StreamExt;
use http::StatusCode;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto::Builder;
use hyper_util::server::graceful::GracefulShutdown;
use hyper_util::service::TowerToHyperService;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Mutex;
use tokio::time::{Sleep, sleep, timeout};

/// Most bytes that are taken of a body beyond what may be read of it.
const MOST_DISCARDED: usize = 256 << 20;

/// How long nothing may come of a client.
#[derive(Clone, Copy, Debug)]
pub struct Patience {
    /// From a connection's beginning, or its last answer, to the whole head of a request.
    pub head: Duration,
    /// Between two pieces of a body.
    pub body: Duration,
    /// For it to take more of an answer.
    pub answer: Duration,
}

impl Default for Patience {
    fn default() -> Patience {
        // Longer than clients, the door among them, keep connections that they don't use.
        Patience { head: Duration::from_secs(120), body: Duration::from_secs(30), answer: Duration::from_secs(120) }
    }
}

/// Serves until `stop`; then takes no new connections and returns when those that are open have ended, with the answers that they have under way.
pub async fn serve(
    listener: TcpListener,
    router: Router,
    patience: Patience,
    stop: impl Future<Output = ()> + Send + 'static,
) -> io::Result<()> {
    let mut builder = Builder::new(TokioExecutor::new());
    builder.http1().timer(TokioTimer::new()).header_read_timeout(patience.head);
    let router = router.layer(from_fn(move |request: Request, next: Next| answered(request, next, patience.body)));
    let graceful = GracefulShutdown::new();
    let mut stop = pin!(stop);
    loop {
        let stream = tokio::select! {
            stream = accept(&listener) => stream,
            () = &mut stop => break,
        };
        let io = TokioIo::new(Taken { stream, patience: patience.answer, waiting: None });
        let connection = builder.serve_connection(io, TowerToHyperService::new(router.clone())).into_owned();
        let connection = graceful.watch(connection);
        tokio::spawn(async move {
            if let Err(error) = connection.await {
                tracing::debug!(%error, "a connection ended early");
            }
        });
    }
    drop(listener);
    graceful.shutdown().await;
    Ok(())
}

async fn accept(listener: &TcpListener) -> TcpStream {
    loop {
        match listener.accept().await {
            Ok((stream, _)) => {
                // Each piece of a stream is to be seen at once. Fails only where the client has gone.
                stream.set_nodelay(true).ok();
                return stream;
            }
            Err(error) => {
                // Too many open files, for instance; accepting again at once would only spin.
                tracing::warn!(%error, "a client could not connect");
                sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

/// A body's pieces, as long as they come.
type Pieces = Arc<Mutex<BodyDataStream>>;

/// The answer to a request whose body fails where nothing of it comes for too long. What is left of a body that is too large is taken all the same: a
/// client that still sends would not see the answer.
async fn answered(request: Request, next: Next, patience: Duration) -> Response {
    if request.body().is_end_stream() {
        return next.run(request).await;
    }
    let (parts, body) = request.into_parts();
    let pieces: Pieces = Arc::new(Mutex::new(body.into_data_stream()));
    let response = next.run(Request::from_parts(parts, hurried(pieces.clone(), patience))).await;
    if response.status() == StatusCode::PAYLOAD_TOO_LARGE {
        let mut left = MOST_DISCARDED;
        while let Some(Ok(piece)) = piece(&pieces, patience).await {
            left = left.saturating_sub(piece.len());
            if left == 0 {
                break;
            }
        }
    }
    response
}

async fn piece(pieces: &Pieces, patience: Duration) -> Option<io::Result<Bytes>> {
    match timeout(patience, async { pieces.lock().await.next().await }).await {
        Ok(piece) => piece.map(|piece| piece.map_err(io::Error::other)),
        Err(_) => Some(Err(io::ErrorKind::TimedOut.into())),
    }
}

fn hurried(pieces: Pieces, patience: Duration) -> Body {
    Body::from_stream(async_stream::stream! {
        while let Some(piece) = piece(&pieces, patience).await {
            let failed = piece.is_err();
            yield piece;
            if failed {
                return;
            }
        }
    })
}

/// Did a body end because nothing more of it came?
pub fn was_slow(rejection: &BytesRejection) -> bool {
    let mut cause: Option<&dyn Error> = Some(rejection);
    while let Some(error) = cause {
        if error.downcast_ref::<io::Error>().is_some_and(|error| error.kind() == io::ErrorKind::TimedOut) {
            return true;
        }
        cause = error.source();
    }
    false
}

/// A connection that fails where the client takes nothing for too long.
struct Taken {
    stream: TcpStream,
    patience: Duration,
    /// Since the client last took something.
    waiting: Option<Pin<Box<Sleep>>>,
}

impl Taken {
    fn watched<T>(&mut self, context: &mut Context<'_>, result: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        if result.is_ready() {
            self.waiting = None;
            return result;
        }
        let patience = self.patience;
        let waiting = self.waiting.get_or_insert_with(|| Box::pin(sleep(patience)));
        waiting.as_mut().poll(context).map(|()| Err(io::ErrorKind::TimedOut.into()))
    }
}

impl AsyncRead for Taken {
    fn poll_read(mut self: Pin<&mut Self>, context: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl AsyncWrite for Taken {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let result = Pin::new(&mut self.stream).poll_write(context, bytes);
        self.watched(context, result)
    }

    fn poll_write_vectored(mut self: Pin<&mut Self>, context: &mut Context<'_>, slices: &[io::IoSlice<'_>]) -> Poll<io::Result<usize>> {
        let result = Pin::new(&mut self.stream).poll_write_vectored(context, slices);
        self.watched(context, result)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}
