//! Requests that went wrong in many ways: each gets an answer, and none that blames the server.

use std::time::{Duration, Instant};

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use serde_json::json;

use super::generator::THINKING;
use super::*;

/// Requests with about every field that there is.
fn corpus() -> Vec<(&'static str, Value)> {
    let schema = json!({"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]});
    let tool = json!({"type": "function", "function": {"name": "f", "description": "d", "parameters": schema}});
    let call = json!({"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}});
    let turns = json!([{"role": "system", "content": "s"}, {"role": "user", "content": [{"type": "text", "text": "é😀"}]},
        {"role": "assistant", "content": null, "tool_calls": [call]}, {"role": "tool", "tool_call_id": "c", "content": "x"}]);
    let said = json!([{"role": "user", "content": "hé😀"}, {"role": "assistant", "content": "x", "thinking": "y",
        "tool_calls": [{"function": {"name": "f", "arguments": {"a": 1}}}]}, {"role": "tool", "content": "z", "tool_name": "f"}]);
    let options = json!({"num_ctx": 300, "num_predict": 5, "temperature": 0.5, "top_k": 4, "top_p": 0.5, "min_p": 0.1, "typical_p": 0.9,
        "repeat_last_n": 3, "repeat_penalty": 1.1, "presence_penalty": 0.1, "frequency_penalty": 0.1, "seed": 1, "stop": ["x"],
        "num_gpu": -1, "num_thread": 2, "num_batch": 512, "use_mmap": true, "mirostat": 0});
    vec![
        (
            "/api/generate",
            json!({"model": "parrot", "prompt": "hi", "system": "s", "raw": false, "stream": false, "format": schema,
            "options": options, "think": false, "keep_alive": "5m", "logprobs": true, "top_logprobs": 1, "images": [], "suffix": ""}),
        ),
        (
            "/api/chat",
            json!({"model": "parrot", "messages": said, "tools": [tool], "format": "json", "options": options, "think": true,
            "keep_alive": -1, "stream": true, "truncate": true, "shift": false}),
        ),
        ("/api/embed", json!({"model": "parrot", "input": ["a", "b"], "truncate": true, "dimensions": 2, "options": {}, "keep_alive": 0})),
        ("/api/embeddings", json!({"model": "parrot", "prompt": "a"})),
        ("/api/show", json!({"model": "parrot", "verbose": true})),
        (
            "/v1/chat/completions",
            json!({"model": "parrot", "messages": turns, "tools": [tool], "tool_choice": "auto", "n": 2, "seed": 1,
            "stop": ["x"], "logprobs": true, "top_logprobs": 2, "stream": true, "stream_options": {"include_usage": true}, "user": "u",
            "max_completion_tokens": 4, "temperature": 1, "top_p": 1, "presence_penalty": 0, "frequency_penalty": 0, "metadata": {},
            "parallel_tool_calls": false, "reasoning_effort": "none", "chat_template_kwargs": {"enable_thinking": false},
            "response_format": {"type": "json_schema", "json_schema": {"name": "n", "strict": true, "schema": schema}}}),
        ),
        (
            "/v1/completions",
            json!({"model": "parrot", "prompt": ["a", "b"], "max_tokens": 3, "n": 1, "logprobs": 1, "best_of": 1,
            "echo": false, "logit_bias": {}, "stream": false}),
        ),
        ("/v1/embeddings", json!({"model": "parrot", "input": [[1, 2], [3]], "encoding_format": "base64", "dimensions": 2})),
    ]
}

fn odd(rng: &mut StdRng) -> Value {
    let deep = (0..rng.random_range(1..200)).fold(json!(1), |inner, _| json!([inner]));
    let odd = [
        Value::Null,
        json!(true),
        json!(-1),
        json!(0),
        json!(1.5),
        json!(1e308),
        json!(i64::MIN),
        json!(u64::MAX),
        json!(""),
        json!("\u{0}\u{202e}e\u{301}\u{1F469}\u{200D}"),
        json!("x".repeat(1000)),
        json!([]),
        json!({}),
        json!([null, {}, [[]]]),
        json!({"": "", "$ref": "#", "type": "function"}),
        deep,
    ];
    odd[rng.random_range(0..odd.len())].clone()
}

/// Puts something odd in the place of one value, however deep, or beside it.
fn disturb(rng: &mut StdRng, value: &mut Value) {
    let deeper = rng.random_range(0..3) > 0;
    match value {
        Value::Object(map) if deeper && !map.is_empty() => {
            let at = rng.random_range(0..map.len());
            if let Some((_, inner)) = map.iter_mut().nth(at) {
                disturb(rng, inner);
            }
        }
        Value::Array(items) if deeper && !items.is_empty() => {
            let at = rng.random_range(0..items.len());
            disturb(rng, &mut items[at]);
        }
        Value::Object(map) if rng.random() => drop(map.insert(format!("odd{}", rng.random_range(0..9)), odd(rng))),
        value => *value = odd(rng),
    }
}

/// Changes bytes, so that it may be no JSON any more.
fn damage(rng: &mut StdRng, text: &mut Vec<u8>) {
    for _ in 0..rng.random_range(1..4) {
        let at = rng.random_range(0..text.len());
        match rng.random_range(0..3) {
            0 => text[at] = rng.random(),
            1 => text.truncate(at.max(1)),
            _ => text.insert(at, b"{}[]\",:\\"[rng.random_range(0..8)]),
        }
    }
}

async fn check(router: &Router, path: &str, body: Vec<u8>) {
    let answer = send(router, Method::POST, path, body.clone()).await;
    let what = || format!("{path} {} {}\n{}", answer.status, answer.text, String::from_utf8_lossy(&body));
    assert!(answer.status == StatusCode::OK || answer.status.is_client_error(), "{}", what());
    if answer.status != StatusCode::OK {
        let error = &answer.json()["error"];
        let message = error.as_str().or(error["message"].as_str()).unwrap_or_else(|| panic!("an error without a message: {}", what()));
        assert!(!message.is_empty() && message.len() < 8192, "{}", what());
    }
}

async fn fuzz(seed: u64, until: impl Fn(u64) -> bool) {
    let mut rng = StdRng::seed_from_u64(seed);
    let routers = [parrot(), parrot_with(THINKING)];
    let corpus = corpus();
    let mut runs = 0;
    while until(runs) {
        let (path, mut body) = corpus[rng.random_range(0..corpus.len())].clone();
        (0..rng.random_range(1..3)).for_each(|_| disturb(&mut rng, &mut body));
        let mut text = body.to_string().into_bytes();
        if rng.random_range(0..4) == 0 {
            damage(&mut rng, &mut text);
        }
        check(&routers[rng.random_range(0..2)], path, text).await;
        runs += 1;
    }
}

#[tokio::test]
async fn every_disturbed_request_is_answered_and_none_is_the_servers_fault() {
    for (path, body) in corpus() {
        let answer = post(&parrot_with(THINKING), path, body).await;
        assert_eq!(answer.status, StatusCode::OK, "{path} {}", answer.text);
    }
    fuzz(1, |runs| runs < 2000).await;
}

#[tokio::test]
async fn every_field_that_is_not_known_is_refused_by_its_name() {
    for (path, mut body) in corpus() {
        body["frobnicate"] = json!(1);
        let answer = post(&parrot_with(THINKING), path, body).await;
        assert!(answer.status == StatusCode::BAD_REQUEST && answer.text.contains("`frobnicate`"), "{path} {}", answer.text);
    }
}

/// `STOWAGE_FUZZ_SECONDS` of it, a minute unless told otherwise, from a fresh seed, which a failure tells.
#[tokio::test]
#[ignore = "takes as long as it is told to"]
async fn requests_disturbed_for_a_while_are_answered() {
    let seconds = std::env::var("STOWAGE_FUZZ_SECONDS").ok().and_then(|seconds| seconds.parse().ok()).unwrap_or(60);
    let (seed, end) = (rand::rng().random(), Instant::now() + Duration::from_secs(seconds));
    println!("seed {seed}");
    fuzz(seed, |_| Instant::now() < end).await;
}
