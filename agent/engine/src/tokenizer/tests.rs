use super::*;
use proptest::prelude::*;
use serde::Deserialize;
use stowage_placement::gguf::write::HeaderWriter;
use stowage_placement::gguf::{Feed, HeaderReader, Keep};

pub(crate) fn header(written: &HeaderWriter) -> Header {
    let mut reader = HeaderReader::new(Keep::All);
    assert_eq!(reader.feed(&written.header()).unwrap(), Feed::Complete);
    reader.into_header().unwrap()
}

/// A vocabulary of single bytes with one merge: id 256 is `ab`, 257 and 258 are BOS and EOS, 259 is user-defined.
pub(crate) fn bytes_with_specials() -> HeaderWriter {
    let mut texts: Vec<String> = (0..=u8::MAX).map(|byte| byte_alphabet::to_char(byte).to_string()).collect();
    texts.extend(["ab", "<bos>", "<|im_end|>", "<tool>"].map(str::to_owned));
    let mut types = vec![1; 257];
    types.extend([3, 3, 4]);
    HeaderWriter::architecture("llama")
        .string("tokenizer.ggml.model", "gpt2")
        .string("tokenizer.ggml.pre", "smollm")
        .strings("tokenizer.ggml.tokens", texts.iter().map(String::as_str))
        .i32s("tokenizer.ggml.token_type", &types)
        .strings("tokenizer.ggml.merges", ["a b"])
        .u32("tokenizer.ggml.bos_token_id", 257)
        .u32("tokenizer.ggml.eos_token_id", 258)
}

pub(crate) fn byte_tokenizer() -> Tokenizer {
    Tokenizer::from_header(&header(&bytes_with_specials())).unwrap()
}

#[derive(Deserialize)]
struct SentencePieceFixture {
    tokens: Vec<String>,
    scores: Vec<f32>,
    types: Vec<i32>,
    cases: Vec<Case>,
}

#[derive(Deserialize)]
pub(crate) struct Case {
    text: String,
    #[serde(default)]
    parse_special: bool,
    ids: Vec<u32>,
}

pub(crate) fn sentence_piece() -> (Tokenizer, Vec<Case>) {
    let fixture: SentencePieceFixture = serde_json::from_str(include_str!("../../testdata/tokenizer_sentencepiece.json")).unwrap();
    let written = HeaderWriter::architecture("llama")
        .string("tokenizer.ggml.model", "llama")
        .strings("tokenizer.ggml.tokens", fixture.tokens.iter().map(String::as_str))
        .f32s("tokenizer.ggml.scores", &fixture.scores)
        .i32s("tokenizer.ggml.token_type", &fixture.types)
        .u32("tokenizer.ggml.bos_token_id", 1)
        .u32("tokenizer.ggml.eos_token_id", 2)
        .u32("tokenizer.ggml.unknown_token_id", 0);
    (Tokenizer::from_header(&header(&written)).unwrap(), fixture.cases)
}

#[test]
fn special_tokens_are_read_where_asked_and_user_defined_ones_always() {
    let tokenizer = byte_tokenizer();
    assert_eq!(tokenizer.encode("ab<bos>c", true).unwrap(), [256, 257, u32::from(b'c')]);
    assert_eq!(tokenizer.encode("ab<bos>c", false).unwrap().len(), 7);
    assert_eq!(tokenizer.encode("<tool>ab", false).unwrap(), [259, 256]);
}

#[test]
fn bos_is_written_once_where_the_model_wants_it() {
    assert_eq!(byte_tokenizer().encode_prompt("ab", true).unwrap(), [256]);
    let written = bytes_with_specials().bool("tokenizer.ggml.add_bos_token", true);
    let tokenizer = Tokenizer::from_header(&header(&written)).unwrap();
    assert_eq!(tokenizer.encode_prompt("ab", true).unwrap(), [257, 256]);
    assert_eq!(tokenizer.encode_prompt("<bos>ab", true).unwrap(), [257, 256]);
}

#[test]
fn the_ends_of_an_answer_are_known() {
    let tokenizer = byte_tokenizer();
    assert!(tokenizer.is_end(258) && !tokenizer.is_end(257));
    assert_eq!((tokenizer.bos_text(), tokenizer.eos_text()), ("<bos>", "<|im_end|>"));
}

#[test]
fn an_unknown_pre_tokenizer_is_refused_by_name() {
    let written = bytes_with_specials().string("tokenizer.ggml.model2", "");
    let mut header = header(&written);
    header.metadata.insert("tokenizer.ggml.pre".into(), stowage_placement::gguf::Value::String("new-thing".into()));
    let error = Tokenizer::from_header(&header).err().unwrap();
    assert_eq!(error.reason, Reason::EngineCannotRun);
    assert!(error.message.contains("`new-thing`") && error.message.contains("llama-bpe"), "{error}");
}

#[test]
fn an_unknown_kind_of_tokenizer_is_refused_by_name() {
    let mut header = header(&bytes_with_specials());
    header.metadata.insert("tokenizer.ggml.model".into(), stowage_placement::gguf::Value::String("rwkv".into()));
    assert!(Tokenizer::from_header(&header).err().unwrap().message.contains("`rwkv`"));
}

