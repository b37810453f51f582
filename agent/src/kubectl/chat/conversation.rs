//! What was said so far, and the next answer.

use std::io::Write;

use serde_json::{Map, Value, json};

use super::stream::Stream;
use super::{ChatArgs, ChatError};
use crate::kubectl::Error;
use crate::plan::printable;

/// With one model, in the words of Ollama's `/api/chat`.
pub struct Conversation {
    client: reqwest::Client,
    url: String,
    model: String,
    api_key: Option<String>,
    options: Map<String, Value>,
    verbose: bool,
    messages: Vec<Value>,
}

impl Conversation {
    pub fn new(url: &str, model: &str, args: &ChatArgs) -> Conversation {
        Conversation {
            client: reqwest::Client::new(),
            url: format!("{url}/api/chat"),
            model: model.to_owned(),
            api_key: args.api_key.clone(),
            options: args.options.iter().cloned().collect(),
            verbose: args.verbose,
            messages: Vec::new(),
        }
    }

    pub fn clear(&mut self) {
        self.messages.clear();
    }

    /// Prints the answer while it comes. What is refused leaves the conversation as it was.
    pub async fn say(&mut self, prompt: &str, out: &mut impl Write) -> Result<(), Error> {
        self.messages.push(json!({"role": "user", "content": prompt}));
        let mut answer = String::new();
        let ended = match self.ask().await {
            Ok(stream) => tokio::select! {
                ended = print(stream, &mut answer, out) => ended,
                _ = tokio::signal::ctrl_c() => Ok(None),
            },
            Err(error) => Err(error.into()),
        };
        if answer.is_empty() && ended.is_err() {
            self.messages.pop();
        } else {
            self.messages.push(json!({"role": "assistant", "content": answer}));
        }
        let last = ended?;
        writeln!(out)?;
        if let Some(last) = last.filter(|_| self.verbose) {
            eprint!("\n{}", figures(&last));
        }
        Ok(())
    }

    async fn ask(&self) -> Result<Stream, ChatError> {
        let body = json!({"model": self.model, "messages": self.messages, "options": self.options, "stream": true});
        let mut request = self.client.post(&self.url).json(&body);
        if let Some(key) = &self.api_key {
            request = request.bearer_auth(key);
        }
        let response = request.send().await.map_err(|source| ChatError::Ask { url: self.url.clone(), source })?;
        let status = response.status().as_u16();
        if response.status().is_success() {
            return Ok(Stream::new(&self.url, response));
        }
        let text = response.text().await.unwrap_or_default();
        let told = serde_json::from_str::<Value>(&text).ok().and_then(|body| body["error"].as_str().map(str::to_owned));
        Err(ChatError::Refused { url: self.url.clone(), status, message: told.unwrap_or(text) })
    }
}

/// Prints to the end; gives the last message, which has the figures.
async fn print(mut stream: Stream, answer: &mut String, out: &mut impl Write) -> Result<Option<Value>, Error> {
    let mut thinks = false;
    loop {
        let message = stream.next().await?;
        let (thought, said) = (&message["message"]["thinking"], &message["message"]["content"]);
        let (thought, said) = (thought.as_str().unwrap_or_default(), said.as_str().unwrap_or_default());
        if !thought.is_empty() && !thinks {
            writeln!(out, "Thinking...")?;
        }
        if thinks && !said.is_empty() {
            writeln!(out, "\n...done thinking.\n")?;
        }
        thinks = (thinks || !thought.is_empty()) && said.is_empty();
        answer.push_str(said);
        write!(out, "{}", printable(&format!("{thought}{said}")))?;
        out.flush()?;
        if message["done"] == true {
            return Ok(Some(message));
        }
    }
}

/// What Ollama's client prints with `--verbose`.
pub fn figures(last: &Value) -> String {
    let number = |field: &str| last[field].as_u64().unwrap_or(0);
    let rate = |count: &str, duration: &str| number(count) as f64 * 1e9 / number(duration).max(1) as f64;
    let seconds = |field: &str| format!("{:.3}s", number(field) as f64 / 1e9);
    let lines = [
        ("total duration:", seconds("total_duration")),
        ("prompt eval count:", format!("{} token(s)", number("prompt_eval_count"))),
        ("prompt eval duration:", seconds("prompt_eval_duration")),
        ("prompt eval rate:", format!("{:.2} tokens/s", rate("prompt_eval_count", "prompt_eval_duration"))),
        ("eval count:", format!("{} token(s)", number("eval_count"))),
        ("eval duration:", seconds("eval_duration")),
        ("eval rate:", format!("{:.2} tokens/s", rate("eval_count", "eval_duration"))),
    ];
    lines.map(|(label, value)| format!("{label:<22}{value}\n")).concat()
}
