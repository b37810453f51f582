//! What a GGUF header says of its model's tokens.

use std::collections::BTreeSet;

use stowage_placement::Reason;
use stowage_placement::gguf::{GgufError, Header, Value};

use crate::api::EngineError;

/// A token's type, as numbered in `tokenizer.ggml.token_type`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TokenType {
    Normal,
    Unknown,
    /// Special: written into a prompt only where the caller asks for special tokens.
    Control,
    /// Special, and always recognised in a text.
    UserDefined,
    Unused,
    Byte,
}

impl TokenType {
    fn from_id(id: u64) -> TokenType {
        match id {
            2 => TokenType::Unknown,
            3 => TokenType::Control,
            4 => TokenType::UserDefined,
            5 => TokenType::Unused,
            6 => TokenType::Byte,
            _ => TokenType::Normal,
        }
    }
}

/// Ends of an answer by their text, for files whose `eos` is only the end of a document. Source: `llama-vocab.cpp` of llama.cpp.
const ENDS: &[&str] = &[
    "<|eot_id|>",
    "<|eom_id|>",
    "<|im_end|>",
    "<|end|>",
    "<|return|>",
    "<|call|>",
    "<|endoftext|>",
    "<|end_of_text|>",
    "<end_of_turn>",
    "<end_of_utterance>",
    "<｜end▁of▁sentence｜>",
    "<EOT>",
    "_<EOT>",
    "[EOT]",
];

/// The tokens of a model and what they are for.
#[derive(Clone, Debug)]
pub struct Vocabulary {
    pub texts: Vec<String>,
    pub types: Vec<TokenType>,
    /// SentencePiece's; empty where the file has none.
    pub scores: Vec<f32>,
    /// Pairs for BPE, the earliest merged first; empty where the file has none.
    pub merges: Vec<(String, String)>,
    pub bos: Option<u32>,
    pub eos: Option<u32>,
    /// BERT's beginning and end of a text.
    pub cls: Option<u32>,
    pub sep: Option<u32>,
    pub unknown: Option<u32>,
    /// `None` where the file does not say.
    pub add_bos: Option<bool>,
    pub add_eos: Option<bool>,
    pub add_space_prefix: Option<bool>,
    /// Tokens that end an answer.
    pub ends: BTreeSet<u32>,
}

fn damaged(message: impl std::fmt::Display) -> EngineError {
    EngineError::new(Reason::InvalidModelFile, format!("reading the tokenizer: {message}"))
}

impl From<GgufError> for EngineError {
    fn from(error: GgufError) -> EngineError {
        EngineError::new(Reason::InvalidModelFile, error.to_string())
    }
}

impl Vocabulary {
    pub fn from_header(header: &Header) -> Result<Vocabulary, EngineError> {
        let texts = header.required("tokenizer.ggml.tokens", Header::strings)?.to_vec();
        if texts.is_empty() || u32::try_from(texts.len()).is_err() {
            return Err(damaged(format!("tokenizer.ggml.tokens holds {} tokens", texts.len())));
        }
        let types = token_types(header, texts.len())?;
        let scores = scores(header, texts.len())?;
        let merges = merges(header.strings("tokenizer.ggml.merges")?.unwrap_or_default())?;
        // An id beyond the vocabulary stands for no token: some converters write -1 as the largest number.
        let id = |key: &str| -> Result<Option<u32>, EngineError> {
            let id = header.get(&format!("tokenizer.ggml.{key}")).and_then(Value::as_u64);
            Ok(id.filter(|&id| id < texts.len() as u64).map(|id| id as u32))
        };
        let (bos, eos, unknown) = (id("bos_token_id")?, id("eos_token_id")?, id("unknown_token_id")?);
        let named_ends = [eos, id("eot_token_id")?, id("eom_token_id")?];
        let ends = ends(&texts, &types, named_ends.into_iter().flatten());
        Ok(Vocabulary {
            bos,
            eos,
            cls: id("cls_token_id")?,
            // The key is spelled so in all files.
            sep: id("seperator_token_id")?,
            unknown,
            add_bos: header.bool("tokenizer.ggml.add_bos_token")?,
            add_eos: header.bool("tokenizer.ggml.add_eos_token")?,
            add_space_prefix: header.bool("tokenizer.ggml.add_space_prefix")?,
            ends,
            texts,
            types,
            scores,
            merges,
        })
    }
}

