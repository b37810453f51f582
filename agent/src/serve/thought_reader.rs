//! Tells what a model thinks from what it answers, as the text comes.

use super::thinking::{Opening, Tags};
use super::tool_calls::{ToolCall, partial_tag};

/// A piece of what was said.
#[derive(Clone, Debug, PartialEq)]
pub enum Said {
    Thought(String),
    Answer(String),
    /// Which only what is written in channels tells so early.
    Call(ToolCall),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// Nothing but blanks has come.
    Start,
    Thinking,
    /// Between the thinking's end and the answer's first word.
    Between,
    Answer,
}

/// Fed text as it comes. Blanks around what is thought are dropped; an answer before which nothing was thought is given to the letter.
#[derive(Debug)]
pub struct ThoughtReader {
    tags: &'static Tags,
    state: State,
    held: String,
    /// Something was thought.
    thought: bool,
}

impl ThoughtReader {
    pub fn new(tags: &'static Tags, opening: Opening) -> ThoughtReader {
        let state = match opening {
            Opening::Begun => State::Thinking,
            Opening::Open => State::Start,
            Opening::Over => State::Answer,
        };
        ThoughtReader { tags, state, held: String::new(), thought: false }
    }

    /// Adds to what was said; whether that was thought and no answer. `None`: it can't be told yet.
    pub fn push_and_tell(&mut self, text: &str) -> (Vec<Said>, Option<bool>) {
        let before = self.state;
        let said = self.push(text);
        let thought = match (before, self.state) {
            (_, State::Start) => None,
            (State::Thinking, _) | (_, State::Thinking | State::Between) => Some(true),
            (_, State::Answer) => Some(false),
        };
        (said, thought)
    }

    pub fn push(&mut self, text: &str) -> Vec<Said> {
        self.held.push_str(text);
        let mut said = Vec::new();
        loop {
            let before = self.state;
            match before {
                State::Start => self.start(),
                State::Thinking => self.think(&mut said),
                State::Between => self.between(),
                State::Answer => self.answer(&mut said),
            }
            if self.state == before {
                return said;
            }
        }
    }

    /// What is still held, at the end.
    pub fn finish(self) -> Vec<Said> {
        match self.state {
            _ if self.held.is_empty() => Vec::new(),
            State::Thinking => vec![Said::Thought(self.held)],
            State::Start | State::Between | State::Answer => vec![Said::Answer(self.held)],
        }
    }

    fn start(&mut self) {
        let text = self.held.trim_start();
        if let Some(rest) = text.strip_prefix(self.tags.open) {
            self.held = rest.to_owned();
            self.state = State::Thinking;
        } else if !self.tags.open.starts_with(text) {
            self.state = State::Answer;
        }
    }

    fn think(&mut self, said: &mut Vec<Said>) {
        let end = self.held.find(self.tags.close);
        // A blank may be the last before the end.
        let safe = end.unwrap_or_else(|| self.held.len() - partial_tag(&self.held, self.tags.close));
        let safe = self.held[..safe].trim_end().len();
        let text: String = self.held.drain(..safe).collect();
        let text = if self.thought { text.as_str() } else { text.trim_start() };
        if !text.is_empty() {
            self.thought = true;
            said.push(Said::Thought(text.to_owned()));
        }
        if let Some(end) = end {
            self.held.drain(..end - safe + self.tags.close.len());
            self.state = State::Between;
        }
    }

    fn between(&mut self) {
        self.held = self.held.trim_start().to_owned();
        if !self.held.is_empty() {
            self.state = State::Answer;
        }
    }

    fn answer(&mut self, said: &mut Vec<Said>) {
        if !self.held.is_empty() {
            said.push(Said::Answer(std::mem::take(&mut self.held)));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::thinking::Ability;
    use super::*;

    /// What was thought and what was answered, however the text is cut.
    fn read(template: &str, opening: Opening, text: &str, cut: usize) -> (String, String) {
        let mut reader = ThoughtReader::new(Ability::of(template).unwrap().tags, opening);
        let characters: Vec<char> = text.chars().collect();
        let mut said: Vec<Said> = characters.chunks(cut).flat_map(|part| reader.push(&part.iter().collect::<String>())).collect();
        said.extend(reader.finish());
        let (mut thought, mut answer) = (String::new(), String::new());
        for piece in said {
            match piece {
                Said::Thought(text) => thought += &text,
                Said::Answer(text) => answer += &text,
                Said::Call(call) => panic!("{call:?}"),
            }
        }
        (thought, answer)
    }

    fn assert_read(template: &str, opening: Opening, text: &str, expected: (&str, &str)) {
        for cut in [1, 2, 3, 7, 1000] {
            let (thought, answer) = read(template, opening, text, cut);
            assert_eq!((thought.as_str(), answer.as_str()), expected, "{text:?} cut by {cut}");
        }
    }

    #[test]
    fn what_is_thought_is_told_from_the_answer_however_the_text_is_cut() {
        let think = "</think>";
        assert_read(think, Opening::Open, "<think>\nHm. Or\n\nnot?\n</think>\n\nYes.\n", ("Hm. Or\n\nnot?", "Yes.\n"));
        assert_read(think, Opening::Open, "\n<think>a < b </thin</think>c", ("a < b </thin", "c"));
        assert_read(think, Opening::Begun, "Hm.\n</think>\nYes. <think> is a tag", ("Hm.", "Yes. <think> is a tag"));
        assert_read(think, Opening::Begun, "Cut off </th", ("Cut off </th", ""));
        assert_read(think, Opening::Open, "<think></think>", ("", ""));
        assert_read("[/THINK]", Opening::Open, "[THINK]Hm.[/THINK]Yes.", ("Hm.", "Yes."));
    }

    #[test]
    fn an_answer_before_which_nothing_is_thought_is_given_to_the_letter() {
        for text in [" \n Hello", "<thin", "<b>", "Say <think>x</think>", ""] {
            assert_read("</think>", Opening::Open, text, ("", text));
            assert_read("</think>", Opening::Over, text, ("", text));
        }
    }
}
