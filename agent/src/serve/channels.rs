//! What gpt-oss writes: messages, of which each says in its header on which channel it is and to whom.
//!
//! `<|start|>assistant<|channel|>analysis<|message|>...<|end|>` is thought. `final` is the answer, and so is `commentary` to nobody in particular. What is
//! `to=functions.NAME` is a call, its body the arguments. The prompt has written the first message up to `assistant`. Source: OpenAI's description of the
//! format ("harmony"), and the chat template of openai/gpt-oss-120b, after which a recipient may stand before the channel too.

use serde_json::{Map, Value};

use super::thinking::Opening;
use super::thought_reader::Said;
use super::tool_calls::{ToolCall, partial_tag};

const START: &str = "<|start|>assistant";
const CHANNEL: &str = "<|channel|>";
const MESSAGE: &str = "<|message|>";
const RECIPIENT: &str = "to=";
/// What ends a message. The last two end the answer too, and so are seldom seen.
const ENDS: [&str; 3] = ["<|end|>", "<|call|>", "<|return|>"];
/// A header has some fifty bytes; what is longer is none.
const LONGEST_HEADER: usize = 512;

#[derive(Debug)]
enum State {
    /// Before the end of a message's header.
    Header,
    Thought,
    Answer,
    /// A call, with its header as it was written.
    Call {
        name: String,
        header: String,
    },
    /// Text without channels: all that follows is the answer.
    Plain,
}

/// Fed text as it comes; gives what is thought, answered and called.
#[derive(Debug)]
pub struct ChannelReader {
    state: State,
    held: String,
    /// What the last message with text was; a further one of its kind begins a paragraph.
    last: Option<Kind>,
    /// A paragraph is to begin before the next text.
    paragraph: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Thought,
    Answer,
}

impl ChannelReader {
    pub fn new(opening: Opening) -> ChannelReader {
        let state = match opening {
            Opening::Begun => State::Thought,
            Opening::Open => State::Header,
            Opening::Over => State::Plain,
        };
        ChannelReader { state, held: String::new(), last: None, paragraph: false }
    }

    /// Adds to what was said; whether that was thought and no answer. `None`: it can't be told yet.
    pub fn push_and_tell(&mut self, text: &str) -> (Vec<Said>, Option<bool>) {
        let thought = matches!(self.state, State::Thought);
        let said = self.push(text);
        let told = match (&self.state, self.last) {
            _ if thought => Some(true),
            (State::Header, None) => None,
            (State::Header, Some(last)) => Some(last == Kind::Thought),
            (State::Thought, _) => Some(true),
            (State::Answer | State::Call { .. } | State::Plain, _) => Some(false),
        };
        (said, told)
    }

    pub fn push(&mut self, text: &str) -> Vec<Said> {
        self.held.push_str(text);
        let mut said = Vec::new();
        while self.step(&mut said) {}
        said
    }

    /// What is still held, at the end.
    pub fn finish(mut self) -> Vec<Said> {
        let mut said = Vec::new();
        match std::mem::replace(&mut self.state, State::Plain) {
            State::Call { name, header } => {
                let body = std::mem::take(&mut self.held);
                self.call(name, &header, &body, &mut said);
            }
            // An answer that ends after a message has nothing more to say, and one that ends within a header was cut off there.
            State::Header if self.last.is_some() || self.held.trim().is_empty() || header_may_follow(&self.held) => {}
            State::Thought => {
                let rest = self.held.len();
                self.say(Kind::Thought, rest, &mut said);
            }
            State::Header | State::Answer | State::Plain => {
                let rest = self.held.len();
                self.say(Kind::Answer, rest, &mut said);
            }
        }
        said
    }

    /// Whether there may be more to do.
    fn step(&mut self, said: &mut Vec<Said>) -> bool {
        match &self.state {
            State::Header => self.header(),
            State::Thought => self.body(Kind::Thought, said),
            State::Answer => self.body(Kind::Answer, said),
            State::Call { name, header } => {
                let Some((at, end)) = first_end(&self.held) else { return false };
                let (name, header, body) = (name.clone(), header.clone(), self.held[..at].to_owned());
                self.held.drain(..end);
                self.call(name, &header, &body, said);
                self.state = State::Header;
                true
            }
            State::Plain => {
                let all = self.held.len();
                self.say(Kind::Answer, all, said);
                false
            }
        }
    }

