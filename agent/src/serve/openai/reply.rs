//! OpenAI's answers: one JSON object, or server-sent events.

use std::collections::VecDeque;
use std::convert::Infallible;

use axum::Json;
use axum::response::sse::{Event, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};
use stowage_engine::{Finish, FinishReason, GenerateRequest, TokenLogprob};

use super::logprobs::{chat_logprobs, completion_logprobs};
use super::now;
use crate::serve::account::Account;
use crate::serve::error::{Dialect, Fault};
use crate::serve::generation::{Generation, Output, Reading, Whole};
use crate::serve::tool_calls::ToolCall;
use crate::serve::worker::WorkerState;

/// Which of the two calls is answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shape {
    /// `one_call`: only the first of an answer's tool calls is given.
    Chat {
        one_call: bool,
    },
    Completion,
}

/// One of the answers asked for. They are generated one after the other: all but the first find their prompt in the cache.
pub struct Choice {
    pub index: u32,
    pub request: GenerateRequest,
}

/// Token counts of all choices together.
#[derive(Default)]
struct Usage {
    prompt: u64,
    cached: u64,
    completion: u64,
}

impl Usage {
    fn add(&mut self, finish: &Finish, prompt_counted: bool) {
        if !prompt_counted {
            self.prompt += u64::from(finish.prompt_tokens);
            self.cached += u64::from(finish.cached_tokens);
        }
        self.completion += u64::from(finish.generated_tokens);
    }

    fn value(&self) -> Value {
        json!({
            "prompt_tokens": self.prompt,
            "completion_tokens": self.completion,
            "total_tokens": self.prompt + self.completion,
            "prompt_tokens_details": {"cached_tokens": self.cached},
        })
    }
}

/// Writes the answers to one request.
pub struct Writer {
    worker: WorkerState,
    account: Account,
    model: String,
    shape: Shape,
    include_usage: bool,
    reading: Reading,
    id: String,
    created: i64,
}

impl Writer {
    pub fn new(worker: WorkerState, account: Account, model: String, shape: Shape, include_usage: bool, reading: Reading) -> Writer {
        let prefix = if shape == Shape::Completion { "cmpl" } else { "chatcmpl" };
        let id = format!("{prefix}-{}", uuid::Uuid::new_v4().simple());
        Writer { worker, account, model, shape, include_usage, reading, id, created: now() }
    }

    fn start(&self, request: GenerateRequest) -> Result<Generation, Fault> {
        self.worker.start(request, &self.account, &self.reading)
    }

    fn object(&self, chunk: bool, choices: Vec<Value>) -> Value {
        let object = match (self.shape, chunk) {
            (Shape::Completion, _) => "text_completion",
            (Shape::Chat { .. }, false) => "chat.completion",
            (Shape::Chat { .. }, true) => "chat.completion.chunk",
        };
        // It changes with what is loaded, as OpenAI means it to.
        let fingerprint: String = self.worker.config.placement.digest.chars().take(10).collect();
        json!({
            "id": self.id,
            "object": object,
            "created": self.created,
            "model": self.model,
            "system_fingerprint": format!("fp_{fingerprint}"),
            "choices": choices,
        })
    }

    pub async fn whole(self, choices: Vec<Choice>) -> Result<Response, Fault> {
        let mut usage = Usage::default();
        let mut answers = Vec::new();
        let mut previous: Option<Vec<u32>> = None;
        for Choice { index, request } in choices {
            let prompt = request.prompt.clone();
            let whole = self.start(request)?.whole().await?;
            usage.add(&whole.finish, previous.as_ref() == Some(&prompt));
            previous = Some(prompt);
            answers.push(self.choice(index, &whole));
        }
        let mut answer = self.object(false, answers);
        answer["usage"] = usage.value();
        self.account.finished();
        Ok(Json(answer).into_response())
    }

    fn choice(&self, index: u32, whole: &Whole) -> Value {
        let Shape::Chat { one_call } = self.shape else {
            let logprobs = completion_logprobs(&whole.logprobs, &mut 0);
            return json!({"index": index, "text": whole.text, "logprobs": logprobs, "finish_reason": finish_reason(&whole.finish, false)});
        };
        let calls: Vec<&ToolCall> = whole.tool_calls.iter().take(if one_call { 1 } else { usize::MAX }).collect();
        let content = if whole.text.is_empty() && !calls.is_empty() { Value::Null } else { json!(whole.text) };
        let mut message = json!({"role": "assistant", "content": content, "refusal": null});
        if !whole.thought.is_empty() {
            message["reasoning_content"] = json!(whole.thought);
        }
        if !calls.is_empty() {
            message["tool_calls"] = calls.iter().map(|call| tool_call(call)).collect();
        }
        let finish_reason = finish_reason(&whole.finish, !calls.is_empty());
        json!({"index": index, "message": message, "logprobs": chat_logprobs(&whole.logprobs), "finish_reason": finish_reason})
    }

