//! Ollama's answers: one JSON object, or one a line.

use std::convert::Infallible;

use axum::Json;
use axum::body::Body;
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use http::header;
use serde_json::{Map, Value, json};
use stowage_engine::{Finish, FinishReason, TokenLogprob};

use crate::serve::account::Account;
use crate::serve::error::{Dialect, Fault};
use crate::serve::generation::{Generation, Output};
use crate::serve::tool_calls::ToolCall;

/// Where an answer's text stands.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Shape {
    /// `response`
    Generate,
    /// `message.content`
    Chat,
}

/// Writes the answers to one request.
pub struct Writer {
    pub model: String,
    pub shape: Shape,
    pub account: Account,
}

/// As Ollama has it: nanoseconds, an integer.
fn nanoseconds(duration: std::time::Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

fn logprob(token: &TokenLogprob) -> Value {
    let entry = |text: &str, logprob: f32| json!({"token": text, "logprob": logprob, "bytes": text.as_bytes()});
    let mut value = entry(&token.text, token.logprob);
    let top: Vec<Value> = token.top.iter().map(|(_, text, logprob)| entry(text, *logprob)).collect();
    if !top.is_empty() {
        value["top_logprobs"] = Value::Array(top);
    }
    value
}

/// What one object tells.
#[derive(Default)]
struct Said<'a> {
    thought: &'a str,
    text: &'a str,
    /// Each with its place among the answer's calls.
    calls: &'a [(usize, &'a ToolCall)],
    logprobs: &'a [TokenLogprob],
}

fn tool_call(index: usize, call: &ToolCall) -> Value {
    let id = format!("call_{}", uuid::Uuid::new_v4().simple());
    json!({"id": id, "function": {"index": index, "name": call.name, "arguments": call.arguments}})
}

impl Writer {
    fn object(&self, said: Said<'_>) -> Map<String, Value> {
        let Said { thought, text, calls, logprobs } = said;
        let mut object = Map::new();
        object.insert("model".into(), json!(self.model));
        object.insert("created_at".into(), json!(jiff::Timestamp::now()));
        match self.shape {
            Shape::Generate => {
                object.insert("response".into(), json!(text));
                if !thought.is_empty() {
                    object.insert("thinking".into(), json!(thought));
                }
            }
            Shape::Chat => {
                let mut message = json!({"role": "assistant", "content": text});
                if !thought.is_empty() {
                    message["thinking"] = json!(thought);
                }
                if !calls.is_empty() {
                    message["tool_calls"] = calls.iter().map(|(index, call)| tool_call(*index, call)).collect();
                }
                object.insert("message".into(), message);
            }
        }
        if !logprobs.is_empty() {
            object.insert("logprobs".into(), logprobs.iter().map(logprob).collect());
        }
        object.insert("done".into(), json!(false));
        object
    }

    fn close(&self, mut object: Map<String, Value>, finish: &Finish) -> Value {
        let reason = match finish.reason {
            FinishReason::Stop => "stop",
            FinishReason::Length => "length",
        };
        object.insert("done".into(), json!(true));
        object.insert("done_reason".into(), json!(reason));
        object.insert("total_duration".into(), json!(nanoseconds(self.account.elapsed())));
        // The model is loaded already: what a request waits for is a slot.
        object.insert("load_duration".into(), json!(nanoseconds(finish.queued)));
        object.insert("prompt_eval_count".into(), json!(finish.prompt_tokens));
        object.insert("prompt_eval_duration".into(), json!(nanoseconds(finish.prefill)));
        object.insert("eval_count".into(), json!(finish.generated_tokens));
        object.insert("eval_duration".into(), json!(nanoseconds(finish.decode)));
        Value::Object(object)
    }

    /// To a request without a prompt, by which clients have a model loaded.
    pub fn loaded(&self) -> Response {
        let mut object = self.object(Said::default());
        object.insert("done".into(), json!(true));
        object.insert("done_reason".into(), json!("load"));
        self.account.finished();
        Json(Value::Object(object)).into_response()
    }

    pub async fn whole(self, generation: Generation) -> Result<Response, Fault> {
        let whole = generation.whole().await?;
        let calls: Vec<(usize, &ToolCall)> = whole.tool_calls.iter().enumerate().collect();
        let logprobs = [whole.thought_logprobs, whole.logprobs].concat();
        let object = self.object(Said { thought: &whole.thought, text: &whole.text, calls: &calls, logprobs: &logprobs });
        self.account.finished();
        Ok(Json(self.close(object, &whole.finish)).into_response())
    }

    pub fn stream(self, mut generation: Generation) -> Response {
        let lines = async_stream::stream! {
            let mut calls = 0;
            loop {
                let (line, last) = match generation.next().await {
                    Output::Thought { text, logprobs } => {
                        (Value::Object(self.object(Said { thought: &text, logprobs: &logprobs, ..Said::default() })), false)
                    }
                    Output::Text { text, logprobs } => {
                        (Value::Object(self.object(Said { text: &text, logprobs: &logprobs, ..Said::default() })), false)
                    }
                    Output::ToolCall(call) => {
                        calls += 1;
                        (Value::Object(self.object(Said { calls: &[(calls - 1, &call)], ..Said::default() })), false)
                    }
                    Output::Done(finish) => (self.close(self.object(Said::default()), &finish), true),
                    Output::Failed(fault) => (fault.body(Dialect::Ollama), true),
                };
                if last {
                    // Some clients hang up as soon as they have the last line. A fault's outcome was noted before and stays.
                    self.account.finished();
                }
                yield Ok::<Bytes, Infallible>(Bytes::from(format!("{line}\n")));
                if last {
                    break;
                }
            }
        };
        ([(header::CONTENT_TYPE, "application/x-ndjson")], Body::from_stream(lines)).into_response()
    }
}