    /// Reads the next header, where it is whole.
    fn header(&mut self) -> bool {
        let text = self.held.trim_start();
        let rest = text.strip_prefix(START).unwrap_or(text).trim_start();
        if (rest.starts_with(CHANNEL) || rest.starts_with(RECIPIENT)) && rest.len() <= LONGEST_HEADER {
            let Some(end) = rest.find(MESSAGE) else { return false };
            self.state = state_after(&rest[..end]);
            self.paragraph = self.last.is_some();
            self.held = rest[end + MESSAGE.len()..].to_owned();
            return true;
        }
        if header_may_follow(&self.held) {
            return false;
        }
        self.state = State::Plain;
        true
    }

    /// Gives what there is of a message's body; whether it has ended.
    fn body(&mut self, kind: Kind, said: &mut Vec<Said>) -> bool {
        let Some((at, end)) = first_end(&self.held) else {
            let partial = ENDS.iter().map(|end| partial_tag(&self.held, end)).max().unwrap_or(0);
            self.say(kind, self.held.len() - partial, said);
            return false;
        };
        self.say(kind, at, said);
        self.held.drain(..end - at);
        self.state = State::Header;
        true
    }

    fn say(&mut self, kind: Kind, length: usize, said: &mut Vec<Said>) {
        let mut text: String = self.held.drain(..length).collect();
        if text.is_empty() {
            return;
        }
        if std::mem::take(&mut self.paragraph) && self.last == Some(kind) {
            text.insert_str(0, "\n\n");
        }
        self.last = Some(kind);
        said.push(if kind == Kind::Thought { Said::Thought(text) } else { Said::Answer(text) });
    }

    /// A call whose arguments are no object stays text, marks and all.
    fn call(&mut self, name: String, header: &str, body: &str, said: &mut Vec<Said>) {
        let arguments = match body.trim() {
            "" => Some(Map::new()),
            body => {
                serde_json::from_str::<Value>(body).ok().and_then(|value| if let Value::Object(map) = value { Some(map) } else { None })
            }
        };
        match arguments {
            Some(arguments) => said.push(Said::Call(ToolCall { name, arguments })),
            None => said.push(Said::Answer(format!("{header}{MESSAGE}{body}"))),
        }
    }
}

/// What the body after a header is.
fn state_after(header: &str) -> State {
    let word_after = |mark: &str| {
        let rest = &header[header.find(mark)? + mark.len()..];
        Some(rest.split(|letter: char| letter.is_whitespace() || letter == '<').next().unwrap_or_default())
    };
    let function = word_after(RECIPIENT).filter(|to| !["", "user", "assistant", "all"].contains(to));
    match (function, word_after(CHANNEL)) {
        (Some(to), _) => State::Call { name: to.strip_prefix("functions.").unwrap_or(to).to_owned(), header: header.to_owned() },
        (None, Some("analysis")) => State::Thought,
        (None, _) => State::Answer,
    }
}

/// Whether this may be the beginning of a header, with nothing before it but blanks.
fn header_may_follow(text: &str) -> bool {
    let begins = |text: &str| {
        text.len() <= LONGEST_HEADER && [CHANNEL, RECIPIENT].iter().any(|mark| mark.starts_with(text) || text.starts_with(mark))
    };
    let text = text.trim_start();
    START.starts_with(text) || begins(text) || text.strip_prefix(START).is_some_and(|rest| begins(rest.trim_start()))
}

