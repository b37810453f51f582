//! A vocabulary as llguidance walks it: a trie of the bytes of all tokens that stand for text.

use std::sync::Arc;

use stowage_placement::Reason;
use toktrie::{ApproximateTokEnv, INVALID_TOKEN, SimpleVob, TokEnv, TokRxInfo, TokTrie};

use crate::api::EngineError;
use crate::tokenizer::{TokenType, Tokenizer};

/// Ids that a node of the trie has room for.
const MOST_TOKENS: usize = (1 << 24) - 1;
/// Bytes of a token: how deep a trie may be.
const LONGEST_TOKEN: usize = 1 << 10;

pub fn unusable(why: impl std::fmt::Display) -> EngineError {
    EngineError::new(Reason::EngineCannotRun, format!("preparing the vocabulary for constrained answers: {why}"))
}

/// The bytes of each token. None for control tokens and others that no text has: a constrained answer never has them, whatever they are spelled like.
/// Text that looks like one is said with the tokens of its letters.
pub fn said(tokenizer: &Tokenizer) -> Vec<Vec<u8>> {
    let vocabulary = tokenizer.vocabulary();
    let is_text = |id: u32, kind: TokenType| matches!(kind, TokenType::Normal | TokenType::Byte) && !tokenizer.is_end(id);
    let bytes = |(id, kind): (usize, &TokenType)| {
        let id = id as u32;
        if is_text(id, *kind) { tokenizer.bytes(id).into_owned() } else { Vec::new() }
    };
    vocabulary.types.iter().enumerate().map(bytes).collect()
}

/// The tokens as llguidance takes them, and those that an answer may have: text and ends.
pub fn environment(tokens: &[Vec<u8>], ends: &[u32]) -> Result<(TokEnv, SimpleVob), EngineError> {
    if tokens.len() > MOST_TOKENS {
        return Err(unusable(format!("it has {} tokens, of at most {MOST_TOKENS}", tokens.len())));
    }
    // The byte 0xff, which no text has, marks llguidance's own special tokens. A token too long for the trie can be said with shorter ones.
    let usable = |token: &Vec<u8>| !token.starts_with(&[TokTrie::SPECIAL_TOKEN_MARKER]) && token.len() <= LONGEST_TOKEN;
    let words: Vec<Vec<u8>> = tokens.iter().map(|token| if usable(token) { token.clone() } else { Vec::new() }).collect();
    let info = TokRxInfo::new(words.len() as u32, ends.first().copied().unwrap_or(INVALID_TOKEN));
    let mut trie = TokTrie::from(&info, &words);
    if !ends.is_empty() {
        trie = trie.with_eos_tokens(ends);
    }
    let mut sayable = trie.alloc_token_set();
    let text = words.iter().enumerate().filter(|(_, word)| !word.is_empty()).map(|(id, _)| id as u32);
    text.chain(ends.iter().copied()).for_each(|id| sayable.allow_token(id));
    // It says of itself that its way of cutting a text into tokens is not the model's own: no token is forced, the model chooses among those that fit.
    Ok((Arc::new(ApproximateTokEnv::new(trie)), sayable))
}
