//! Vocabularies of every kind against the ids that the packages `tokenizers` and `sentencepiece` give for the same texts: see `testdata/reference`.
#![allow(clippy::unwrap_used)]

use std::path::{Path, PathBuf};

use proptest::prelude::*;
use proptest::test_runner::TestRunner;
use serde::Deserialize;
use stowage_engine::Tokenizer;
use stowage_placement::gguf::{Feed, HeaderReader, Keep};
use tokenizers::normalizers::NFC;
use tokenizers::{NormalizedString, Normalizer as _};

#[derive(Deserialize)]
struct Reference {
    /// What `tokenizer.json` does to a text before anything else.
    normalizer: Option<Normalizer>,
    cases: Vec<Case>,
}

#[derive(Deserialize, PartialEq)]
#[serde(tag = "type")]
enum Normalizer {
    #[serde(rename = "NFC")]
    Nfc,
}

#[derive(Deserialize)]
struct Case {
    text: String,
    #[serde(default)]
    parse_special: bool,
    ids: Vec<u32>,
}

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata/reference/tokenizers")
}

fn names() -> Vec<String> {
    let json = |path: PathBuf| (path.extension()? == "json").then(|| path.file_stem().unwrap().to_str().unwrap().to_owned());
    let mut names: Vec<String> = std::fs::read_dir(folder()).unwrap().filter_map(|entry| json(entry.unwrap().path())).collect();
    names.sort();
    names
}

fn tokenizer(name: &str) -> Tokenizer {
    let mut reader = HeaderReader::new(Keep::All);
    let bytes = std::fs::read(folder().join(format!("{name}.gguf"))).unwrap();
    assert_eq!(reader.feed(&bytes).unwrap(), Feed::Complete, "{name}");
    Tokenizer::from_header(&reader.into_header().unwrap()).unwrap()
}

fn reference(name: &str) -> Reference {
    serde_json::from_slice(&std::fs::read(folder().join(format!("{name}.json"))).unwrap()).unwrap()
}

#[test]
fn every_text_has_the_ids_of_the_models_own_tokenizer() {
    let names = names();
    assert!(names.len() >= 11, "{names:?}");
    let (mut differ, mut count) = (Vec::new(), 0);
    for name in names {
        let tokenizer = tokenizer(&name);
        for Case { text, parse_special, ids } in reference(&name).cases {
            count += 1;
            let found = tokenizer.encode(&text, parse_special).unwrap();
            if found != ids {
                differ.push(format!("{name}: {text:?} (parse_special: {parse_special})\n  found  {found:?}\n  wanted {ids:?}"));
            }
        }
    }
    assert!(differ.is_empty(), "{} of {count} texts differ:\n{}", differ.len(), differ.join("\n"));
}

/// What is left of a text once it was tokenized.
fn kept(name: &str, normalizer: &Option<Normalizer>, text: &str) -> String {
    if *normalizer == Some(Normalizer::Nfc) {
        let mut composed = NormalizedString::from(text);
        NFC.normalize(&mut composed).unwrap();
        return composed.get().to_owned();
    }
    // SentencePiece's sign for a space, which it can't tell from one.
    if name.ends_with("-spm") { text.replace('▁', " ") } else { text.to_owned() }
}

/// Any text, of few characters or of all that there are.
fn texts() -> impl Strategy<Value = String> {
    prop_oneof![
        "[ \\n\\r\\ta-cA-C0-9.,'’<>_|éё日한ा́😀👩\u{200d}▁Ġ]{0,40}",
        proptest::collection::vec(any::<char>(), 0..30).prop_map(|characters| characters.into_iter().collect::<String>()),
        "\\PC{0,40}",
    ]
}

#[test]
fn decode_of_encode_is_the_text_for_all_but_word_piece() {
    let mut runner = TestRunner::new(ProptestConfig::with_cases(300));
    for name in names().into_iter().filter(|name| name != "bert") {
        let (tokenizer, Reference { normalizer, cases }) = (tokenizer(&name), reference(&name));
        let decoded = |text: &str, parse_special| tokenizer.decode(&tokenizer.encode(text, parse_special).unwrap());
        for Case { text, parse_special, .. } in cases {
            assert_eq!(decoded(&text, parse_special), kept(&name, &normalizer, &text), "{name}");
        }
        let same = |text: String| {
            prop_assert_eq!(decoded(&text, false), kept(&name, &normalizer, &text), "{}", name);
            Ok(())
        };
        runner.run(&texts(), same).unwrap();
    }
}
