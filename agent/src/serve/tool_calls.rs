//! Tool calls in what a model writes.
//!
//! Models write them in a few ways: Hermes, Qwen and GLM between `<tool_call>` tags, Mistral as an array after `[TOOL_CALLS]`, Llama 3 as a bare JSON
//! object that is the whole answer. What starts like one of these is held back until it is read or turns out to be plain text.

pub use super::called::ToolCall;

const OPEN: &str = "<tool_call>";
const CLOSE: &str = "</tool_call>";
const MISTRAL: &str = "[TOOL_CALLS]";
const PYTHON: &str = "<|python_tag|>";

#[derive(Clone, Debug, PartialEq)]
pub enum Piece {
    Text(String),
    Call(ToolCall),
}

/// Fed text as it comes; gives text and calls.
#[derive(Debug)]
pub struct ToolCallReader {
    /// The tools that there are. JSON without a mark is a call only of one of them.
    tools: Vec<String>,
    held: String,
    /// Text was given out: an answer that began as text is no bare JSON call.
    spoken: bool,
}

/// Bytes at the end of `text` that could be the start of `tag`.
pub fn partial_tag(text: &str, tag: &str) -> usize {
    (1..tag.len()).rev().find(|length| text.ends_with(&tag[..*length])).unwrap_or(0)
}

impl ToolCallReader {
    pub fn new(tools: Vec<String>) -> ToolCallReader {
        ToolCallReader { tools, held: String::new(), spoken: false }
    }

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
        let marked = start.strip_prefix(MISTRAL).or_else(|| start.strip_prefix(PYTHON));
        let meant = |calls: &Vec<ToolCall>| marked.is_some() || calls.iter().all(|call| self.tools.contains(&call.name));
        match ToolCall::all_in(marked.unwrap_or(start)).filter(meant).filter(|_| !self.spoken) {
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
        let mut reader = ToolCallReader::new(vec!["weather".into()]);
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
            (
                "<tool_call>\n<function=weather>\n<parameter=city>\nOslo\n</parameter>\n</function>\n</tool_call>".to_owned(),
                vec![weather("Oslo")],
            ),
            ("<tool_call>weather\n<arg_key>city</arg_key>\n<arg_value>Oslo</arg_value>\n</tool_call>".to_owned(), vec![weather("Oslo")]),
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
            r#"{"name": "Aurora", "built": 1777}"#,
            "<tool_call><function=weather><parameter=city>Oslo</tool_call>",
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