    /// The first generation is queued before the answer begins, so that a full queue is an error's status and not a broken stream.
    pub fn stream(self, choices: Vec<Choice>) -> Result<Response, Fault> {
        let mut choices = VecDeque::from(choices);
        let Some(first) = choices.pop_front() else { return Err(Fault::field("n", "`n` must be at least 1")) };
        let mut prompt = first.request.prompt.clone();
        let mut started = Some((first.index, Ok(self.start(first.request)?)));
        let events = async_stream::stream! {
            let mut usage = Usage::default();
            let mut counted = false;
            while let Some((index, generation)) = started.take() {
                let mut generation = match generation {
                    Ok(generation) => generation,
                    Err(fault) => {
                        self.account.failed(&fault);
                        yield event(&fault.body(Dialect::OpenAi));
                        return;
                    }
                };
                let mut chunks = Chunks::new(&self, index);
                if let Some(opening) = chunks.opening() {
                    yield event(&self.chunk(opening));
                }
                loop {
                    match generation.next().await {
                        Output::Thought { text, .. } => {
                            if !text.is_empty() {
                                yield event(&self.chunk(chunks.thought(&text)));
                            }
                        }
                        Output::Text { text, logprobs } => yield event(&self.chunk(chunks.text(&text, &logprobs))),
                        Output::ToolCall(call) => {
                            if let Some(choice) = chunks.call(&call) {
                                yield event(&self.chunk(choice));
                            }
                        }
                        Output::Done(finish) => {
                            usage.add(&finish, counted);
                            yield event(&self.chunk(chunks.end(&finish)));
                            break;
                        }
                        Output::Failed(fault) => {
                            yield event(&fault.body(Dialect::OpenAi));
                            return;
                        }
                    }
                }
                if let Some(next) = choices.pop_front() {
                    counted = next.request.prompt == prompt;
                    prompt.clone_from(&next.request.prompt);
                    started = Some((next.index, self.start(next.request)));
                }
            }
            if self.include_usage {
                let mut last = self.object(true, Vec::new());
                last["usage"] = usage.value();
                yield event(&last);
            }
            // Before the last event: clients hang up as soon as they have it.
            self.account.finished();
            yield Ok(Event::default().data("[DONE]"));
        };
        Ok(Sse::new(events).keep_alive(KeepAlive::default()).into_response())
    }

    fn chunk(&self, choice: Value) -> Value {
        let mut chunk = self.object(true, vec![choice]);
        if self.include_usage {
            chunk["usage"] = Value::Null;
        }
        chunk
    }
}

fn event(value: &Value) -> Result<Event, Infallible> {
    Ok(Event::default().data(value.to_string()))
}

/// The chunks of one choice.
struct Chunks {
    shape: Shape,
    index: u32,
    calls: u32,
    offset: usize,
}

impl Chunks {
    fn new(writer: &Writer, index: u32) -> Chunks {
        Chunks { shape: writer.shape, index, calls: 0, offset: 0 }
    }

    fn delta(&self, delta: Value, logprobs: Value, finish_reason: Value) -> Value {
        json!({"index": self.index, "delta": delta, "logprobs": logprobs, "finish_reason": finish_reason})
    }

    fn opening(&self) -> Option<Value> {
        (self.shape != Shape::Completion).then(|| self.delta(json!({"role": "assistant", "content": ""}), Value::Null, Value::Null))
    }

    /// Not OpenAI's; by the name that DeepSeek and vLLM gave it.
    fn thought(&self, text: &str) -> Value {
        self.delta(json!({"reasoning_content": text}), Value::Null, Value::Null)
    }

    fn text(&mut self, text: &str, logprobs: &[TokenLogprob]) -> Value {
        if self.shape == Shape::Completion {
            let logprobs = completion_logprobs(logprobs, &mut self.offset);
            return json!({"index": self.index, "text": text, "logprobs": logprobs, "finish_reason": null});
        }
        self.delta(json!({"content": text}), chat_logprobs(logprobs), Value::Null)
    }

    fn call(&mut self, call: &ToolCall) -> Option<Value> {
        if self.calls > 0 && matches!(self.shape, Shape::Chat { one_call: true }) {
            return None;
        }
        let mut delta = tool_call(call);
        delta["index"] = json!(self.calls);
        self.calls += 1;
        Some(self.delta(json!({"tool_calls": [delta]}), Value::Null, Value::Null))
    }

    fn end(&self, finish: &Finish) -> Value {
        let reason = json!(finish_reason(finish, self.calls > 0));
        match self.shape {
            Shape::Completion => json!({"index": self.index, "text": "", "logprobs": null, "finish_reason": reason}),
            Shape::Chat { .. } => self.delta(json!({}), Value::Null, reason),
        }
    }
}

fn finish_reason(finish: &Finish, called: bool) -> &'static str {
    match finish.reason {
        FinishReason::Length => "length",
        FinishReason::Stop if called => "tool_calls",
        FinishReason::Stop => "stop",
    }
}

fn tool_call(call: &ToolCall) -> Value {
    let id = format!("call_{}", uuid::Uuid::new_v4().simple());
    let arguments = Value::Object(call.arguments.clone()).to_string();
    json!({"id": id, "type": "function", "function": {"name": call.name, "arguments": arguments}})
}
