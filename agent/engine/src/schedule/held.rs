//! What an answer is held to, and from when on.

use crate::api::{EngineError, GenerateRequest};
use crate::constraint::{Grammar, Matching};
use crate::sample::Sampler;
use crate::tokenizer::Tokenizer;

/// The grammar of one answer, as far as it was said.
pub enum Held {
    /// From here on.
    Now(Box<Matching>),
    /// From when the texts of one of these have come.
    Later {
        waiting: Vec<Waiting>,
        /// Whether the answer can do without.
        may_end: bool,
    },
}

pub struct Waiting {
    /// Texts that are still to come, the next one last.
    after: Vec<Vec<u8>>,
    /// The last of what was said, no longer than a token and the next text together.
    said: Vec<u8>,
    grammar: Grammar,
}

impl Held {
    /// `None`: the answer is free.
    pub fn of(request: &GenerateRequest) -> Option<Held> {
        let Some(grammar) = &request.grammar else {
            let waiting: Vec<Waiting> = request.occasions.iter().map(|occasion| Waiting::new(&occasion.after, &occasion.grammar)).collect();
            return (!waiting.is_empty()).then_some(Held::Later { waiting, may_end: true });
        };
        match request.grammar_after.as_ref().filter(|after| !after.is_empty()) {
            None => Some(Held::Now(Box::new(grammar.begin()))),
            Some(after) => Some(Held::Later { waiting: vec![Waiting::new(std::slice::from_ref(after), grammar)], may_end: false }),
        }
    }

    /// The next token.
    ///
    /// Errors: InvalidRequest where the grammar can't be followed.
    pub fn choose(&mut self, sampler: &mut Sampler, logits: &[f32], tokenizer: &Tokenizer) -> Result<u32, EngineError> {
        match self {
            Held::Now(matching) => {
                let allowed = matching.allowed()?;
                Ok(sampler.sample_allowed(logits, |token| allowed.has(token)))
            }
            Held::Later { may_end: true, .. } => Ok(sampler.sample(logits)),
            Held::Later { may_end: false, .. } => Ok(sampler.sample_allowed(logits, |token| !tokenizer.is_end(token))),
        }
    }

    /// Notes a token that was chosen, which is no end. Whether nothing but the end can follow.
    ///
    /// Errors: InvalidRequest where the grammar can't be followed.
    pub fn take(&mut self, token: u32, tokenizer: &Tokenizer) -> Result<bool, EngineError> {
        let (waiting, may_end) = match self {
            Held::Now(matching) => return matching.take(token),
            Held::Later { waiting, may_end } => (waiting, *may_end),
        };
        let bytes = tokenizer.bytes(token);
        let Some((mut matching, rest)) = waiting.iter_mut().find_map(|waiting| Some((waiting.grammar.begin(), waiting.push(&bytes)?)))
        else {
            return Ok(false);
        };
        // What came with it in one token belongs to what is held, but for blanks.
        let mut complete = false;
        for token in tokenizer.encode(rest.trim(), false)? {
            complete = match matching.take(token) {
                // It was not come to after all, only to what looked like it.
                Err(_) if may_end => return Ok(false),
                taken => taken?,
            };
        }
        *self = Held::Now(Box::new(matching));
        Ok(complete)
    }
}

impl Waiting {
    fn new(after: &[String], grammar: &Grammar) -> Waiting {
        let after = after.iter().rev().map(|text| text.clone().into_bytes()).filter(|text| !text.is_empty());
        Waiting { after: after.collect(), said: Vec::new(), grammar: grammar.clone() }
    }

    /// What follows on the last text that is waited for, once it has come.
    fn push(&mut self, bytes: &[u8]) -> Option<String> {
        self.said.extend_from_slice(bytes);
        while let Some(next) = self.after.last() {
            let Some(at) = self.said.windows(next.len()).position(|window| window == next.as_slice()) else {
                let surplus = self.said.len().saturating_sub(next.len() - 1);
                self.said.drain(..surplus);
                return None;
            };
            self.said.drain(..at + next.len());
            self.after.pop();
        }
        Some(String::from_utf8_lossy(&std::mem::take(&mut self.said)).into_owned())
    }
}