#[test]
fn merges_that_lead_to_no_token_are_left_out_rather_than_believed() {
    let mut header = header(&bytes_with_specials());
    let merges = ["a b", "ab ab", "zzzzzzzzzzzzzzzzzzzzzzzzzz q"].map(str::to_owned).to_vec();
    header
        .metadata
        .insert("tokenizer.ggml.merges".into(), stowage_placement::gguf::Value::Array(stowage_placement::gguf::Array::String(merges)));
    assert_eq!(Tokenizer::from_header(&header).unwrap().encode("abab", false).unwrap(), [256, 256]);
}

#[test]
fn sentence_piece_gives_the_ids_of_the_sentencepiece_package() {
    let (tokenizer, cases) = sentence_piece();
    for Case { text, ids, .. } in cases {
        assert_eq!(tokenizer.encode(&text, false).unwrap(), ids, "{text:?}");
        assert_eq!(tokenizer.decode(&ids), text);
    }
    assert_eq!(tokenizer.encode_prompt("", true).unwrap(), [1]);
}

#[test]
fn a_control_token_begins_a_new_text_and_a_user_defined_one_does_not() {
    let (tokenizer, _) = sentence_piece();
    let ids = |text: &str| tokenizer.encode(text, true).unwrap();
    assert_eq!(ids("<s>a"), [&[1], ids("a").as_slice()].concat());
    let with_tool = ids("a<tool>a");
    assert_eq!(tokenizer.decode(&with_tool), "a<tool>a");
    assert_eq!(with_tool.len(), ids("a").len() + 1 + tokenizer.encode_plain("a").unwrap().len());
}

/// `play` and `ing`, in the form that GGUF files have them in.
pub(crate) fn words() -> HeaderWriter {
    HeaderWriter::architecture("bert")
        .string("tokenizer.ggml.model", "bert")
        .strings("tokenizer.ggml.tokens", ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "▁play", "ing", "▁!"])
        .i32s("tokenizer.ggml.token_type", &[3, 3, 3, 3, 1, 1, 1])
        .u32("tokenizer.ggml.unknown_token_id", 1)
        .u32("tokenizer.ggml.cls_token_id", 2)
        .u32("tokenizer.ggml.seperator_token_id", 3)
}

#[test]
fn word_piece_stands_between_its_beginning_and_its_end() {
    let tokenizer = Tokenizer::from_header(&header(&words())).unwrap();
    assert_eq!(tokenizer.encode_prompt("Plaýing!", false).unwrap(), [2, 4, 5, 6, 3]);
    assert_eq!(tokenizer.encode_prompt("[CLS]play[SEP]", true).unwrap(), [2, 4, 3]);
    assert_eq!(tokenizer.encode("play played", false).unwrap(), [4, 1]);
    assert_eq!(tokenizer.decode(&[4, 5, 6]), "playing !");
    let plain = words().bool("tokenizer.ggml.add_bos_token", false).bool("tokenizer.ggml.add_eos_token", false);
    assert_eq!(Tokenizer::from_header(&header(&plain)).unwrap().encode_prompt("play", false).unwrap(), [4]);
}

#[test]
fn word_piece_keeps_case_where_the_model_does() {
    let cased = words().bool("tokenizer.ggml.normalizer.lowercase", false);
    assert_eq!(Tokenizer::from_header(&header(&cased)).unwrap().encode("Play play", false).unwrap(), [1, 4]);
}

/// The tokenizer of a real model, where its file is at hand.
fn smollm() -> Option<Tokenizer> {
    let path = crate::test_models::smollm2()?;
    let mut file = std::fs::File::open(path).unwrap();
    let mut reader = HeaderReader::new(Keep::All);
    let mut buffer = vec![0; 1 << 20];
    loop {
        let count = std::io::Read::read(&mut file, &mut buffer).unwrap();
        assert!(count > 0, "the file ends within its header");
        if reader.feed(&buffer[..count]).unwrap() == Feed::Complete {
            return Some(Tokenizer::from_header(&reader.into_header().unwrap()).unwrap());
        }
    }
}

#[test]
fn smollm_gives_the_ids_of_llama_cpp() {
    #[derive(Deserialize)]
    struct Fixture {
        cases: Vec<Case>,
    }
    let Some(tokenizer) = smollm() else { return };
    let fixture: Fixture = serde_json::from_str(include_str!("../../testdata/tokenizer_smollm.json")).unwrap();
    for Case { text, parse_special, ids } in fixture.cases {
        assert_eq!(tokenizer.encode(&text, parse_special).unwrap(), ids, "{text:?}");
    }
}

#[test]
fn for_smollm_decode_of_encode_is_the_text() {
    let Some(tokenizer) = smollm() else { return };
    proptest!(ProptestConfig::with_cases(200), |(text in "\\PC{0,40}|[ \\n\\ta-z0-9.,'😀日ж]{0,60}")| {
        prop_assert_eq!(tokenizer.decode(&tokenizer.encode(&text, false).unwrap()), text);
    });
}

proptest! {
    #[test]
    fn decode_of_encode_is_the_text(text in ".{0,60}", parse_special: bool) {
        let tokenizer = byte_tokenizer();
        prop_assert_eq!(tokenizer.decode(&tokenizer.encode(&text, parse_special).unwrap()), text);
    }

    #[test]
    fn for_sentence_piece_decode_of_encode_is_the_text(text in "[^▁]{0,60}") {
        let (tokenizer, _) = sentence_piece();
        prop_assume!(!text.contains("<tool>"));
        prop_assert_eq!(tokenizer.decode(&tokenizer.encode(&text, false).unwrap()), text);
    }
}