fn token_types(header: &Header, tokens: usize) -> Result<Vec<TokenType>, EngineError> {
    let Some(value) = header.get("tokenizer.ggml.token_type") else { return Ok(vec![TokenType::Normal; tokens]) };
    let ids = value.as_array().and_then(|array| array.to_u64s());
    let ids = ids.ok_or_else(|| damaged("tokenizer.ggml.token_type is no array of whole numbers"))?;
    same_length("tokenizer.ggml.token_type", ids.len(), tokens)?;
    Ok(ids.into_iter().map(TokenType::from_id).collect())
}

fn scores(header: &Header, tokens: usize) -> Result<Vec<f32>, EngineError> {
    let Some(value) = header.get("tokenizer.ggml.scores") else { return Ok(Vec::new()) };
    let scores = value.as_array().and_then(|array| array.as_f32s());
    let scores = scores.ok_or_else(|| damaged("tokenizer.ggml.scores is no array of f32"))?;
    same_length("tokenizer.ggml.scores", scores.len(), tokens)?;
    match scores.iter().position(|score| score.is_nan()) {
        Some(i) => Err(damaged(format!("tokenizer.ggml.scores: the score of token {i} is not a number"))),
        None => Ok(scores.to_vec()),
    }
}

fn same_length(key: &str, found: usize, tokens: usize) -> Result<(), EngineError> {
    if found == tokens { Ok(()) } else { Err(damaged(format!("{key} has {found} entries for {tokens} tokens"))) }
}

/// A merge is two texts with a space between; a text may begin with a space, so the first character is no separator.
fn merges(lines: &[String]) -> Result<Vec<(String, String)>, EngineError> {
    let split = |line: &String| {
        let first = line.chars().next().map_or(0, char::len_utf8);
        let space = first + line[first..].find(' ')?;
        Some((line[..space].to_owned(), line[space + 1..].to_owned()))
    };
    let rank_of_bad = |rank: usize| damaged(format!("tokenizer.ggml.merges: entry {rank} ({:?}) is no pair of tokens", lines[rank]));
    lines.iter().enumerate().map(|(rank, line)| split(line).ok_or_else(|| rank_of_bad(rank))).collect()
}

fn ends(texts: &[String], types: &[TokenType], named: impl Iterator<Item = u32>) -> BTreeSet<u32> {
    let special = |i: usize| matches!(types[i], TokenType::Control | TokenType::UserDefined);
    let by_text = texts.iter().enumerate().filter(|(i, text)| {
        // Files exist where these have the wrong type, but `</s>` can be plain text (it is HTML).
        ENDS.contains(&text.as_str()) || (text.as_str() == "</s>" && special(*i))
    });
    let mut ends: BTreeSet<u32> = by_text.map(|(i, _)| i as u32).chain(named).collect();
    // In gpt-oss's format `<|end|>` ends a message, not the answer.
    let has = |text: &str| texts.iter().any(|t| t == text);
    if has("<|return|>") && has("<|call|>") {
        ends.retain(|&id| texts[id as usize] != "<|end|>");
    }
    ends
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_merge_is_split_at_its_first_space_but_not_before_its_first_character() {
        let lines = ["Ġ t".to_owned(), "  a".to_owned(), "é b".to_owned()];
        let pair = |a: &str, b: &str| (a.to_owned(), b.to_owned());
        assert_eq!(merges(&lines).unwrap(), [pair("Ġ", "t"), pair(" ", "a"), pair("é", "b")]);
        assert!(merges(&["ab".to_owned()]).unwrap_err().message.contains("entry 0"));
        assert!(merges(&[String::new()]).is_err());
    }

    #[test]
    fn ends_are_found_by_id_and_by_text() {
        let texts = ["a", "<|im_end|>", "</s>", "<|end|>", "x"].map(str::to_owned);
        let mut types = [TokenType::Normal; 5];
        assert_eq!(ends(&texts, &types, [4].into_iter()), BTreeSet::from([1, 3, 4]));
        types[2] = TokenType::Control;
        assert_eq!(ends(&texts, &types, std::iter::empty()), BTreeSet::from([1, 2, 3]));
    }

    #[test]
    fn the_end_of_a_message_is_no_end_of_the_answer_in_gpt_oss() {
        let texts = ["<|end|>", "<|return|>", "<|call|>"].map(str::to_owned);
        assert_eq!(ends(&texts, &[TokenType::Control; 3], std::iter::empty()), BTreeSet::from([1, 2]));
    }
}
