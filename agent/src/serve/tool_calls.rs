//! Tool calls in what a model writes.
//!
//! Models write them in a few ways: Hermes and Qwen between `<tool_call>` tags, Mistral as an array after `[TOOL_CALLS]`, Llama 3 as a bare JSON
//! object that is the whole answer. What starts like one of these is held back until it is read or turns out to be plain text.

use serde_json::{Map, Value};

const OPEN: &str = "<tool_call>";
const CLOSE: &str = "</tool_call>";
const MISTRAL: &str = "[TOOL_CALLS]";
const PYTHON: &str = "<|python_tag|>";

/// A function that the model wants called.
#[derive(Clone, Debug, PartialEq)]
pub struct ToolCall {
    pub name: String,
    pub arguments: Map<String, Value>,
}

#[derive(Clone, Debug, PartialEq)]
pub enum Piece {
    Text(String),
    Call(ToolCall),
}

/// Fed text as it comes; gives text and calls.
#[derive(Debug, Default)]
pub struct ToolCallReader {
    held: String,
    /// Text was given out: an answer that began as text is no bare JSON call.
    spoken: bool,
}

impl ToolCall {
    /// `{"name": ..., "arguments": {...}}`, or `parameters` as Llama 3 has it.
    fn from_value(value: &Value) -> Option<ToolCall> {
        let call = value.get("function").filter(|function| function.is_object()).unwrap_or(value);
        let name = call.get("name")?.as_str()?.to_owned();
        let arguments = match call.get("arguments").or_else(|| call.get("parameters")) {
            Some(Value::Object(arguments)) => arguments.clone(),
            Some(Value::String(text)) => serde_json::from_str(text).ok()?,
            Some(_) => return None,
            None => Map::new(),
        };
        Some(ToolCall { name, arguments })
    }

    fn all_in(text: &str) -> Option<Vec<ToolCall>> {
        let calls: Vec<Value> = match serde_json::from_str(text.trim()).ok()? {
            Value::Array(items) => items,
            value @ Value::Object(_) => vec![value],
            _ => return None,
        };
        let calls: Option<Vec<ToolCall>> = calls.iter().map(ToolCall::from_value).collect();
        calls.filter(|calls| !calls.is_empty())
    }
}

/// Bytes at the end of `text` that could be the start of `tag`.
fn partial_tag(text: &str, tag: &str) -> usize {
    (1..tag.len()).rev().find(|length| text.ends_with(&tag[..*length])).unwrap_or(0)
}

impl ToolCallReader {
    pub fn push(&mut self, text: &str) -> Vec<Piece> {
        self.held.push_str(text);
        let mut pieces = Vec::new();
        if self.whole_answer_may_be_a_call() {
            return pieces;
        }
        loop {
            match self.held.find(OPEN) {
                Some(start) => {
                    self.say(start, &mut pieces);
                    let Some(end) = self.held.find(CLOSE) else { return pieces };
                    self.read_tagged(end, end + CLOSE.len(), &mut pieces);
                }
                None => {
                    let safe = self.held.len() - partial_tag(&self.held, OPEN);
                    self.say(safe, &mut pieces);
                    return pieces;
                }
            }
        }
    }

    /// What is still held: the last call, or text after all.
    pub fn finish(mut self) -> Vec<Piece> {
        let mut pieces = Vec::new();
        if self.held.starts_with(OPEN) {
            let end = self.held.len();
            self.read_tagged(end, end, &mut pieces);
            return pieces;
        }
        let start = self.held.trim_start();
        let body = start.strip_prefix(MISTRAL).or_else(|| start.strip_prefix(PYTHON)).unwrap_or(start);
        match ToolCall::all_in(body).filter(|_| !self.spoken) {
            Some(calls) => pieces.extend(calls.into_iter().map(Piece::Call)),
            None => self.say(self.held.len(), &mut pieces),
        }
        pieces
    }

