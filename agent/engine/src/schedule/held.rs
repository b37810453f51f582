//! What an answer is held to, and from when on.

use crate::api::EngineError;
use crate::constraint::{Grammar, Matching};
use crate::sample::Sampler;
use crate::tokenizer::Tokenizer;

/// The grammar of one answer, as far as it was said.
pub struct Held {
    matching: Matching,
    /// Until its text has come, anything may be said but the end.
    waiting: Option<Waiting>,
}

struct Waiting {
    after: Vec<u8>,
    /// The last of what was said, no longer than a token and `after` together.
    said: Vec<u8>,
}

impl Held {
    /// `after`: the text that what is held follows on. `None` or empty: the whole answer is held.
    pub fn new(grammar: &Grammar, after: Option<String>) -> Held {
        let after = after.filter(|after| !after.is_empty());
        Held { matching: grammar.begin(), waiting: after.map(|after| Waiting { after: after.into_bytes(), said: Vec::new() }) }
    }

    /// The next token.
    ///
    /// Errors: InvalidRequest where the grammar can't be followed.
    pub fn choose(&mut self, sampler: &mut Sampler, logits: &[f32], tokenizer: &Tokenizer) -> Result<u32, EngineError> {
        if self.waiting.is_some() {
            return Ok(sampler.sample_allowed(logits, |token| !tokenizer.is_end(token)));
        }
        let allowed = self.matching.allowed()?;
        Ok(sampler.sample_allowed(logits, |token| allowed.has(token)))
    }

    /// Notes a token that was chosen, which is no end. Whether nothing but the end can follow.
    ///
    /// Errors: InvalidRequest where the grammar can't be followed.
    pub fn take(&mut self, token: u32, tokenizer: &Tokenizer) -> Result<bool, EngineError> {
        let Some(waiting) = &mut self.waiting else { return self.matching.take(token) };
        let Some(rest) = waiting.push(&tokenizer.bytes(token)) else { return Ok(false) };
        self.waiting = None;
        // What came with it in one token belongs to the answer, but for blanks.
        let mut complete = false;
        for token in tokenizer.encode(rest.trim(), false)? {
            complete = self.matching.take(token)?;
        }
        Ok(complete)
    }
}

impl Waiting {
    /// What follows on the text that is waited for, once it has come.
    fn push(&mut self, bytes: &[u8]) -> Option<String> {
        self.said.extend_from_slice(bytes);
        let at = self.said.windows(self.after.len()).position(|window| window == self.after);
        if let Some(at) = at {
            return Some(String::from_utf8_lossy(&self.said[at + self.after.len()..]).into_owned());
        }
        let surplus = self.said.len().saturating_sub(self.after.len() - 1);
        self.said.drain(..surplus);
        None
    }
}
