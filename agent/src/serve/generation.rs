//! One generation under way, as both APIs read it: what is thought, text, tool calls, then how it ended.

use std::collections::VecDeque;
use std::sync::Arc;

use stowage_engine::{Finish, GenerateEvent, TokenLogprob};
use tokio::sync::mpsc;

use super::account::Account;
use super::channels::ChannelReader;
use super::error::{Fault, FaultKind};
use super::metrics::Metrics;
use super::thinking::{Opening, Tags};
use super::thought_reader::{Said, ThoughtReader};
use super::tool_calls::{Piece, ToolCall, ToolCallReader};

/// What comes out of a generation, in order; one of the last two ends it.
#[derive(Debug)]
pub enum Output {
    /// What the model thinks before it answers.
    Thought {
        text: String,
        logprobs: Vec<TokenLogprob>,
    },
    Text {
        text: String,
        logprobs: Vec<TokenLogprob>,
    },
    ToolCall(ToolCall),
    Done(Finish),
    Failed(Fault),
}

/// All that came out.
#[derive(Debug)]
pub struct Whole {
    pub thought: String,
    /// Of the tokens of `thought`.
    pub thought_logprobs: Vec<TokenLogprob>,
    pub text: String,
    pub logprobs: Vec<TokenLogprob>,
    pub tool_calls: Vec<ToolCall>,
    pub finish: Finish,
}

/// What is looked for in what a model says.
#[derive(Clone, Debug, Default)]
pub struct Reading {
    pub thinking: Option<(&'static Tags, Opening)>,
    /// The names of the tools that it was told of. None: nothing is taken for a call.
    pub tools: Vec<String>,
}

/// Dropping it ends the generation within a step of the engine.
pub struct Generation {
    events: mpsc::Receiver<GenerateEvent>,
    account: Account,
    thoughts: Option<Thoughts>,
    /// Present where the request brought tools.
    calls: Option<ToolCallReader>,
    /// Not given yet.
    logprobs: Vec<TokenLogprob>,
    pending: VecDeque<Output>,
    _counted: Counted,
}

/// Tells what is thought from what is answered.
enum Thoughts {
    Tagged(ThoughtReader),
    Channels(ChannelReader),
}

impl Thoughts {
    fn new((tags, opening): (&'static Tags, Opening)) -> Thoughts {
        if tags.channels { Thoughts::Channels(ChannelReader::new(opening)) } else { Thoughts::Tagged(ThoughtReader::new(tags, opening)) }
    }

    fn push_and_tell(&mut self, text: &str) -> (Vec<Said>, Option<bool>) {
        match self {
            Thoughts::Tagged(reader) => reader.push_and_tell(text),
            Thoughts::Channels(reader) => reader.push_and_tell(text),
        }
    }

    fn finish(self) -> Vec<Said> {
        match self {
            Thoughts::Tagged(reader) => reader.finish(),
            Thoughts::Channels(reader) => reader.finish(),
        }
    }
}

/// Counts a generation for as long as it lives.
struct Counted(Arc<Metrics>);

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.generation_ended();
    }
}

impl Generation {
    pub fn new(events: mpsc::Receiver<GenerateEvent>, account: Account, metrics: Arc<Metrics>, reading: &Reading) -> Generation {
        metrics.generation_began();
        let thoughts = reading.thinking.map(Thoughts::new);
        let calls = (!reading.tools.is_empty()).then(|| ToolCallReader::new(reading.tools.clone()));
        Generation { events, account, thoughts, calls, logprobs: Vec::new(), pending: VecDeque::new(), _counted: Counted(metrics) }
    }

    pub async fn next(&mut self) -> Output {
        loop {
            if let Some(output) = self.pending.pop_front() {
                return output;
            }
            match self.events.recv().await {
                Some(GenerateEvent::Text { text, logprobs }) => {
                    self.account.text_arrived();
                    self.read(text, logprobs);
                }
                Some(GenerateEvent::Done(finish)) => {
                    self.account.generated(&finish);
                    self.read_rest();
                    self.pending.push_back(Output::Done(finish));
                }
                Some(GenerateEvent::Failed(error)) => return self.failed(error.into()),
                None => return self.failed(Fault::new(FaultKind::Failed, "the generation ended without a result")),
            }
        }
    }

    fn failed(&self, fault: Fault) -> Output {
        self.account.failed(&fault);
        Output::Failed(fault)
    }

    /// Text may be held back until it is clear what it is; so are its log probabilities until it is clear whether it is thought.
    fn read(&mut self, text: String, logprobs: Vec<TokenLogprob>) {
        let (said, thought) = match &mut self.thoughts {
            Some(reader) => reader.push_and_tell(&text),
            None => (vec![Said::Answer(text)], Some(false)),
        };
        self.logprobs.extend(logprobs);
        let queued = self.pending.len();
        said.into_iter().for_each(|said| self.sort(said));
        if let Some(thought) = thought {
            self.give_logprobs(queued, thought);
        }
    }

    /// With the output that is at `place`, where it is of their kind.
    fn give_logprobs(&mut self, place: usize, thought: bool) {
        let all = std::mem::take(&mut self.logprobs);
        match self.pending.get_mut(place) {
            _ if all.is_empty() => {}
            Some(Output::Thought { logprobs, .. }) if thought => *logprobs = all,
            Some(Output::Text { logprobs, .. }) if !thought => *logprobs = all,
            _ => {
                let (text, logprobs) = (String::new(), all);
                let output = if thought { Output::Thought { text, logprobs } } else { Output::Text { text, logprobs } };
                self.pending.insert(place, output);
            }
        }
    }

    fn sort(&mut self, said: Said) {
        match (said, &mut self.calls) {
            (Said::Call(call), _) => self.pending.push_back(Output::ToolCall(call)),
            (Said::Thought(text), _) => self.pending.push_back(Output::Thought { text, logprobs: Vec::new() }),
            (Said::Answer(text), None) => self.pending.push_back(Output::Text { text, logprobs: Vec::new() }),
            (Said::Answer(text), Some(calls)) => self.pending.extend(calls.push(&text).into_iter().map(Output::from)),
        }
    }

    /// What was held back is what it seems.
    fn read_rest(&mut self) {
        let said = self.thoughts.take().map(Thoughts::finish).unwrap_or_default();
        let queued = self.pending.len();
        said.into_iter().for_each(|said| self.sort(said));
        self.give_logprobs(queued, false);
        let rest = self.calls.take().map(ToolCallReader::finish).unwrap_or_default();
        self.pending.extend(rest.into_iter().map(Output::from));
    }

    /// Waits for the end.
    pub async fn whole(mut self) -> Result<Whole, Fault> {
        let (mut thought, mut thought_logprobs) = (String::new(), Vec::new());
        let (mut text, mut logprobs, mut tool_calls) = (String::new(), Vec::new(), Vec::new());
        loop {
            match self.next().await {
                Output::Thought { text: more, logprobs: those } => {
                    thought.push_str(&more);
                    thought_logprobs.extend(those);
                }
                Output::Text { text: more, logprobs: those } => {
                    text.push_str(&more);
                    logprobs.extend(those);
                }
                Output::ToolCall(call) => tool_calls.push(call),
                Output::Done(finish) => return Ok(Whole { thought, thought_logprobs, text, logprobs, tool_calls, finish }),
                Output::Failed(fault) => return Err(fault),
            }
        }
    }
}

impl From<Piece> for Output {
    fn from(piece: Piece) -> Output {
        match piece {
            Piece::Text(text) => Output::Text { text, logprobs: Vec::new() },
            Piece::Call(call) => Output::ToolCall(call),
        }
    }
}
