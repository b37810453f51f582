//! The messages of an answer, one JSON object a line, while they come.

use serde_json::Value;

use super::ChatError;

pub struct Stream {
    url: String,
    response: reqwest::Response,
    buffer: Vec<u8>,
}

impl Stream {
    pub fn new(url: &str, response: reqwest::Response) -> Stream {
        Stream { url: url.to_owned(), response, buffer: Vec::new() }
    }

    /// The next message; an error where the stream ends before one that says it is the last, or where the model says that it failed.
    pub async fn next(&mut self) -> Result<Value, ChatError> {
        loop {
            if let Some(end) = self.buffer.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = self.buffer.drain(..=end).collect();
                return self.message(&line);
            }
            match self.response.chunk().await {
                Ok(Some(bytes)) => self.buffer.extend_from_slice(&bytes),
                Ok(None) => return Err(self.broke_off("it ended before its last message")),
                Err(error) => return Err(self.broke_off(error)),
            }
        }
    }

    fn message(&self, line: &[u8]) -> Result<Value, ChatError> {
        let message: Value = serde_json::from_slice(line).map_err(|error| self.broke_off(error))?;
        match message["error"].as_str() {
            Some(error) => Err(self.broke_off(error)),
            None => Ok(message),
        }
    }

    fn broke_off(&self, what: impl ToString) -> ChatError {
        ChatError::BrokeOff { url: self.url.clone(), what: what.to_string() }
    }
}
