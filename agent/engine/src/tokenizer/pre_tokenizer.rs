//! How a text is cut into words before BPE merges within each, by the name in `tokenizer.ggml.pre`.
//!
//! The name is the converter's word for the expressions in the model's own `tokenizer.json`. A wrong one gives ids that look right and read badly,
//! so a name that is not in the table is refused. Source of the names: `llama-vocab.cpp` of llama.cpp; of the expressions: the models' `tokenizer.json`.

use stowage_placement::capability;

/// GPT-2's own expression: English contractions, then words, numbers and the rest, each with a space before it.
const GPT2: &str = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)";
/// tiktoken's cl100k, with numbers in groups of up to three digits.
const LLAMA3: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
/// The same with each digit on its own.
const QWEN2: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
/// tiktoken's o200k.
const GPT4O: &str = concat!(
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|",
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|",
    r"\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
);
/// Mistral's, from NeMo on.
const TEKKEN: &str = concat!(
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|",
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|",
    r"\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
);
const DEEPSEEK3: &str = concat!(
    r##"[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*|"##,
    r"\s*[\r\n]+|\s+(?!\S)|\s+"
);

/// The expressions in the order in which they cut, and what goes with them.
#[derive(Debug, PartialEq, Eq)]
pub struct PreTokenizer {
    pub names: &'static [&'static str],
    /// Each cuts what the one before left; what it doesn't match stays as a piece.
    pub expressions: &'static [&'static str],
    /// Characters are composed first (NFC), as the models' `tokenizer.json` says of Qwen, Cohere and GPT-NeoX. llama.cpp never does.
    pub composes: bool,
    /// A word that is a token is taken whole, whatever the merges say.
    pub ignore_merges: bool,
    /// Whether BOS is written where the file does not say.
    pub add_bos: bool,
}

const PLAIN: PreTokenizer = PreTokenizer { names: &[], expressions: &[], composes: false, ignore_merges: false, add_bos: false };

const KNOWN: &[PreTokenizer] = &[
    PreTokenizer { names: &["gpt-2", "phi-2", "jais", "trillion", "granite-docling", "exaone4"], expressions: &[GPT2], ..PLAIN },
    // Of GPT-NeoX's kind.
    PreTokenizer { names: &["mpt", "olmo"], expressions: &[GPT2], composes: true, ..PLAIN },
    PreTokenizer {
        names: &["smollm", "starcoder", "refact", "codeshell", "exaone", "minerva-7b"],
        expressions: &[r"\p{N}", GPT2],
        ..PLAIN
    },
    PreTokenizer { names: &["command-r"], expressions: &[r"\p{N}", GPT2], composes: true, ..PLAIN },
    PreTokenizer {
        names: &["llama-bpe", "llama3", "llama-v3", "falcon3", "falcon-h1", "pixtral", "lfm2"],
        expressions: &[LLAMA3],
        ignore_merges: true,
        add_bos: true,
        ..PLAIN
    },
    PreTokenizer { names: &["smaug-bpe", "dbrx", "glm4", "chatglm-bpe"], expressions: &[LLAMA3], ..PLAIN },
    PreTokenizer { names: &["qwen2"], expressions: &[QWEN2], composes: true, ..PLAIN },
    PreTokenizer { names: &["deepseek-r1-qwen", "stablelm2", "megrez", "hunyuan", "grok-2"], expressions: &[QWEN2], ..PLAIN },
    PreTokenizer { names: &["gpt-4o", "llama4"], expressions: &[GPT4O], ..PLAIN },
    PreTokenizer { names: &["tekken"], expressions: &[TEKKEN], ignore_merges: true, add_bos: true, ..PLAIN },
    PreTokenizer {
        names: &["deepseek-coder"],
        expressions: &[r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", r"[一-龥ࠀ-一가-퟿]+", r"\p{N}"],
        ..PLAIN
    },
    PreTokenizer {
        names: &["deepseek-v3", "hunyuan-dense"], expressions: &[r"\p{N}{1,3}", r"[一-龥぀-ゟ゠-ヿ]+", DEEPSEEK3], ..PLAIN
    },
    PreTokenizer { names: &["falcon"], expressions: &[r"[\p{P}\$\+<=>\^~\|`]+", GPT2, r"[0-9][0-9][0-9]"], ..PLAIN },
    // What llama.cpp does with files that name none.
    PreTokenizer { names: &["default"], expressions: &[r"[\p{P}\$\+<=>\^~\|]+", GPT2, r"\p{N}+", r"[0-9][0-9][0-9]"], ..PLAIN },
];

/// The pre-tokenizer of that name; the error names those that are known.
pub fn by_name(name: &str) -> Result<&'static PreTokenizer, String> {
    let missing = || capability::pre_tokenizer(name).err().unwrap_or_else(|| format!("the pre-tokenizer `{name}` has no expressions"));
    KNOWN.iter().find(|known| known.names.contains(&name)).ok_or_else(missing)
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokenizers::pre_tokenizers::split::{Split, SplitPattern};
    use tokenizers::{OffsetReferential, OffsetType, PreTokenizedString, PreTokenizer as _, SplitDelimiterBehavior};

    fn words(name: &str, text: &str) -> Vec<String> {
        let mut cut = PreTokenizedString::from(text);
        for expression in by_name(name).unwrap().expressions {
            let pattern = SplitPattern::Regex((*expression).into());
            Split::new(pattern, SplitDelimiterBehavior::Isolated, false).unwrap().pre_tokenize(&mut cut).unwrap();
        }
        cut.get_splits(OffsetReferential::Original, OffsetType::Byte).iter().map(|(word, ..)| (*word).to_owned()).collect()
    }

    #[test]
    fn every_expression_compiles_and_every_name_stands_once() {
        let mut seen = std::collections::HashSet::new();
        for known in KNOWN {
            for name in known.names {
                assert!(seen.insert(*name), "{name} stands twice");
                assert_eq!(words(name, "It's 1234\n\n  5 µ一 ").concat(), "It's 1234\n\n  5 µ一 ");
            }
        }
    }

    #[test]
    fn placement_is_told_of_the_names_that_there_are() {
        let mut names: Vec<&str> = KNOWN.iter().flat_map(|known| known.names.iter().copied()).collect();
        names.sort_unstable();
        assert_eq!(names, capability::PRE_TOKENIZERS);
    }

    #[test]
    fn digits_are_cut_as_each_family_cuts_them() {
        assert_eq!(words("gpt-2", "a 12345"), ["a", " 12345"]);
        assert_eq!(words("smollm", "a 12345"), ["a", " ", "1", "2", "3", "4", "5"]);
        assert_eq!(words("llama-bpe", "a 12345"), ["a", " ", "123", "45"]);
        assert_eq!(words("qwen2", "a 12345"), ["a", " ", "1", "2", "3", "4", "5"]);
    }

    #[test]
    fn contractions_and_runs_of_space_are_cut_as_each_family_cuts_them() {
        assert_eq!(words("gpt-2", "it's IT'S   ok"), ["it", "'s", " IT", "'", "S", "  ", " ok"]);
        assert_eq!(words("qwen2", "it's IT'S   ok"), ["it", "'s", " IT", "'S", "  ", " ok"]);
        assert_eq!(words("llama-bpe", "a\n\nb  \n c"), ["a", "\n\n", "b", "  \n", " c"]);
    }

    #[test]
    fn an_unknown_name_is_refused_with_those_that_are_known() {
        let refusal = by_name("gpt-9").unwrap_err();
        assert!(refusal.contains("`gpt-9`") && refusal.contains("qwen2") && refusal.contains("smollm"), "{refusal}");
    }
}
