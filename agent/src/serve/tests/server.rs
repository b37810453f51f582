//! Slow clients, over real connections.

use std::time::Duration;

use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::oneshot;

use super::*;

/// Long enough for whoever does not mean to be slow.
const LONG: Duration = Duration::from_secs(60);
const SHORT: Duration = Duration::from_millis(50);

async fn connected(router: &Router, patience: Patience) -> (TcpStream, oneshot::Sender<()>, tokio::task::JoinHandle<std::io::Result<()>>) {
    let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
    let address = listener.local_addr().unwrap();
    let (stop, stopped) = oneshot::channel::<()>();
    let server = tokio::spawn(serve(listener, router.clone(), patience, async move { drop(stopped.await) }));
    (TcpStream::connect(address).await.unwrap(), stop, server)
}

fn patience() -> Patience {
    Patience { head: LONG, body: LONG, answer: LONG }
}

fn request(body: &Value) -> String {
    let body = body.to_string();
    format!("POST /api/generate HTTP/1.1\r\nhost: x\r\ncontent-length: {}\r\n\r\n{body}", body.len())
}

async fn all_of(mut stream: TcpStream) -> String {
    let mut text = Vec::new();
    stream.read_to_end(&mut text).await.ok();
    String::from_utf8_lossy(&text).into_owned()
}

#[tokio::test]
async fn a_connection_on_which_no_request_comes_is_closed() {
    let (mut stream, _stop, _server) = connected(&parrot(), Patience { head: SHORT, ..patience() }).await;
    stream.write_all(b"POST /api/generate HTTP/1.1\r\nhost").await.unwrap();
    assert!(!all_of(stream).await.contains("200"));
}

#[tokio::test]
async fn a_body_that_stops_coming_is_answered_408() {
    let (mut stream, _stop, _server) = connected(&parrot(), Patience { body: SHORT, head: SHORT * 4, ..patience() }).await;
    let whole = request(&json!({"model": "parrot", "prompt": "hello"}));
    stream.write_all(&whole.as_bytes()[..whole.len() - 5]).await.unwrap();
    let answer = all_of(stream).await;
    assert!(answer.starts_with("HTTP/1.1 408") && answer.contains("stopped coming"), "{answer}");
}

#[tokio::test]
async fn a_client_that_takes_nothing_of_its_answer_is_let_go_of() {
    let router = parrot();
    let (mut stream, _stop, _server) = connected(&router, Patience { answer: SHORT, ..patience() }).await;
    stream.write_all(request(&json!({"model": "parrot", "prompt": "forever"})).as_bytes()).await.unwrap();
    let cancelled = r#"api="ollama.generate",outcome="cancelled"} 1"#;
    while !fetch(&router, "/metrics").await.text.contains(cancelled) {
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn a_server_that_stops_finishes_the_answers_that_are_under_way() {
    let (mut stream, stop, server) = connected(&parrot(), patience()).await;
    let whole = request(&json!({"model": "parrot", "prompt": "hello"}));
    stream.write_all(whole.as_bytes()).await.unwrap();
    let mut first = [0; 1];
    stream.read_exact(&mut first).await.unwrap();
    stop.send(()).unwrap();
    let rest = all_of(stream).await;
    assert!(rest.contains(r#""done_reason":"stop""#), "{rest}");
    server.await.unwrap().unwrap();
}

#[tokio::test]
async fn a_client_that_still_sends_a_body_that_is_too_large_sees_why_it_is_refused() {
    let (mut stream, _stop, _server) = connected(&parrot(), Patience { head: SHORT, ..patience() }).await;
    let whole = request(&json!({"model": "parrot", "prompt": "x".repeat(8 << 20)}));
    stream.write_all(whole.as_bytes()).await.unwrap();
    let answer = all_of(stream).await;
    assert!(answer.starts_with("HTTP/1.1 413") && answer.contains("larger"), "{answer}");
}
