//! SmolLM2 held to grammars: it is small enough to break out of any that it can.

use std::time::Instant;

use serde_json::{Value, json};

use super::*;
use crate::api::Constraint;

async fn held(engine: &Engine, constraint: Constraint, content: &str, sampling: SamplingOptions) -> GenerateRequest {
    let grammar = engine.constrain(constraint).await.unwrap();
    GenerateRequest { grammar: Some(grammar), max_tokens: Some(200), ..question(engine, content, sampling) }
}

fn hot(seed: u64) -> SamplingOptions {
    SamplingOptions { temperature: 2.5, top_k: 0, top_p: 1.0, repeat_penalty: 1.3, seed: Some(seed), ..SamplingOptions::default() }
}

fn ship() -> Value {
    json!({
        "type": "object",
        "properties": {
            "name": {"type": "string", "minLength": 1, "maxLength": 12},
            "built": {"type": "integer", "minimum": 1500, "maximum": 2030},
            "cargo": {"type": "array", "items": {"enum": ["grain", "coal", "wine"]}, "minItems": 1, "maxItems": 3},
            "captain": {"anyOf": [{"type": "null"}, {"type": "object", "properties": {"name": {"type": "string", "maxLength": 10}}, "required": ["name"], "additionalProperties": false}]},
            "afloat": {"type": "boolean"}
        },
        "required": ["name", "built", "cargo", "captain", "afloat"],
        "additionalProperties": false
    })
}

#[tokio::test]
async fn smollm2_meets_a_schema_whatever_the_seed_and_however_hot() {
    let Some(engine) = smollm2() else { return };
    let (schema, content) = (ship(), "Tell me about the ship Aurora.");
    let validator = jsonschema::validator_for(&schema).unwrap();
    let mut answers = Vec::new();
    for seed in 0..12 {
        let (text, finish) = answer(&engine, held(&engine, Constraint::JsonSchema(schema.clone().into()), content, hot(seed)).await).await;
        assert_eq!(finish.reason, FinishReason::Stop, "{text}");
        let value: Value = serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error} in {text}"));
        assert!(validator.is_valid(&value), "{text}");
        answers.push(text);
    }
    let (again, _) = answer(&engine, held(&engine, Constraint::JsonSchema(schema.into()), content, hot(3)).await).await;
    assert_eq!(again, answers[3]);
    answers.dedup();
    assert!(answers.len() > 6, "{answers:?}");
}

#[tokio::test]
async fn smollm2_says_what_a_grammar_forces_and_stops_there() {
    let Some(engine) = smollm2() else { return };
    let forced = "Grüße, \"Welt\" 😀\n\t<|im_end|>";
    let constraint = Constraint::Lark(format!("start: {}", Value::from(forced)));
    let (text, finish) = answer(&engine, held(&engine, constraint, "Say anything.", hot(1)).await).await;
    assert_eq!((text.as_str(), finish.reason), (forced, FinishReason::Stop));
}

#[tokio::test]
async fn smollm2_answers_at_temperature_zero_in_what_is_allowed_and_stop_strings_and_limits_end_it() {
    let Some(engine) = smollm2() else { return };
    let cities = || Constraint::Regex("Paris|Tokyo|Oslo".into());
    let (text, finish) = answer(&engine, held(&engine, cities(), JAPAN.0, greedy()).await).await;
    assert_eq!((text.as_str(), finish.reason), ("Tokyo", FinishReason::Stop));
    let request = held(&engine, Constraint::JsonSchema(ship().into()), JAPAN.0, greedy()).await;
    let (text, finish) = answer(&engine, GenerateRequest { stop: vec!["built".into()], ..request.clone() }).await;
    assert!(text.starts_with("{") && text.ends_with('"') && finish.reason == FinishReason::Stop, "{text}");
    let (text, finish) = answer(&engine, GenerateRequest { max_tokens: Some(2), ..request }).await;
    assert!(text.starts_with("{") && finish.reason == FinishReason::Length && finish.generated_tokens == 2, "{text}");
}

#[tokio::test]
async fn smollm2_is_held_in_one_slot_and_free_in_the_other() {
    let Some(engine) = smollm2() else { return };
    let digits = held(&engine, Constraint::Regex("[0-9]{6}".into()), JAPAN.0, greedy()).await;
    let together = tokio::join!(answer(&engine, digits), answer(&engine, question(&engine, JAPAN.0, greedy())));
    assert!(together.0.0.len() == 6 && together.0.0.bytes().all(|byte| byte.is_ascii_digit()), "{:?}", together.0);
    assert_eq!(together.1.0, JAPAN.1);
}

