//! What is written down of a request.

use std::io;
use std::sync::Mutex;

use serde_json::json;

use super::*;

/// What was logged on this thread.
#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl io::Write for Log {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[tokio::test]
async fn a_requests_line_has_counts_durations_and_trace_and_nothing_of_what_was_said() {
    let (router, log) = (parrot(), Log::default());
    // What logs decides once for all threads whether anybody listens, when it first does: let that be before somebody does.
    post(&router, "/api/chat", json!({"model": "parrot", "messages": []})).await;
    let writer = log.clone();
    let subscriber = tracing_subscriber::fmt().json().with_max_level(tracing::Level::TRACE).with_writer(move || writer.clone()).finish();
    let logging = tracing::subscriber::set_default(subscriber);
    let body = json!({"model": "parrot", "stream": false, "messages": [{"role": "user", "content": "whispered"}]});
    let request = Request::post("/api/chat").header("traceparent", "00-abc-def-01").body(Body::from(body.to_string())).unwrap();
    let answer = router.clone().oneshot(request).await.unwrap().into_body();
    assert!(String::from_utf8(axum::body::to_bytes(answer, usize::MAX).await.unwrap().to_vec()).unwrap().contains("whispered"));
    post(&router, "/v1/chat/completions", json!({"model": "parrot", "messages": [{"role": "whispered"}], "user": "whispered"})).await;
    drop(logging);
    let text = String::from_utf8(log.0.lock().unwrap().clone()).unwrap();
    for part in [r#""outcome":"ok""#, r#""generated_tokens":9"#, r#""prompt_tokens":26"#, "duration_ms", "00-abc-def-01", "invalid_request"]
    {
        assert!(text.contains(part), "{part} in {text}");
    }
    assert!(!text.contains("whispered"), "{text}");
}
