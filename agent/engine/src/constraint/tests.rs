use std::time::{Duration, Instant};

use proptest::prelude::*;
use rand::rngs::Xoshiro256PlusPlus;
use rand::{RngExt, SeedableRng};
use serde_json::{Value, json};

use super::*;
use crate::api::{FramedJson, SamplingOptions};
use crate::sample::Sampler;
use crate::tokenizer::tests::{byte_tokenizer, header, sentence_piece, words};

fn of_schema(schema: &Value) -> Constraint {
    Constraint::JsonSchema(schema.clone().into())
}

fn compiled(tokenizer: &Tokenizer, constraint: Constraint) -> Result<Grammar, EngineError> {
    Constraints::new(tokenizer)?.shared.compile(constraint)
}

/// What is said by a model that finds all tokens equally likely. The text, and whether the grammar let it end there.
fn babble(tokenizer: &Tokenizer, grammar: &Grammar, seed: u64, most: usize) -> (Vec<u8>, bool) {
    let flat =
        SamplingOptions { temperature: 1.0, top_k: 0, top_p: 1.0, repeat_penalty: 1.0, seed: Some(seed), ..SamplingOptions::default() };
    let mut sampler = Sampler::new(flat, 4096);
    let logits = vec![0.0; tokenizer.vocabulary().texts.len()];
    let (mut matching, mut text) = (grammar.begin(), Vec::new());
    for _ in 0..most {
        let allowed = matching.allowed().unwrap();
        let token = sampler.sample_allowed(&logits, |token| allowed.has(token));
        if tokenizer.is_end(token) {
            return (text, true);
        }
        text.extend_from_slice(&tokenizer.bytes(token));
        if matching.take(token).unwrap() {
            return (text, true);
        }
    }
    (text, false)
}

fn assert_babbles_only(tokenizer: &Tokenizer, constraint: Constraint, expected: &str) {
    let grammar = compiled(tokenizer, constraint).unwrap();
    for seed in 0..20 {
        let (text, ended) = babble(tokenizer, &grammar, seed, 200);
        assert_eq!((String::from_utf8(text).unwrap().as_str(), ended), (expected, true));
    }
}

#[test]
fn a_grammar_of_one_text_gives_that_text_from_any_vocabulary() {
    let text = "ab 😀 é\n\"x\"";
    for tokenizer in [byte_tokenizer(), sentence_piece().0] {
        assert_babbles_only(&tokenizer, Constraint::Lark(format!("start: {}", Value::from(text))), text);
        assert_babbles_only(&tokenizer, Constraint::Regex("a{2}bé{3}".into()), "aabééé");
    }
    assert_babbles_only(&byte_tokenizer(), of_schema(&json!({"const": "é y"})), "\"é y\"");
}

#[test]
fn a_word_piece_vocabulary_says_a_word_with_the_blank_before_it() {
    let tokenizer = Tokenizer::from_header(&header(&words())).unwrap();
    assert_babbles_only(&tokenizer, Constraint::Regex(" playing !".into()), " playing !");
}

#[test]
fn control_tokens_are_never_allowed_and_an_end_only_where_the_grammar_may_stop() {
    // 257 is <bos>, 258 <|im_end|>, 259 the user-defined <tool>.
    let grammar = compiled(&byte_tokenizer(), Constraint::Regex("(.|\n){2,5}".into())).unwrap();
    let mut matching = grammar.begin();
    for said in 0..5 {
        let allowed = matching.allowed().unwrap();
        assert!(!allowed.has(257) && !allowed.has(259) && !allowed.has(260) && !allowed.has(u32::MAX), "after {said}");
        assert!(allowed.has(u32::from(b'<')), "a text may look like a control token: it is said letter by letter");
        assert_eq!(allowed.has(258), said >= 2, "after {said}");
        assert_eq!(matching.take(u32::from(b'<')).unwrap(), said == 4);
    }
    assert!(matching.allowed().unwrap().has(258));
}

#[test]
fn bytes_that_are_no_utf8_are_never_allowed() {
    let grammar = compiled(&byte_tokenizer(), Constraint::JsonObject).unwrap();
    let mut matching = grammar.begin();
    b"{\"".iter().for_each(|&byte| assert!(!matching.take(u32::from(byte)).unwrap()));
    let allowed = matching.allowed().unwrap();
    assert!(allowed.has(0xc3) && allowed.has(0xe2) && allowed.has(0xf0));
    for byte in [0x00, 0x1f, 0x80, 0xbf, 0xc0, 0xc1, 0xf5, 0xff] {
        assert!(!allowed.has(byte), "{byte:#x}");
    }
    matching.take(0xc3).unwrap();
    let allowed = matching.allowed().unwrap();
    assert!(allowed.has(0xa9) && !allowed.has(u32::from(b'a')) && !allowed.has(u32::from(b'"')));
}

