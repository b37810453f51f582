//! Text to token ids and back, as the model's GGUF file says.
//!
//! The merging itself is the `tokenizers` crate's. What is done here is what a GGUF file needs around it: the crate reads `tokenizer.json`, and its own
//! reader of GGUF takes an unknown pre-tokenizer for GPT-2's without a word.

mod byte_alphabet;
mod pre_tokenizer;
mod sentence_piece;
mod special;
mod vocabulary;
mod word_piece;

use std::borrow::Cow;

use stowage_placement::Reason;
use stowage_placement::gguf::Header;
use tokenizers::models::bpe::{BPE, Vocab};
use tokenizers::normalizers::NFC;
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::pre_tokenizers::sequence::Sequence;
use tokenizers::pre_tokenizers::split::{Split, SplitPattern};
use tokenizers::{PreTokenizerWrapper, SplitDelimiterBehavior};

use crate::api::EngineError;
use special::{Piece, SpecialTokens};
pub use vocabulary::{TokenType, Vocabulary};

/// A model's tokenizer.
pub struct Tokenizer {
    vocabulary: Vocabulary,
    special: SpecialTokens,
    /// Reads text in which no special token is.
    text: tokenizers::Tokenizer,
    writing: Writing,
    add_bos: bool,
    add_eos: bool,
}

/// How a token's text stands for bytes.
enum Writing {
    /// In GPT-2's alphabet.
    ByteLevel(Box<byte_alphabet::Bytes>),
    /// As UTF-8 with `▁` for a space, and tokens for single bytes. `space_before`: one is put before the text.
    SentencePiece { space_before: bool },
    /// As UTF-8 with `▁` where a word begins.
    WordPiece,
}

impl Writing {
    /// A text as it is read: to SentencePiece, its own sign for a space is a space.
    fn read<'a>(&self, text: &'a str) -> Cow<'a, str> {
        match self {
            Writing::SentencePiece { .. } if text.contains(sentence_piece::SPACE) => Cow::Owned(text.replace(sentence_piece::SPACE, " ")),
            _ => Cow::Borrowed(text),
        }
    }
}

impl Tokenizer {
    /// The tokenizer of a file whose header was read with `Keep::All`.
    ///
    /// Errors: EngineCannotRun where the kind of tokenizer or its pre-tokenizer is not known, InvalidModelFile where its parts don't fit together.
    pub fn from_header(header: &Header) -> Result<Tokenizer, EngineError> {
        let model = header.required("tokenizer.ggml.model", Header::string)?;
        let pre = header.string("tokenizer.ggml.pre")?.unwrap_or("default");
        match model {
            "gpt2" => Tokenizer::byte_level(Vocabulary::from_header(header)?, pre),
            "llama" => Tokenizer::sentence_piece(Vocabulary::from_header(header)?),
            "bert" => {
                Tokenizer::word_piece(Vocabulary::from_header(header)?, header.bool("tokenizer.ggml.normalizer.lowercase")?.unwrap_or(true))
            }
            other => Err(EngineError::new(
                Reason::EngineCannotRun,
                format!(
                    "the tokenizer `{other}` (tokenizer.ggml.model) is not supported; supported are gpt2 (byte-level BPE), llama (SentencePiece) and bert \
                     (WordPiece)"
                ),
            )),
        }
    }

