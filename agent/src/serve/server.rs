//! Connections, and how long a client may take over them.
//!
//! An answer waits in memory until it is taken, and a connection is one of a limited number of open files: a client that stopped sending or taking
//! without a word is let go of.

use std::error::Error;
use std::future::Future;
use std::io;
use std::pin::{Pin, pin};
use std::task::{Context, Poll};
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::Request;
use axum::extract::rejection::BytesRejection;
use axum::middleware::map_request;
use futures::StreamExt;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto::Builder;
use hyper_util::server::graceful::GracefulShutdown;
use hyper_util::service::TowerToHyperService;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::{Sleep, sleep, timeout};

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
    let router = router.layer(map_request(move |request: Request| async move { hurried(request, patience.body) }));
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

/// A body that fails where nothing of it comes for too long.
fn hurried(request: Request, patience: Duration) -> Request {
    request.map(|body| {
        if axum::body::HttpBody::is_end_stream(&body) {
            return body;
        }
        let mut pieces = body.into_data_stream();
        Body::from_stream(async_stream::stream! {
            loop {
                match timeout(patience, pieces.next()).await {
                    Ok(Some(piece)) => yield piece.map_err(io::Error::other),
                    Ok(None) => return,
                    Err(_) => {
                        yield Err(io::ErrorKind::TimedOut.into());
                        return;
                    }
                }
            }
        })
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
