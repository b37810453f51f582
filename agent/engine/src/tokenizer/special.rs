//! Finds special tokens that are spelled out in a text.

use std::collections::HashMap;

use crate::tokenizer::vocabulary::{TokenType, Vocabulary};

/// A piece of a text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Piece<'a> {
    Text(&'a str),
    /// A token that no text of the model's training had: it stands between texts.
    Control(u32),
    /// A token that is read in any text.
    UserDefined(u32),
}

/// The special tokens, by the first byte of their text, the longest first.
pub struct SpecialTokens {
    by_first_byte: HashMap<u8, Vec<SpecialToken>>,
}

struct SpecialToken {
    text: String,
    id: u32,
    /// Found in any text, not only where special tokens are asked for.
    always: bool,
}

impl SpecialTokens {
    /// `spelled`: how a token's text is spelled in the texts that are cut.
    pub fn new(vocabulary: &Vocabulary, spelled: impl Fn(&str) -> String) -> SpecialTokens {
        let mut by_first_byte: HashMap<u8, Vec<SpecialToken>> = HashMap::new();
        for (id, (text, kind)) in vocabulary.texts.iter().zip(&vocabulary.types).enumerate() {
            let id = id as u32;
            // An end of an answer is special even where the file has its type wrong.
            let special = matches!(kind, TokenType::Control | TokenType::UserDefined | TokenType::Unknown) || vocabulary.ends.contains(&id);
            let text = spelled(text);
            if let (true, Some(&first)) = (special, text.as_bytes().first()) {
                let token = SpecialToken { text, id, always: *kind == TokenType::UserDefined };
                by_first_byte.entry(first).or_default().push(token);
            }
        }
        for tokens in by_first_byte.values_mut() {
            tokens.sort_by_key(|token| std::cmp::Reverse(token.text.len()));
        }
        SpecialTokens { by_first_byte }
    }

    /// Cuts a text at its special tokens: the leftmost first, of several there the longest. `parse_special`: control tokens too.
    pub fn cut<'a>(&self, text: &'a str, parse_special: bool) -> Vec<Piece<'a>> {
        let mut pieces = Vec::new();
        let (mut begin, mut at) = (0, 0);
        while at < text.len() {
            match self.find_at(text, at, parse_special) {
                Some(token) => {
                    if begin < at {
                        pieces.push(Piece::Text(&text[begin..at]));
                    }
                    pieces.push(if token.always { Piece::UserDefined(token.id) } else { Piece::Control(token.id) });
                    at += token.text.len();
                    begin = at;
                }
                None => at += 1,
            }
        }
        if begin < text.len() {
            pieces.push(Piece::Text(&text[begin..]));
        }
        pieces
    }

    fn find_at(&self, text: &str, at: usize, parse_special: bool) -> Option<&SpecialToken> {
        let rest = &text.as_bytes()[at..];
        let candidates = self.by_first_byte.get(&rest[0])?;
        candidates.iter().find(|token| (parse_special || token.always) && rest.starts_with(token.text.as_bytes()))
    }
}
