//! BERT's WordPiece by the `tokenizers` crate, from the vocabulary as GGUF files have it.
//!
//! BERT marks what goes on within a word (`##ing`), GGUF files mark where one begins (`▁play`): `BertModel` in the converter of llama.cpp rewrites each.

use tokenizers::Tokenizer;
use tokenizers::models::bpe::Vocab;
use tokenizers::models::wordpiece::WordPiece;
use tokenizers::normalizers::BertNormalizer;
use tokenizers::pre_tokenizers::bert::BertPreTokenizer;

use crate::tokenizer::vocabulary::{TokenType, Vocabulary};

/// What marks the beginning of a word: U+2581, lower one eighth block.
pub const WORD: &str = "▁";
const WITHIN_WORD: &str = "##";
/// Longer words are unknown, as in BERT's own code.
const LONGEST_WORD: usize = 100;

/// A tokenizer for text between special tokens. `lowercase`: upper case and accents are lost, as in BERT's uncased models.
pub fn build(vocabulary: &Vocabulary, lowercase: bool) -> tokenizers::Result<Tokenizer> {
    let mut ids = Vocab::with_capacity(vocabulary.texts.len());
    for (id, (text, kind)) in vocabulary.texts.iter().zip(&vocabulary.types).enumerate() {
        ids.entry(as_bert_writes(text, *kind)).or_insert(id as u32);
    }
    let unknown = vocabulary.unknown.map_or("[UNK]", |id| &vocabulary.texts[id as usize]);
    let model = WordPiece::builder()
        .vocab(ids)
        .unk_token(unknown.to_owned())
        .continuing_subword_prefix(WITHIN_WORD.to_owned())
        .max_input_chars_per_word(LONGEST_WORD)
        .build()?;
    let mut tokenizer = Tokenizer::new(model);
    tokenizer.with_normalizer(Some(BertNormalizer::new(true, true, None, lowercase)))?;
    tokenizer.with_pre_tokenizer(Some(BertPreTokenizer));
    Ok(tokenizer)
}

fn as_bert_writes(text: &str, kind: TokenType) -> String {
    // Older converters rewrote nothing in brackets, whatever its type.
    let in_brackets = text.len() > 2 && text.starts_with('[') && text.ends_with(']');
    match text.strip_prefix(WORD) {
        Some(word) => word.to_owned(),
        None if kind == TokenType::Control || in_brackets => text.to_owned(),
        None => format!("{WITHIN_WORD}{text}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn beginnings_of_words_ends_of_words_and_special_tokens_are_told_apart() {
        let written = |text, kind| as_bert_writes(text, kind);
        assert_eq!(written("▁play", TokenType::Normal), "play");
        assert_eq!(written("ing", TokenType::Normal), "##ing");
        assert_eq!(written("[CLS]", TokenType::Control), "[CLS]");
        assert_eq!(written("[unused1]", TokenType::Normal), "[unused1]");
        assert_eq!(written("]", TokenType::Normal), "##]");
    }
}
