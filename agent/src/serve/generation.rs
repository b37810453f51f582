//! One generation under way, as both APIs read it: text, tool calls, then how it ended.

use std::collections::VecDeque;
use std::sync::Arc;

use stowage_engine::{Finish, GenerateEvent, TokenLogprob};
use tokio::sync::mpsc;

use super::account::Account;
use super::error::{Fault, FaultKind};
use super::metrics::Metrics;
use super::tool_calls::{Piece, ToolCall, ToolCallReader};

/// What comes out of a generation, in order; one of the last two ends it.
#[derive(Debug)]
pub enum Output {
    Text { text: String, logprobs: Vec<TokenLogprob> },
    ToolCall(ToolCall),
    Done(Finish),
    Failed(Fault),
}

/// All that came out.
#[derive(Debug)]
pub struct Whole {
    pub text: String,
    pub logprobs: Vec<TokenLogprob>,
    pub tool_calls: Vec<ToolCall>,
    pub finish: Finish,
}

/// Dropping it ends the generation within a step of the engine.
pub struct Generation {
    events: mpsc::Receiver<GenerateEvent>,
    account: Account,
    /// Present where the request brought tools.
    reader: Option<ToolCallReader>,
    pending: VecDeque<Output>,
    _counted: Counted,
}

/// Counts a generation for as long as it lives.
struct Counted(Arc<Metrics>);

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.generation_ended();
    }
}

impl Generation {
    pub fn new(events: mpsc::Receiver<GenerateEvent>, account: Account, metrics: Arc<Metrics>, with_tools: bool) -> Generation {
        metrics.generation_began();
        let reader = with_tools.then(ToolCallReader::default);
        Generation { events, account, reader, pending: VecDeque::new(), _counted: Counted(metrics) }
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
                    let rest = self.reader.take().map(ToolCallReader::finish).unwrap_or_default();
                    self.pending.extend(rest.into_iter().map(Output::from));
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

    /// With tools, text may be held back until it is clear whether it is a call; its log probabilities are not.
    fn read(&mut self, text: String, logprobs: Vec<TokenLogprob>) {
        let Some(reader) = &mut self.reader else {
            self.pending.push_back(Output::Text { text, logprobs });
            return;
        };
        let pieces = reader.push(&text);
        if !logprobs.is_empty() {
            self.pending.push_back(Output::Text { text: String::new(), logprobs });
        }
        self.pending.extend(pieces.into_iter().map(Output::from));
    }

    /// Waits for the end.
    pub async fn whole(mut self) -> Result<Whole, Fault> {
        let (mut text, mut logprobs, mut tool_calls) = (String::new(), Vec::new(), Vec::new());
        loop {
            match self.next().await {
                Output::Text { text: more, logprobs: those } => {
                    text.push_str(&more);
                    logprobs.extend(those);
                }
                Output::ToolCall(call) => tool_calls.push(call),
                Output::Done(finish) => return Ok(Whole { text, logprobs, tool_calls, finish }),
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