    fn byte_level(mut vocabulary: Vocabulary, pre: &str) -> Result<Tokenizer, EngineError> {
        let pre = pre_tokenizer::by_name(pre).map_err(|message| EngineError::new(Reason::EngineCannotRun, message))?;
        let ids = ids(&vocabulary);
        // A merge into or out of what is no token can never be used, and the crate's builder counts on there being none.
        let merges = std::mem::take(&mut vocabulary.merges);
        let usable = |(a, b): &(String, String)| ids.contains_key(a) && ids.contains_key(b) && ids.contains_key(&format!("{a}{b}"));
        let merges: Vec<_> = merges.into_iter().filter(usable).collect();
        if merges.is_empty() {
            return Err(EngineError::new(
                Reason::InvalidModelFile,
                "reading the tokenizer: tokenizer.ggml.merges holds no merge of two tokens",
            ));
        }
        let build = || -> tokenizers::Result<tokenizers::Tokenizer> {
            let model = BPE::builder().vocab_and_merges(ids, merges).ignore_merges(pre.ignore_merges).build()?;
            let mut steps: Vec<PreTokenizerWrapper> = Vec::new();
            for expression in pre.expressions {
                let pattern = SplitPattern::Regex((*expression).into());
                steps.push(Split::new(pattern, SplitDelimiterBehavior::Isolated, false)?.into());
            }
            steps.push(ByteLevel::new(false, false, false).into());
            let mut tokenizer = tokenizers::Tokenizer::new(model);
            tokenizer.with_pre_tokenizer(Some(Sequence::new(steps)));
            if pre.composes {
                tokenizer.with_normalizer(Some(NFC))?;
            }
            Ok(tokenizer)
        };
        let text = build().map_err(not_built)?;
        let add_bos = pre.add_bos;
        Ok(Tokenizer::new(vocabulary, text, Writing::ByteLevel(Box::new(byte_alphabet::Bytes::new())), add_bos))
    }

    fn sentence_piece(vocabulary: Vocabulary) -> Result<Tokenizer, EngineError> {
        if vocabulary.scores.is_empty() {
            return Err(EngineError::new(
                Reason::InvalidModelFile,
                "reading the tokenizer: tokenizer.ggml.scores is missing, which SentencePiece needs",
            ));
        }
        let space_before = vocabulary.add_space_prefix.unwrap_or(true);
        let text = sentence_piece::build(&vocabulary, ids(&vocabulary)).map_err(not_built)?;
        Ok(Tokenizer::new(vocabulary, text, Writing::SentencePiece { space_before }, true))
    }

    fn word_piece(mut vocabulary: Vocabulary, lowercase: bool) -> Result<Tokenizer, EngineError> {
        // BERT was trained on texts between [CLS] and [SEP].
        vocabulary.bos = vocabulary.cls.or(vocabulary.bos);
        vocabulary.eos = vocabulary.sep.or(vocabulary.eos);
        vocabulary.add_eos.get_or_insert(true);
        let text = word_piece::build(&vocabulary, lowercase).map_err(not_built)?;
        Ok(Tokenizer::new(vocabulary, text, Writing::WordPiece, true))
    }

    fn new(vocabulary: Vocabulary, text: tokenizers::Tokenizer, writing: Writing, add_bos: bool) -> Tokenizer {
        Tokenizer {
            special: SpecialTokens::new(&vocabulary, |text| writing.read(text).into_owned()),
            add_bos: vocabulary.add_bos.unwrap_or(add_bos) && vocabulary.bos.is_some(),
            add_eos: vocabulary.add_eos.unwrap_or(false) && vocabulary.eos.is_some(),
            vocabulary,
            text,
            writing,
        }
    }

    /// The ids of a text. `parse_special`: control tokens spelled out in it are taken as such; text from strangers is read without.
    pub fn encode(&self, text: &str, parse_special: bool) -> Result<Vec<u32>, EngineError> {
        let mut ids = Vec::new();
        // SentencePiece reads a text as if a space stood before it; a control token begins a new one.
        let mut begins = true;
        for piece in self.special.cut(&self.writing.read(text), parse_special) {
            let space_before = begins && matches!(self.writing, Writing::SentencePiece { space_before: true });
            match piece {
                Piece::Control(id) => ids.push(id),
                Piece::UserDefined(id) if space_before => ids.extend(self.encode_plain(" ")?.into_iter().chain([id])),
                Piece::UserDefined(id) => ids.push(id),
                Piece::Text(text) if space_before => ids.extend(self.encode_plain(&format!(" {text}"))?),
                Piece::Text(text) => ids.extend(self.encode_plain(text)?),
            }
            begins = matches!(piece, Piece::Control(_));
        }
        Ok(ids)
    }

    /// The ids of a text in which no special token is looked for.
    fn encode_plain(&self, text: &str) -> Result<Vec<u32>, EngineError> {
        let unreadable = |error| EngineError::new(Reason::InvalidRequest, format!("tokenizing a text of {} bytes: {error}", text.len()));
        Ok(self.text.encode_fast(text, false).map_err(unreadable)?.get_ids().to_vec())
    }

