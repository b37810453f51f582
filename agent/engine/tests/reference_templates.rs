//! Chat templates of known models against what `transformers` renders with them: see `testdata/reference`.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use jiff::Zoned;
use jiff::civil::DateTime;
use jiff::tz::TimeZone;
use serde::Deserialize;
use stowage_engine::template::{Json, RenderOptions};
use stowage_engine::{ChatMessage, ChatTemplate, EngineError};

/// A chat that `transformers` stops at, for Python has nothing to iterate over in `None`. Jinja here takes it for an empty list, and so a model whose
/// template counts on tools can be asked without any.
const NONE_HAS_NO_ITEMS: &str = "TypeError: 'NoneType' object is not iterable";

#[derive(Deserialize)]
struct Reference {
    name: String,
    now: DateTime,
    bos_token: String,
    eos_token: String,
    template: String,
    cases: Vec<Case>,
}

#[derive(Deserialize)]
struct Case {
    conversation: String,
    add_generation_prompt: bool,
    #[serde(default)]
    extra: serde_json::Map<String, serde_json::Value>,
    #[serde(flatten)]
    outcome: Outcome,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Outcome {
    Expected(String),
    /// The template refuses the messages in these words.
    Raises(String),
    /// Python stops.
    Fails(String),
}

#[derive(Deserialize)]
struct Conversation {
    messages: Vec<ChatMessage>,
    #[serde(default)]
    tools: Vec<Json>,
}

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata/reference/templates")
}

fn read<T: for<'de> Deserialize<'de>>(path: &Path) -> T {
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

fn references() -> Vec<Reference> {
    let mut paths: Vec<PathBuf> = std::fs::read_dir(folder()).unwrap().map(|entry| entry.unwrap().path()).collect();
    paths.retain(|path| path.extension().is_some_and(|extension| extension == "json") && !path.ends_with("conversations.json"));
    paths.sort();
    paths.iter().map(|path| read(path)).collect()
}

/// What is wrong with a rendering, if anything is.
fn wrong(found: &Result<String, EngineError>, outcome: &Outcome) -> Option<String> {
    match (found, outcome) {
        (Ok(found), Outcome::Expected(wanted)) if found == wanted => None,
        (Err(error), Outcome::Raises(words)) if error.message.contains(words) && error.is_callers_fault() => None,
        (Err(error), Outcome::Fails(_)) if error.is_callers_fault() => None,
        (Ok(_), Outcome::Fails(why)) if why == NONE_HAS_NO_ITEMS => None,
        (Ok(found), Outcome::Expected(wanted)) => {
            let same = found.chars().zip(wanted.chars()).take_while(|(found, wanted)| found == wanted).count();
            let from = |text: &str| text.chars().skip(same.saturating_sub(20)).take(120).collect::<String>();
            Some(format!("from character {same} on\n  found  {:?}\n  wanted {:?}", from(found), from(wanted)))
        }
        (found, outcome) => Some(format!("\n  found  {found:?}\n  wanted {outcome:?}")),
    }
}

#[test]
fn every_chat_is_written_as_transformers_writes_it() {
    let conversations: BTreeMap<String, Conversation> = read(&folder().join("conversations.json"));
    let references = references();
    assert!(references.len() >= 15, "{} templates", references.len());
    let (mut differ, mut count) = (Vec::new(), 0);
    for Reference { name, now, bos_token, eos_token, template, cases } in references {
        let template = ChatTemplate::new(Some(&template), "", &bos_token, &eos_token).unwrap();
        let now: Zoned = now.to_zoned(TimeZone::UTC).unwrap();
        for Case { conversation, add_generation_prompt, extra, outcome } in cases {
            count += 1;
            let Conversation { messages, tools } = &conversations[&conversation];
            let options = RenderOptions { add_generation_prompt, extra, now: Some(now.clone()) };
            if let Some(difference) = wrong(&template.render(messages, tools, &options), &outcome) {
                differ.push(format!("{name}, {conversation}, {add_generation_prompt}, {:?}: {difference}", options.extra));
            }
        }
    }
    assert!(differ.is_empty(), "{} of {count} chats differ:\n{}", differ.len(), differ.join("\n"));
}
