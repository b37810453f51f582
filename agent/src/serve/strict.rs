//! Calls of functions that are `strict`, where the model is free to make one: their arguments are held to their schema as soon as the call is named.
//!
//! A call that has to be made is held from its beginning ([`super::tools`]). Here it is the model that begins it, in the way that it was trained to, and
//! the answer ends with it: as OpenAI has it, strict calls are made one at a time.

use serde_json::Value;
use stowage_engine::{Constraint, FramedJson, Grammar, Occasion};

use super::error::Fault;
use super::tools::{Function, ToolChoice, Tools};
use super::worker::Worker;

/// How a model writes its calls, as its chat template shows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Writing {
    /// JSON with a name and an object: `key` is what that is called, `close` is what ends the call.
    Json { key: &'static str, close: &'static str },
    /// A message to the function, which is JSON.
    Channels,
    /// Tags around each argument, which are no JSON.
    Tags,
}

impl Writing {
    fn of(template: &str, channels: bool) -> Writing {
        let has = |mark: &str| template.contains(mark);
        match () {
            () if channels => Writing::Channels,
            () if has("<function=") || has("<arg_key>") => Writing::Tags,
            // An array of calls.
            () if has("[TOOL_CALLS]") => Writing::Json { key: "arguments", close: "}]" },
            // As Llama 3 has it.
            () if has("\"parameters\": ") && !has("<tool_call>") => Writing::Json { key: "parameters", close: "}" },
            () => Writing::Json { key: "arguments", close: "}" },
        }
    }
}

/// What the answer may come to. None, where it is held to calls anyway.
pub async fn occasions(worker: &Worker, tools: &Tools, held: bool) -> Result<Vec<Occasion>, Fault> {
    let mut occasions = Vec::new();
    if held || tools.choice != ToolChoice::Auto {
        return Ok(occasions);
    }
    let channels = worker.thinks().is_some_and(|ability| ability.tags.channels);
    let writing = Writing::of(&worker.generator().info().chat_template, channels);
    for function in tools.functions().iter().filter(|function| function.strict) {
        let field = format!("{}.strict", function.path);
        let constraint = constraint(function, writing).ok_or_else(|| {
            let why =
                "can't be honoured where the model is free to call: it writes no JSON; set `tool_choice` to required, or to the function";
            Fault::field(field.as_str(), format!("`{field}` {why}"))
        })?;
        if let Some(grammar) = worker.constrain(&field, Some(constraint)).await? {
            occasions
                .extend(beginnings(&function.name, writing).into_iter().map(|after| Occasion { after, grammar: Grammar::clone(&grammar) }));
        }
    }
    Ok(occasions)
}

/// What follows on a call's name; `None` where that can't be held.
fn constraint(function: &Function, writing: Writing) -> Option<Constraint> {
    let schema = function.parameters.clone();
    match writing {
        Writing::Json { key, close } => {
            Some(Constraint::OneOf(vec![FramedJson { before: format!(", \"{key}\": "), schema, after: close.to_owned() }]))
        }
        Writing::Channels => Some(Constraint::JsonSchema(schema)),
        Writing::Tags => None,
    }
}

/// The ways in which a call may be begun, each as the texts that come one after the other. They end with the name's end: one name may begin another.
fn beginnings(name: &str, writing: Writing) -> Vec<Vec<String>> {
    if writing != Writing::Channels {
        let quoted = Value::from(name).to_string();
        return [" ", ""].map(|space| vec![format!("\"name\":{space}{quoted}")]).into();
    }
    let (to, message) = (format!("to=functions.{name}"), "<|message|>".to_owned());
    let mut beginnings = vec![vec![format!("<|channel|>commentary {to}{message}")], vec![format!("{to}<|channel|>"), message.clone()]];
    beginnings.extend([" ", "<|constrain|>"].map(|end| vec![format!("<|channel|>commentary {to}{end}"), message.clone()]));
    beginnings
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEMPLATES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/engine/testdata/reference/templates/");

    fn writing(name: &str) -> Writing {
        let text = std::fs::read_to_string(format!("{TEMPLATES}{name}.json")).unwrap();
        let reference: Value = serde_json::from_str(&text).unwrap();
        Writing::of(reference["template"].as_str().unwrap(), name == "gpt-oss")
    }

    #[test]
    fn a_template_shows_how_its_model_writes_calls() {
        let json = |key, close| Writing::Json { key, close };
        assert_eq!(["qwen2.5", "qwen3", "hermes-3"].map(writing), [json("arguments", "}"); 3]);
        assert_eq!(["llama-3.1", "llama-3.2"].map(writing), [json("parameters", "}"); 2]);
        assert_eq!(writing("mistral-nemo"), json("arguments", "}]"));
        assert_eq!(["qwen3-coder", "glm-4.6"].map(writing), [Writing::Tags; 2]);
        assert_eq!(writing("gpt-oss"), Writing::Channels);
    }

    #[test]
    fn a_call_is_begun_with_its_whole_name() {
        let json = beginnings("get", Writing::Json { key: "arguments", close: "}" }).concat();
        assert_eq!(json, ["\"name\": \"get\"", "\"name\":\"get\""]);
        let channels = beginnings("get", Writing::Channels);
        let written = "<|channel|>commentary to=functions.get_weather <|constrain|>json<|message|>{";
        let comes = |written: &str| {
            channels
                .iter()
                .any(|texts| texts.iter().try_fold(written, |rest, text| rest.split_once(text.as_str()).map(|(_, rest)| rest)).is_some())
        };
        assert!(!comes(written) && comes(&written.replace("_weather", "")));
        assert!(comes(" to=functions.get<|channel|>commentary json<|message|>{"));
    }
}
