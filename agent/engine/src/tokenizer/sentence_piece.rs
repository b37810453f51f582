//! SentencePiece's BPE by the `tokenizers` crate, which wants merges where SentencePiece has scores.
//!
//! SentencePiece joins the two neighbours whose joined piece has the best score. That is BPE with every way to split a piece into two pieces as a merge,
//! ranked by the piece's score; `transformers` converts `tokenizer.model` files the same way (`generate_merges` in `convert_slow_tokenizer.py`).

use tokenizers::Tokenizer;
use tokenizers::models::bpe::{BPE, Vocab};
use tokenizers::normalizers::Replace;

use crate::tokenizer::vocabulary::{TokenType, Vocabulary};

/// SentencePiece's space: U+2581, lower one eighth block.
pub const SPACE: &str = "▁";

/// Longest piece for which splits are looked up; real ones have at most a few dozen characters, and the work grows with the square.
const LONGEST_PIECE: usize = 256;

/// A tokenizer for text between special tokens.
pub fn build(vocabulary: &Vocabulary, ids: Vocab) -> tokenizers::Result<Tokenizer> {
    let merges = merges(vocabulary, &ids);
    let mut builder = BPE::builder().vocab_and_merges(ids, merges).byte_fallback(true).fuse_unk(true);
    if let Some(unknown) = vocabulary.unknown {
        builder = builder.unk_token(vocabulary.texts[unknown as usize].clone());
    }
    let mut tokenizer = Tokenizer::new(builder.build()?);
    tokenizer.with_normalizer(Some(Replace::new(" ", SPACE)?))?;
    Ok(tokenizer)
}

fn merges(vocabulary: &Vocabulary, ids: &Vocab) -> Vec<(String, String)> {
    struct Merge<'a> {
        score: f32,
        /// Characters of both sides.
        lengths: (usize, usize),
        left: &'a str,
        right: &'a str,
    }
    let mergeable = |i: usize| matches!(vocabulary.types[i], TokenType::Normal | TokenType::UserDefined);
    let mut merges = Vec::new();
    for (i, text) in vocabulary.texts.iter().enumerate() {
        if !mergeable(i) || text.len() > LONGEST_PIECE {
            continue;
        }
        let length = text.chars().count();
        for (count, (split, _)) in text.char_indices().enumerate().skip(1) {
            let (left, right) = text.split_at(split);
            if ids.contains_key(left) && ids.contains_key(right) {
                merges.push(Merge { score: vocabulary.scores[i], lengths: (count, length - count), left, right });
            }
        }
    }
    merges.sort_by(|a, b| b.score.total_cmp(&a.score).then(b.lengths.cmp(&a.lengths)));
    merges.into_iter().map(|merge| (merge.left.to_owned(), merge.right.to_owned())).collect()
}

/// The byte that a byte token such as `<0x0A>` stands for.
pub fn byte_of(text: &str) -> Option<u8> {
    let hex = text.strip_prefix("<0x")?.strip_suffix('>')?;
    if hex.len() == 2 { u8::from_str_radix(hex, 16).ok() } else { None }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_byte_token_is_read() {
        assert_eq!([byte_of("<0x0A>"), byte_of("<0xff>"), byte_of("<0x1>"), byte_of("a")], [Some(10), Some(255), None, None]);
    }
}