    /// The ids of a whole prompt: BOS before and EOS after it where the model wants them and they aren't there (chat templates often write BOS themselves).
    /// For BERT those are [CLS] and [SEP].
    pub fn encode_prompt(&self, text: &str, parse_special: bool) -> Result<Vec<u32>, EngineError> {
        let mut ids = self.encode(text, parse_special)?;
        if let Some(bos) = self.vocabulary.bos.filter(|&bos| self.add_bos && ids.first() != Some(&bos)) {
            ids.insert(0, bos);
        }
        if let Some(eos) = self.vocabulary.eos.filter(|&eos| self.add_eos && ids.last() != Some(&eos)) {
            ids.push(eos);
        }
        Ok(ids)
    }

    /// The bytes that a token stands for: a part of a character only, it may be. None for an id that is no token.
    pub fn bytes(&self, id: u32) -> Cow<'_, [u8]> {
        let Some(text) = self.vocabulary.texts.get(id as usize) else { return Cow::Borrowed(&[]) };
        match (self.vocabulary.types[id as usize], &self.writing) {
            (TokenType::Control | TokenType::UserDefined | TokenType::Unknown, _) => self.as_written(text),
            (_, Writing::ByteLevel(alphabet)) => Cow::Owned(alphabet.of(text)),
            (TokenType::Byte, Writing::SentencePiece { .. }) => match sentence_piece::byte_of(text) {
                Some(byte) => Cow::Owned(vec![byte]),
                None => Cow::Borrowed(text.as_bytes()),
            },
            (_, Writing::SentencePiece { .. }) => self.as_written(text),
            (_, Writing::WordPiece) => Cow::Owned(text.replacen(word_piece::WORD, " ", 1).into_bytes()),
        }
    }

    fn as_written<'a>(&self, text: &'a str) -> Cow<'a, [u8]> {
        match self.writing.read(text) {
            Cow::Borrowed(text) => Cow::Borrowed(text.as_bytes()),
            Cow::Owned(text) => Cow::Owned(text.into_bytes()),
        }
    }

    /// The text of some tokens. Bytes that are no UTF-8 are replaced by U+FFFD.
    ///
    /// That is the text that was encoded, but for what the model's own tokenizer lets go of: some compose characters (NFC), SentencePiece reads `▁` as a
    /// space, and WordPiece keeps words only: no case and no accents where the model has none, one space between each two, nothing of unknown words.
    pub fn decode(&self, ids: &[u32]) -> String {
        let bytes: Vec<u8> = ids.iter().flat_map(|&id| self.bytes(id).into_owned()).collect();
        let text = String::from_utf8_lossy(&bytes);
        match self.writing {
            Writing::SentencePiece { space_before: true } | Writing::WordPiece => text.strip_prefix(' ').unwrap_or(&text).to_owned(),
            _ => text.into_owned(),
        }
    }

    /// Whether the model ends its answer with this token.
    pub fn is_end(&self, id: u32) -> bool {
        self.vocabulary.ends.contains(&id)
    }

    /// The text of the token that begins a prompt, for chat templates; empty where there is none.
    pub fn bos_text(&self) -> &str {
        self.text_of(self.vocabulary.bos)
    }

    pub fn eos_text(&self) -> &str {
        self.text_of(self.vocabulary.eos)
    }

    fn text_of(&self, id: Option<u32>) -> &str {
        id.map_or("", |id| &self.vocabulary.texts[id as usize])
    }

    pub fn vocabulary(&self) -> &Vocabulary {
        &self.vocabulary
    }
}

/// Ids by text. Where two tokens have one text (a damaged file, or bytes that are no UTF-8), the first is meant.
fn ids(vocabulary: &Vocabulary) -> Vocab {
    let mut ids = Vocab::with_capacity(vocabulary.texts.len());
    for (id, text) in vocabulary.texts.iter().enumerate() {
        ids.entry(text.clone()).or_insert(id as u32);
    }
    ids
}

fn not_built(error: tokenizers::Error) -> EngineError {
    EngineError::new(Reason::InvalidModelFile, format!("building the tokenizer: {error}"))
}

#[cfg(test)]
pub(crate) mod tests;
