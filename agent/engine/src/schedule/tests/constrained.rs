//! Answers held to a grammar, of a model that would say the letters on and on.

use super::*;
use crate::api::{Constraint, Occasion};
use crate::constraint::{Constraints, Grammar};

async fn grammar(constraints: &Constraints, expression: &str) -> Option<Grammar> {
    Some(constraints.compile(Constraint::Regex(expression.into())).await.unwrap())
}

fn ask_aside(scheduler: Scheduler, request: GenerateRequest) -> (Scheduler, String, Result<Finish, EngineError>) {
    let (text, finish) = all(scheduler.generate(request).unwrap());
    (scheduler, text, finish)
}

#[tokio::test]
async fn an_answer_takes_the_likeliest_that_is_allowed_and_stops_where_nothing_more_is() {
    let constraints = Constraints::new(&byte_tokenizer()).unwrap();
    let held = GenerateRequest { grammar: grammar(&constraints, "[a-m]{4}").await, ..request("k") };
    let asked = tokio::task::spawn_blocking(move || ask_aside(scheduler(Letters::new(1, 64, 8)), held));
    let (_, text, finish) = asked.await.unwrap();
    let finish = finish.unwrap();
    // After `m` comes none of the likely ones; of the others the lowest id.
    assert_eq!((text.as_str(), finish.reason, finish.generated_tokens), ("lmab", FinishReason::Stop, 4));
}

#[tokio::test]
async fn an_answer_may_end_by_itself_only_where_its_grammar_may() {
    let constraints = Constraints::new(&byte_tokenizer()).unwrap();
    let held = GenerateRequest { grammar: grammar(&constraints, "[xyz]{4,9}").await, ..request("w") };
    let (_, text, _) = tokio::task::spawn_blocking(move || ask_aside(scheduler(Letters::new(1, 64, 8)), held)).await.unwrap();
    // The model would end after `z`, which is its third letter.
    assert_eq!(text, "xyzxyz");
}

#[tokio::test]
async fn an_answer_that_can_go_on_no_more_fails_with_why_and_nothing_else_does() {
    // There is a token for `a`, and none for `c`.
    let only_a: Vec<Vec<u8>> = (0..VOCABULARY).map(|id| if id == usize::from(b'a') { vec![b'a'] } else { Vec::new() }).collect();
    let constraints = Constraints::of(&only_a, &[END]).unwrap();
    let held = GenerateRequest { grammar: grammar(&constraints, "a(ac|aac)").await, ..request("k") };
    let (scheduler, text, finish) = tokio::task::spawn_blocking(move || ask_aside(scheduler(Letters::new(1, 64, 8)), held)).await.unwrap();
    let error = finish.unwrap_err();
    assert!(error.is_callers_fault() && error.message.contains("can't be followed any further"), "{error}");
    assert!(text.chars().all(|letter| letter == 'a'));
    let (_, text, finish) = tokio::task::spawn_blocking(move || ask_aside(scheduler, request("kx"))).await.unwrap();
    assert_eq!((text.as_str(), finish.unwrap().cached_tokens), ("yz", 1));
}

#[tokio::test]
async fn an_answer_is_free_until_the_text_after_which_it_is_held_and_does_not_end_before() {
    let constraints = Constraints::new(&byte_tokenizer()).unwrap();
    let held = |after: &str, grammar: &Option<Grammar>, prompt: &str| GenerateRequest {
        grammar: grammar.clone(),
        grammar_after: Some(after.into()),
        ..request(prompt)
    };
    let four = grammar(&constraints, "[a-m]{4}").await;
    let requests = [held("yz", &four, "w"), held("\u{2}\u{3}", &four, "x"), held("", &four, "k")];
    let asked = tokio::task::spawn_blocking(move || {
        let scheduler = scheduler(Letters::new(1, 64, 8));
        requests.map(|request| ask(&scheduler, request).0)
    });
    // The model would end after `z`; what is likeliest beside that is token 0, on which it counts on.
    assert_eq!(asked.await.unwrap(), ["xyzabcd", "yz\0\u{1}\u{2}\u{3}abcd", "lmab"]);
}

#[tokio::test]
async fn what_an_answer_comes_to_is_held_and_ends_it_and_an_answer_that_does_not_come_to_it_is_free() {
    let constraints = Constraints::new(&byte_tokenizer()).unwrap();
    let four = grammar(&constraints, "[a-m]{4}").await.unwrap();
    let occasion = |after: &[&str]| Occasion { after: after.iter().map(|text| (*text).to_owned()).collect(), grammar: four.clone() };
    let held = |occasions: Vec<Occasion>, prompt: &str| GenerateRequest { occasions, ..request(prompt) };
    let requests = [
        held(vec![occasion(&["no"]), occasion(&["bc"])], "a"),
        // One after the other, with something between them.
        held(vec![occasion(&["b", "de"])], "a"),
        held(vec![occasion(&["de", "b"])], "u"),
    ];
    let asked = tokio::task::spawn_blocking(move || {
        let scheduler = scheduler(Letters::new(1, 64, 8));
        requests.map(|request| ask(&scheduler, request).0)
    });
    assert_eq!(asked.await.unwrap(), ["bcdefg", "bcdefghi", "vwxyz"]);
}