/// Where the first end of a message begins and ends.
fn first_end(text: &str) -> Option<(usize, usize)> {
    ENDS.iter().filter_map(|end| text.find(end).map(|at| (at, at + end.len()))).min()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    /// What was thought, answered and called, however the text is cut.
    fn read(opening: Opening, text: &str, cut: usize) -> (String, String, Vec<ToolCall>) {
        let mut reader = ChannelReader::new(opening);
        let characters: Vec<char> = text.chars().collect();
        let mut said: Vec<Said> = characters.chunks(cut).flat_map(|part| reader.push(&part.iter().collect::<String>())).collect();
        said.extend(reader.finish());
        let (mut thought, mut answer, mut calls) = (String::new(), String::new(), Vec::new());
        for said in said {
            match said {
                Said::Thought(text) => thought += &text,
                Said::Answer(text) => answer += &text,
                Said::Call(call) => calls.push(call),
            }
        }
        (thought, answer, calls)
    }

    fn assert_read(opening: Opening, text: &str, thought: &str, answer: &str, cities: &[&str]) {
        let weather = |city: &&str| ToolCall {
            name: "get_weather".into(),
            arguments: json!({"city": city}).as_object().cloned().unwrap_or_default(),
        };
        for cut in [1, 2, 3, 7, 1000] {
            let calls: Vec<ToolCall> = cities.iter().map(weather).collect();
            assert_eq!(read(opening, text, cut), (thought.into(), answer.into(), calls), "{text:?} cut by {cut}");
        }
    }

    const THOUGHT: &str = "<|channel|>analysis<|message|>Hm. a < b<|end|>";

    #[test]
    fn what_is_thought_is_told_from_the_answer() {
        let answered = format!("{THOUGHT}<|start|>assistant<|channel|>final<|message|>Yes.\n");
        assert_read(Opening::Open, &answered, "Hm. a < b", "Yes.\n", &[]);
        assert_read(Opening::Open, "<|channel|>final<|message|>Yes.<|return|>", "", "Yes.", &[]);
        assert_read(Opening::Begun, "Hm.<|end|><|start|>assistant<|channel|>final<|message|>Yes.", "Hm.", "Yes.", &[]);
        assert_read(Opening::Begun, "Cut off <|en", "Cut off <|en", "", &[]);
    }

    #[test]
    fn a_call_is_read_wherever_its_recipient_stands() {
        for header in [
            "<|channel|>commentary to=functions.get_weather <|constrain|>json<|message|>",
            "<|channel|>commentary to=functions.get_weather<|message|>",
            " to=functions.get_weather<|channel|>commentary json<|message|>",
            "<|channel|>analysis to=get_weather code<|message|>",
        ] {
            let call = format!("{header}{{\"city\": \"Zürich\"}}");
            assert_read(Opening::Open, &call, "", "", &["Zürich"]);
            assert_read(Opening::Open, &format!("{THOUGHT}<|start|>assistant{call}<|call|>"), "Hm. a < b", "", &["Zürich"]);
        }
        let two = "<|channel|>commentary to=functions.get_weather json<|message|>{\"city\": \"A\"}<|call|><|start|>assistant<|channel|>commentary \
                   to=functions.get_weather json<|message|>{\"city\": \"B\"}<|call|>";
        assert_read(Opening::Open, two, "", "", &["A", "B"]);
    }

    #[test]
    fn what_is_said_before_a_call_is_answer_and_two_messages_are_two_paragraphs() {
        let spoken = format!(
            "{THOUGHT}<|start|>assistant<|channel|>analysis<|message|>So.<|end|><|start|>assistant<|channel|>commentary<|message|>I look.<|end|>\
             <|start|>assistant<|channel|>commentary to=functions.get_weather <|constrain|>json<|message|>{{\"city\": \"A\"}}"
        );
        assert_read(Opening::Open, &spoken, "Hm. a < b\n\nSo.", "I look.", &["A"]);
        let both = "<|channel|>commentary<|message|>I look.<|end|><|start|>assistant<|channel|>final<|message|>Rain.";
        assert_read(Opening::Open, both, "", "I look.\n\nRain.", &[]);
    }

    #[test]
    fn what_has_no_channel_is_the_answer_to_the_letter() {
        for text in [" \n Hello", "{\"name\": \"f\"}", "<b>", "to be", "Say <|channel|>x<|message|>"] {
            assert_read(Opening::Open, text, "", text, &[]);
        }
        // Held to JSON after what is thought.
        assert_read(Opening::Begun, "Hm.<|end|>{\"a\": 1}", "Hm.", "{\"a\": 1}", &[]);
        let long = format!("<|channel|>{}", "x".repeat(600));
        assert_read(Opening::Open, &long, "", &long, &[]);
    }

    #[test]
    fn arguments_that_are_no_object_stay_text() {
        let header = "<|channel|>commentary to=functions.get_weather json<|message|>";
        for body in ["{\"city\": ", "[1]", "Oslo"] {
            let text = format!("{header}{body}");
            assert_read(Opening::Open, &text, "", &text, &[]);
        }
    }
}
