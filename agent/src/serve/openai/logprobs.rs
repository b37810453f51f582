//! Log probabilities as OpenAI's two calls write them.

use serde_json::{Value, json};
use stowage_engine::TokenLogprob;

/// Of a chat's answer: a list of objects.
pub fn chat_logprobs(logprobs: &[TokenLogprob]) -> Value {
    if logprobs.is_empty() {
        return Value::Null;
    }
    let entry = |text: &str, logprob: f32| json!({"token": text, "logprob": logprob, "bytes": text.as_bytes()});
    let token = |token: &TokenLogprob| {
        let mut value = entry(&token.text, token.logprob);
        value["top_logprobs"] = token.top.iter().map(|(_, text, logprob)| entry(text, *logprob)).collect();
        value
    };
    json!({"content": logprobs.iter().map(token).collect::<Vec<_>>(), "refusal": null})
}

/// The older shape: parallel lists. `offset` counts characters of the answer, from chunk to chunk.
pub fn completion_logprobs(logprobs: &[TokenLogprob], offset: &mut usize) -> Value {
    if logprobs.is_empty() {
        return Value::Null;
    }
    let tokens: Vec<&str> = logprobs.iter().map(|token| token.text.as_str()).collect();
    let values: Vec<f32> = logprobs.iter().map(|token| token.logprob).collect();
    let top = |token: &TokenLogprob| -> Value { token.top.iter().map(|(_, text, logprob)| (text.clone(), json!(logprob))).collect() };
    let top: Vec<Value> = logprobs.iter().map(top).collect();
    let mut offsets = Vec::new();
    for token in &tokens {
        offsets.push(*offset);
        *offset += token.chars().count();
    }
    json!({"tokens": tokens, "token_logprobs": values, "top_logprobs": top, "text_offset": offsets})
}