#[tokio::test]
async fn log_probabilities_are_those_that_the_model_had_before_it_was_held_to_anything() {
    let Some(engine) = smollm2() else { return };
    let first = async |request: GenerateRequest| {
        let request = GenerateRequest { top_logprobs: Some(3), max_tokens: Some(1), ..request };
        let Some(GenerateEvent::Text { logprobs, .. }) = engine.generate(request).unwrap().recv().await else { panic!("text comes first") };
        logprobs[0].clone()
    };
    let free = first(question(&engine, JAPAN.0, greedy())).await;
    let digits = first(held(&engine, Constraint::Regex("[0-9]{6}".into()), JAPAN.0, greedy()).await).await;
    assert_eq!(free.top, digits.top);
    assert!(digits.text.starts_with(|c: char| c.is_ascii_digit()) && digits.logprob < digits.top[2].2, "{digits:?}");
}

#[tokio::test]
async fn what_is_not_supported_is_refused_before_anything_is_queued() {
    let Some(engine) = smollm2() else { return };
    let error = engine.constrain(Constraint::JsonSchema(json!({"not": {}}).into())).await.unwrap_err();
    assert!(error.is_callers_fault() && error.message.contains("not"), "{error}");
    let (embedding, _, _) = bert();
    let error = embedding.constrain(Constraint::JsonObject).await.unwrap_err();
    assert!(error.message.contains("generates no text"), "{error}");
}

/// Prints what constraints cost: `cargo test -p stowage-engine --lib what_constraints_cost -- --ignored --nocapture`.
#[tokio::test]
#[ignore = "measures, and checks nothing"]
async fn what_constraints_cost() {
    let Some(engine) = smollm2() else { return };
    let (before, begin) = (resident(), Instant::now());
    let constraints = Constraints::new(&engine.inner.tokenizer).unwrap();
    println!("tries of {} tokens: {:.1?}, {}", engine.inner.tokenizer.vocabulary().texts.len(), begin.elapsed(), more_than(before));
    let story = format!("\"{}\"", "This is a long story about ships. ".repeat(9));
    let any = r#"{"name": "Aurora of the seven seas", "built": 1777, "x": [{"y": "on the way to the moon", "z": true}, 1.5, "three"]}"#;
    let aurora = r#"{"name": "Aurora", "built": 1777, "cargo": ["grain", "coal"], "captain": {"name": "Hagbard"}, "afloat": true}"#;
    let cases = [
        (Constraint::JsonObject, any.to_owned()),
        (Constraint::JsonSchema(ship().into()), aurora.to_owned()),
        (Constraint::JsonSchema(json!({"type": "string", "maxLength": 2000}).into()), story),
        (Constraint::Regex("[a-z ]{3,80}".into()), "the way to the moon".to_owned()),
    ];
    for (constraint, text) in cases {
        let (before, begin) = (resident(), Instant::now());
        let name: String = format!("{constraint:?}").chars().take(40).collect();
        let grammar = constraints.compile(constraint).await.unwrap();
        println!("{name}: compiled in {:.1?}", begin.elapsed());
        let begin = Instant::now();
        let mut matching = grammar.begin();
        println!("    begun in {:.1?}", begin.elapsed());
        let mut times = Vec::new();
        for token in engine.inner.tokenizer.encode(&text, false).unwrap() {
            let begin = Instant::now();
            matching.allowed().unwrap();
            matching.take(token).unwrap();
            times.push(begin.elapsed());
        }
        let mean = times.iter().sum::<std::time::Duration>() / times.len().max(1) as u32;
        println!("    {} tokens at {mean:.1?}, the slowest {:.1?}; {}", times.len(), times.iter().max().unwrap(), more_than(before));
    }
}

/// Bytes of memory that this process has.
fn resident() -> u64 {
    let pages = std::fs::read_to_string("/proc/self/statm").unwrap();
    pages.split(' ').nth(1).unwrap().parse::<u64>().unwrap() * 4096
}

fn more_than(before: u64) -> String {
    format!("{} KiB more memory", resident().saturating_sub(before) >> 10)
}
