//! What one step computes: tokens, each with its place in a sequence, and the rows whose logits are wanted.

/// One token and where it stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TokenAt {
    pub token: u32,
    /// The sequence, from 0 to [`crate::model::LoadedModel::slots`].
    pub slot: u32,
    /// Place in the sequence, from 0. All places before it are in the cache, or in this batch before it.
    pub position: u32,
}

/// At most `num_batch` tokens. The tokens of one slot stand together, in order of position.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Batch {
    pub tokens: Vec<TokenAt>,
    /// Rows (indices into `tokens`) whose logits the step returns, in this order.
    pub wanted: Vec<u32>,
}

impl Batch {
    pub fn clear(&mut self) {
        self.tokens.clear();
        self.wanted.clear();
    }

    pub fn push(&mut self, token: u32, slot: u32, position: u32) {
        self.tokens.push(TokenAt { token, slot, position });
    }

    /// The same, and the logits after this token are wanted.
    pub fn push_wanted(&mut self, token: u32, slot: u32, position: u32) {
        self.wanted.push(self.tokens.len() as u32);
        self.push(token, slot, position);
    }

    /// A part of one sequence, in order; the logits after its last token are wanted where `want_last` says so.
    pub fn push_run(&mut self, tokens: &[u32], slot: u32, first_position: u32, want_last: bool) {
        for (i, &token) in tokens.iter().enumerate() {
            self.push(token, slot, first_position + i as u32);
        }
        if want_last && !tokens.is_empty() {
            self.wanted.push(self.tokens.len() as u32 - 1);
        }
    }
}