#[test]
fn a_vocabulary_without_an_end_stops_where_nothing_can_follow() {
    let bytes: Vec<Vec<u8>> = (0..=u8::MAX).map(|byte| vec![byte]).collect();
    let constraints = Constraints::of(&bytes, &[]).unwrap();
    let mut matching = constraints.shared.compile(Constraint::Regex("ab".into())).unwrap().begin();
    assert!(!matching.take(u32::from(b'a')).unwrap());
    assert!(matching.take(u32::from(b'b')).unwrap());
}

#[test]
fn a_grammar_that_no_token_can_follow_is_said_to_be_so() {
    let constraints = Constraints::of(&[b"a".to_vec(), b"b".to_vec(), Vec::new()], &[2]).unwrap();
    let refused = constraints.shared.compile(Constraint::Regex("ac".into())).and_then(|grammar| {
        let mut matching = grammar.begin();
        matching.take(0)?;
        matching.allowed().map(|_| ())
    });
    let error = refused.unwrap_err();
    assert!(error.is_callers_fault() && error.message.contains("can't be followed"), "{error}");
}

#[test]
fn what_is_not_supported_is_refused_by_name_and_place() {
    let tokenizer = byte_tokenizer();
    let constraints = Constraints::new(&tokenizer).unwrap();
    let nested = json!({"type": "object", "properties": {"a": {"type": "array", "items": {"anyOf": [{"type": "null"}, {"not": {}}]}}}});
    let defined = json!({"$defs": {"S": {"type": "array", "uniqueItems": true}}, "properties": {"s": {"$ref": "#/$defs/S"}}});
    let impossible = json!({"type": "object", "required": ["a"], "properties": {"a": {"type": "integer", "minimum": 5, "maximum": 3}}});
    let cases = [
        (of_schema(&nested), "at /properties/a/items/anyOf/1: ", "\"not\""),
        (of_schema(&defined), "at /$defs/S: ", "uniqueItems"),
        (of_schema(&json!({"properties": {"a/b": {"type": "string", "format": "binary"}}})), "at /properties/a~1b: ", "binary"),
        (of_schema(&json!({"if": {}, "then": {}})), "", "\"if\""),
        (of_schema(&json!({"type": "strin"})), "", "strin"),
        (of_schema(&impossible), "required property 'a'", "minimum (5) is greater than maximum (3)"),
        (of_schema(&json!({"type": "integer", "multipleOf": 982_451_653})), "", "multiply"),
        (of_schema(&json!({"$ref": "https://example.org/schema"})), "", "example.org"),
        (of_schema(&json!(false)), "", "`false`"),
        (of_schema(&json!(5)), "", "an object"),
        (Constraint::Regex("a(".into()), "the regular expression", "regex"),
        (Constraint::Lark("start: missing".into()), "the grammar", "missing"),
        (Constraint::Lark("start: <|im_end|>".into()), "the grammar", "special token"),
        (Constraint::Lark("start: <[257]>".into()), "the grammar", "no token of this model"),
    ];
    for (constraint, place, what) in cases {
        let error = constraints.shared.compile(constraint.clone()).unwrap_err();
        assert!(error.is_callers_fault() && error.message.contains(place) && error.message.contains(what), "{constraint:?}: {error}");
        assert!(!error.message.contains("backtrace"), "{error}");
    }
}

#[test]
fn kinds_that_exclude_each_other_are_one_of_several_also_behind_references() {
    let of_any = json!({"oneOf": [{"$ref": "#/$defs/ship"}, {"$ref": "#/$defs/boat"}], "discriminator": {"propertyName": "kind"}});
    let properties = |name: &str| json!({"kind": {"const": name}, "next": {"$ref": "#/$defs/any"}, "oneOf": of_any});
    let kind = |name: &str| json!({"type": "object", "properties": properties(name), "required": ["kind"], "additionalProperties": false});
    let schema = json!({"$defs": {"ship": kind("ship"), "boat": kind("boat"), "any": of_any}, "$ref": "#/$defs/any"});
    let tokenizer = byte_tokenizer();
    let grammar = compiled(&tokenizer, of_schema(&schema)).unwrap();
    let validator = jsonschema::validator_for(&schema).unwrap();
    for seed in 0..50 {
        let (text, ended) = babble(&tokenizer, &grammar, seed, 4_000);
        let text = String::from_utf8(text).unwrap();
        assert!(ended && validator.is_valid(&serde_json::from_str(&text).unwrap()), "{text}");
    }
    let overlapping = json!({"oneOf": [{"type": "integer"}, {"type": "number"}]});
    assert!(compiled(&tokenizer, of_schema(&overlapping)).unwrap_err().message.contains("oneOf"));
}