    fn whole_answer_may_be_a_call(&self) -> bool {
        let start = self.held.trim_start();
        let marker = |tag: &str| start.starts_with(tag) || tag.starts_with(start);
        !self.spoken && (start.starts_with('{') || marker(MISTRAL) || marker(PYTHON))
    }

    /// Gives out the first `length` held bytes as text; blanks before the first call are dropped.
    fn say(&mut self, length: usize, pieces: &mut Vec<Piece>) {
        let text: String = self.held.drain(..length).collect();
        if text.trim().is_empty() && (!self.spoken || text.is_empty()) {
            // Blanks are held until something follows them, so that a call's answer has no content.
            if !self.held.starts_with(OPEN) {
                self.held.insert_str(0, &text);
            }
            return;
        }
        self.spoken = true;
        pieces.push(Piece::Text(text));
    }

    /// The call between a tag at the start of what is held and `end`; what can't be read stays text, tags and all.
    fn read_tagged(&mut self, end: usize, after: usize, pieces: &mut Vec<Piece>) {
        let tagged: String = self.held.drain(..after).collect();
        match ToolCall::all_in(&tagged[OPEN.len()..end]) {
            Some(calls) => pieces.extend(calls.into_iter().map(Piece::Call)),
            None => {
                self.spoken = true;
                pieces.push(Piece::Text(tagged));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    /// The pieces, with neighbouring texts joined, however the text is cut.
    fn read(text: &str, cut: usize) -> Vec<Piece> {
        let mut reader = ToolCallReader::default();
        let characters: Vec<char> = text.chars().collect();
        let mut pieces: Vec<Piece> = characters.chunks(cut).flat_map(|part| reader.push(&part.iter().collect::<String>())).collect();
        pieces.extend(reader.finish());
        let mut joined: Vec<Piece> = Vec::new();
        for piece in pieces {
            match (joined.last_mut(), piece) {
                (Some(Piece::Text(text)), Piece::Text(more)) => text.push_str(&more),
                (_, piece) => joined.push(piece),
            }
        }
        joined
    }

    fn weather(city: &str) -> Piece {
        Piece::Call(ToolCall { name: "weather".into(), arguments: json!({"city": city}).as_object().unwrap().clone() })
    }

    #[test]
    fn calls_are_read_in_each_way_of_writing_them_however_the_text_is_cut() {
        let call = r#"{"name": "weather", "arguments": {"city": "Oslo"}}"#;
        let llama = r#"{"name": "weather", "parameters": {"city": "Oslo"}}"#;
        let cases = [
            (format!("<tool_call>\n{call}\n</tool_call>"), vec![weather("Oslo")]),
            (format!("\n<tool_call>{call}</tool_call>\n<tool_call>{call}</tool_call>"), vec![weather("Oslo"), weather("Oslo")]),
            (format!("Let me see.<tool_call>{call}</tool_call>"), vec![Piece::Text("Let me see.".into()), weather("Oslo")]),
            (format!("<tool_call>{call}"), vec![weather("Oslo")]),
            (llama.to_owned(), vec![weather("Oslo")]),
            (format!("<|python_tag|>{llama}"), vec![weather("Oslo")]),
            (format!("[TOOL_CALLS] [{call}, {call}]"), vec![weather("Oslo"), weather("Oslo")]),
        ];
        for (text, expected) in cases {
            for cut in [1, 2, 7, 1000] {
                assert_eq!(read(&text, cut), expected, "{text} cut by {cut}");
            }
        }
    }

    #[test]
    fn what_only_looks_like_a_call_stays_text_to_the_letter() {
        for text in [
            "Hello",
            "a < b <tool",
            "{ not json",
            r#"{"city": "Oslo"}"#,
            "<tool_call>nonsense</tool_call> more",
            "[TOOL",
            "Use {\"name\": \"x\"}",
            " \n x \n",
        ] {
            for cut in [1, 3, 1000] {
                assert_eq!(read(text, cut), [Piece::Text(text.into())], "{text} cut by {cut}");
            }
        }
    }
}
