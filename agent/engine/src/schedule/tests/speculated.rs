//! Answers of which what comes next is guessed: the same as without, in fewer steps where guesses hold.

use super::*;
use crate::api::Constraint;
use crate::constraint::Constraints;

/// All that is sent of an answer but times: what was said, each token with its logarithm and the likeliest beside it, and why it ended.
type Said = (String, Vec<(u32, u32, Vec<u32>)>, String);

fn said(mut events: mpsc::Receiver<GenerateEvent>) -> Said {
    let (mut answer, mut tokens) = (String::new(), Vec::new());
    loop {
        match events.blocking_recv().expect("an answer ends with Done or Failed") {
            GenerateEvent::Text { text, logprobs } => {
                answer += &text;
                tokens.extend(logprobs.into_iter().map(|at| (at.id, at.logprob.to_bits(), at.top.iter().map(|top| top.0).collect())));
            }
            GenerateEvent::Done(finish) => return (answer, tokens, format!("{:?} {}", finish.reason, finish.generated_tokens)),
            GenerateEvent::Failed(error) => return (answer, tokens, error.message),
        }
    }
}

/// The answers, asked for at once, and the steps that they took.
fn answers(model: Letters, speculation: Speculation, requests: Vec<GenerateRequest>) -> (Vec<Said>, usize) {
    let steps = Arc::clone(&model.steps);
    let scheduler = Scheduler::start_with(Box::new(model), Arc::new(byte_tokenizer()), 64, speculation).unwrap();
    let events: Vec<_> = requests.into_iter().map(|request| scheduler.generate(request).unwrap()).collect();
    let answers = events.into_iter().map(said).collect();
    let steps = steps.lock().unwrap().len();
    (answers, steps)
}

/// Steps with guesses and without; what is answered is the same.
fn steps_for_the_same(model: impl Fn() -> Letters, requests: &[GenerateRequest]) -> (usize, usize) {
    let (with, fewer) = answers(model(), Speculation::PromptLookUp, requests.to_vec());
    let (without, steps) = answers(model(), Speculation::Off, requests.to_vec());
    assert!(with == without, "{:?}", with.iter().zip(&without).find(|(with, without)| with != without));
    (fewer, steps)
}

/// Beside the likeliest, the first 29 tokens may be drawn: none that the model panics at.
fn sampled(temperature: f32, seed: u64, prompt: &str) -> GenerateRequest {
    let sampling = SamplingOptions { temperature, top_k: 30, top_p: 1.0, seed: Some(seed), ..SamplingOptions::default() };
    GenerateRequest { sampling, max_tokens: Some(150), top_logprobs: Some(2), ..request(prompt) }
}

#[test]
fn a_greedy_answer_is_the_same_with_guesses_and_takes_fewer_steps_where_they_hold() {
    let (fewer, steps) = steps_for_the_same(|| Letters::new(1, 256, 16), &[request("*a")]);
    assert!(fewer * 2 < steps, "{fewer} steps instead of {steps}");
}

#[test]
fn sampled_answers_are_the_same_with_guesses_whichever_hold() {
    for seed in 0..8 {
        // The likeliest token is drawn nearly always, in five of six draws, and in three of ten.
        for temperature in [0.5, 2.0, 4.0] {
            steps_for_the_same(|| Letters::new(1, 256, 16), &[sampled(temperature, seed, "*abcde")]);
        }
    }
}

#[test]
fn several_slots_share_the_rows_that_are_left_over() {
    let requests: Vec<_> =
        (0..12).map(|seed| sampled([0.0, 0.5, 2.0][seed as usize % 3], seed, ["*a", "*abcab", "+"][seed as usize % 3])).collect();
    for (slots, num_batch) in [(2, 16), (5, 16), (5, 3), (9, 32)] {
        steps_for_the_same(|| Letters::new(slots, 256, num_batch), &requests);
    }
}

#[test]
fn a_sequence_in_which_nothing_holds_is_hardly_guessed_at() {
    let model = Letters::new(1, 512, 16);
    let steps = Arc::clone(&model.steps);
    // Of 30 tokens, all but alike: pairs come again, and something else after them than before.
    let (said, _) = answers(model, Speculation::PromptLookUp, vec![GenerateRequest { max_tokens: Some(400), ..sampled(80.0, 1, "ab") }]);
    assert_eq!(said[0].2, "Length 400");
    let guesses = steps.lock().unwrap().iter().skip(1).filter(|batch| batch.tokens.len() > 1).count();
    assert!((1..=12).contains(&guesses), "{guesses} guesses in 400 steps");
}

#[test]
fn an_answer_ends_in_the_middle_of_a_guess_as_it_would_have_without() {
    for length in 20..60 {
        let ends = [
            GenerateRequest { max_tokens: Some(length), ..request("*abcdeabcde") },
            GenerateRequest { stop: vec!["deab".into()], ..request(&"*abcde".repeat(length as usize / 6)) },
        ];
        steps_for_the_same(|| Letters::new(1, 256, 16), &ends);
        steps_for_the_same(|| Letters::new(1, length, 16), &[request("*abcdeabcde")]);
    }
}

#[test]
fn what_a_guess_left_in_the_cache_is_not_taken_for_the_next_prompt() {
    let model = || Letters { ring: Some((3, 16)), ..Letters::new(1, 256, 8) };
    let first = GenerateRequest { max_tokens: Some(50), ..request("*abcde") };
    let answer = answers(model(), Speculation::Off, vec![first.clone()]).0.remove(0).0;
    for cut in 1..answer.len() {
        let next = GenerateRequest { max_tokens: Some(9), ..request(&format!("*abcde{}+", &answer[..cut])) };
        steps_for_the_same(model, &[first.clone(), next]);
    }
}

#[test]
fn a_ring_that_can_not_be_taken_back_is_not_guessed_at() {
    let requests = [GenerateRequest { max_tokens: Some(100), ..request("*abcde") }];
    let with_ring = |length| steps_for_the_same(|| Letters { ring: Some((3, length)), ..Letters::new(1, 256, 4) }, &requests);
    let (fewer, steps) = with_ring(8);
    assert!(fewer < steps, "{fewer} steps instead of {steps}");
    let (fewer, steps) = with_ring(4);
    assert_eq!(fewer, steps);
}

#[tokio::test]
async fn an_answer_held_to_a_grammar_is_the_same_with_guesses() {
    let constraints = Constraints::new(&byte_tokenizer()).unwrap();
    let grammar = constraints.compile(Constraint::Regex("([a-d]{3}x[a-e]{6}){8}".into())).await.unwrap();
    let held = |seed| GenerateRequest { grammar: Some(grammar.clone()), ..sampled(0.5, seed, "*abcde") };
    let requests: Vec<_> = (0..6).map(held).collect();
    let compared = tokio::task::spawn_blocking(move || steps_for_the_same(|| Letters::new(2, 256, 16), &requests));
    let (fewer, steps) = compared.await.unwrap();
    assert!(fewer < steps, "{fewer} steps instead of {steps}");
}