#[test]
fn a_schema_cannot_change_how_it_is_compiled() {
    let schema = json!({"x-guidance": {"lenient": true}, "type": "array", "uniqueItems": true});
    assert!(compiled(&byte_tokenizer(), of_schema(&schema)).unwrap_err().message.contains("uniqueItems"));
}

#[test]
fn what_is_hostile_is_refused_or_compiled_but_in_bounds() {
    let constraints = Constraints::new(&byte_tokenizer()).unwrap();
    let deep = |open: &str, close: &str, levels: usize| {
        serde_json::from_str::<Value>(&(open.repeat(levels) + "{}" + &close.repeat(levels))).unwrap()
    };
    let wide: Value =
        (0..700).map(|i| (format!("property_number_{i}"), json!({"type": ["string", "integer", "null", "object", "array"]}))).collect();
    let doubling: Value = (0..40)
        .map(|i| (format!("d{i}"), json!({"allOf": [{"$ref": format!("#/$defs/d{}", i + 1)}, {"$ref": format!("#/$defs/d{}", i + 1)}]})))
        .collect();
    // It doubles at each level.
    let nested_choices =
        (0..10).fold(json!({"type": "integer"}), |inner, _| json!({"anyOf": [{"allOf": [inner.clone(), inner]}, {"type": "null"}]}));
    let cases = [
        of_schema(&json!({"type": "string", "minLength": 100_000_000})),
        of_schema(&json!({"type": "array", "minItems": 100_000_000, "items": {"type": "integer"}})),
        of_schema(&json!({"type": "array", "minItems": 9_000, "items": {"type": "array", "minItems": 9_000}})),
        of_schema(&json!({"type": "string", "pattern": "^((a{1,1000}){1,1000}){1,1000}$"})),
        of_schema(&json!({"type": "string", "pattern": "(a|aa|aaa|b)*c(a|b){500}(x+x+)+y"})),
        of_schema(&json!({"type": "integer", "multipleOf": 982_451_653})),
        of_schema(&json!({"type": "number", "multipleOf": 1e-200})),
        of_schema(&json!({"type": "object", "properties": wide, "minProperties": 350})),
        of_schema(&json!({"$defs": doubling, "$ref": "#/$defs/d0"})),
        of_schema(&nested_choices),
        of_schema(&deep(r#"{"items":"#, "}", 120)),
        of_schema(&deep(r#"{"anyOf":["#, "]}", 60)),
        of_schema(&deep(r#"{"properties":{"a":"#, "}}", 60)),
        Constraint::Regex("(".repeat(20_000) + &")".repeat(20_000)),
        Constraint::Regex("[a-z]{1,1000}".repeat(2_000)),
        Constraint::Lark(format!("start: {}\"a\"{}", "(".repeat(20_000), ")".repeat(20_000))),
        Constraint::Lark("start: start start | \"a\" |".into()),
        Constraint::Lark("x".repeat(LONGEST_TEXT + 1)),
    ];
    for constraint in cases {
        let begin = Instant::now();
        let result = constraints.shared.compile(constraint.clone());
        let name: String = format!("{constraint:?}").chars().take(90).collect();
        println!(
            "{:>9.2?} {name} {}",
            begin.elapsed(),
            result.as_ref().map_or_else(|error| error.message.chars().take(100).collect(), |_| "compiled".to_owned())
        );
        assert!(begin.elapsed() < Duration::from_secs(20), "{name}");
        let Ok(grammar) = result else { continue };
        let begin = Instant::now();
        let mut matching = grammar.begin();
        let mut slowest = Duration::ZERO;
        for _ in 0..30 {
            let step = Instant::now();
            let Ok(allowed) = matching.allowed() else { break };
            let Some(token) = (0..256).rev().find(|&token| allowed.has(token)) else { break };
            if matching.take(token).unwrap_or(true) {
                break;
            }
            slowest = slowest.max(step.elapsed());
        }
        println!("          its slowest step {slowest:.2?}");
        assert!(begin.elapsed() < Duration::from_secs(20), "{name}");
    }
}

/// A schema from a seed, and nothing in it that a text could go on in without end.
fn random_schema(random: &mut Xoshiro256PlusPlus, depth: u32) -> Value {
    let kinds = if depth == 0 { 7 } else { 10 };
    match random.random_range(0..kinds) {
        0 => json!({"type": "boolean"}),
        1 => json!({"type": ["null", "boolean"]}),
        2 => json!({"type": "integer", "minimum": random.random_range(-50..5), "maximum": random.random_range(5..5000)}),
        3 => json!({"type": "number", "minimum": random.random_range(-3..0), "exclusiveMaximum": random.random_range(1..9)}),
        4 => json!({"type": "string", "minLength": random.random_range(0..3), "maxLength": random.random_range(3..9)}),
        5 => json!({"enum": ["Oslo", "Kraków", 7, null, {"a": [1]}]}),
        6 => json!({"type": "string", "pattern": "^[a-f]{2,4}-(x|yz)$"}),
        7 => {
            json!({"type": "array", "items": random_schema(random, depth - 1), "minItems": random.random_range(0..2), "maxItems": random.random_range(2..4)})
        }
        8 => json!({"anyOf": [random_schema(random, depth - 1), random_schema(random, depth - 1)]}),
        _ => {
            let names: Vec<String> =
                (0..random.random_range(1..5)).map(|i| format!("{}{i}", ["name", "é", "a b", "\"q\""][i % 4])).collect();
            let required: Vec<&String> = names.iter().filter(|_| random.random_range(0..2) == 0).collect();
            let required = json!(required);
            let properties: serde_json::Map<String, Value> =
                names.iter().map(|name| (name.clone(), random_schema(random, depth - 1))).collect();
            json!({"type": "object", "properties": properties, "required": required, "additionalProperties": false})
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn whatever_a_model_says_it_meets_the_schema(seed: u64) {
        let tokenizer = byte_tokenizer();
        let schema = random_schema(&mut Xoshiro256PlusPlus::seed_from_u64(seed), 3);
        let grammar = compiled(&tokenizer, of_schema(&schema)).map_err(|error| TestCaseError::fail(format!("{error} of {schema}")))?;
        let validator = jsonschema::validator_for(&schema).unwrap();
        for seed in 0..5 {
            let (text, ended) = babble(&tokenizer, &grammar, seed, 4_000);
            let text = String::from_utf8(text).unwrap();
            prop_assert!(ended, "{} goes on without end: {}", schema, text);
            let value: Value = serde_json::from_str(&text).map_err(|error| TestCaseError::fail(format!("{error} in {text}")))?;
            prop_assert!(validator.is_valid(&value), "{} does not meet {}", text, schema);
        }
    }
}

#[tokio::test]
async fn constraints_are_compiled_one_after_the_other_and_each_is_answered() {
    let constraints = Constraints::new(&byte_tokenizer()).unwrap();
    let both = tokio::join!(constraints.compile(Constraint::JsonObject), constraints.compile(of_schema(&json!({"not": {}}))));
    assert_eq!(both.0.unwrap().constraint(), &Constraint::JsonObject);
    assert!(both.1.unwrap_err().message.contains("not"));
}

#[test]
fn of_several_framed_schemas_one_is_met_each_with_references_of_its_own() {
    let framed = |before: &str, kind: &str| FramedJson {
        before: before.into(),
        schema: json!({"$ref": "#/$defs/it", "$defs": {"it": {"const": kind}}}).into(),
        after: if before.is_empty() { String::new() } else { "}".into() },
    };
    let constraint = Constraint::OneOf(vec![framed("", "plain"), framed("{\"call\": ", "a"), framed("{\"tell\": ", "b")]);
    let grammar = compiled(&byte_tokenizer(), constraint).unwrap();
    let said: std::collections::BTreeSet<String> =
        (0..40).map(|seed| String::from_utf8(babble(&byte_tokenizer(), &grammar, seed, 100).0).unwrap()).collect();
    assert_eq!(said.into_iter().collect::<Vec<_>>(), ["\"plain\"", r#"{"call": "a"}"#, r#"{"tell": "b"}"#]);
    assert!(compiled(&byte_tokenizer(), Constraint::OneOf(Vec::new())).unwrap_err().is_callers_fault());
}

#[test]
fn between_the_parts_of_framed_json_there_is_no_more_space_than_elsewhere() {
    let schema = json!({"type": "array", "items": {"const": 1}, "minItems": 2, "maxItems": 2});
    let framed = FramedJson { before: "x".into(), schema: schema.into(), after: String::new() };
    let grammar = compiled(&byte_tokenizer(), Constraint::OneOf(vec![framed])).unwrap();
    let mut matching = grammar.begin();
    for token in b"x[1, " {
        matching.take(u32::from(*token)).unwrap();
    }
    assert!(!matching.allowed().unwrap().has(u32::from(b' ')));
}
