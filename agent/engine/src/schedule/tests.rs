mod constrained;
mod speculated;

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::sync::mpsc as std_mpsc;
use std::time::Duration;

use super::*;
use crate::api::{Finish, FinishReason, SamplingOptions};
use crate::tokenizer::tests::byte_tokenizer;

const END: u32 = 258;
const VOCABULARY: usize = 260;

/// A model of letters: after a letter comes the next one, after `z` the end. A `+` makes the next letter depend on the whole sequence, a `!` panics,
/// a `?` is an error, and after a `*` five letters go round and round, with another one now and then. It checks that what it is told to have in the
/// cache is there.
struct Letters {
    cells: Vec<Vec<u32>>,
    rings: Vec<Ring>,
    copies: BTreeMap<(u32, usize), Ring>,
    /// How far a token looks back into the ring, and how many tokens are there.
    ring: Option<(usize, usize)>,
    num_ctx: u32,
    num_batch: u32,
    output: Vec<f32>,
    steps: Arc<Mutex<Vec<Batch>>>,
    /// Each step waits for a word, until nobody can give one.
    gate: Option<std_mpsc::Receiver<()>>,
    /// Bytes of weights that are read from a file as yet, and how many were brought over each time.
    in_file: usize,
    brought: Arc<Mutex<Vec<usize>>>,
}

/// What a layer with a window remembers: tokens from place 0, those before `oldest` written over.
#[derive(Clone, Default)]
struct Ring {
    tokens: Vec<u32>,
    oldest: usize,
}

impl Ring {
    /// Writes a token, which must find all that it looks back on, as it is in `cells`.
    fn write(&mut self, token: u32, position: usize, cells: &[u32], (window, length): (usize, usize)) {
        for seen in (position + 1).saturating_sub(window)..position {
            assert!(seen >= self.oldest && self.tokens.get(seen) == cells.get(seen), "place {seen} is seen from {position}, and is lost");
        }
        self.tokens.truncate(position);
        self.tokens.push(token);
        self.oldest = self.oldest.max((position + 1).saturating_sub(length));
    }
}

impl Letters {
    fn new(slots: usize, num_ctx: u32, num_batch: u32) -> Letters {
        Letters {
            cells: vec![Vec::new(); slots],
            rings: vec![Ring::default(); slots],
            copies: BTreeMap::new(),
            ring: None,
            num_ctx,
            num_batch,
            output: Vec::new(),
            steps: Arc::default(),
            gate: None,
            in_file: 0,
            brought: Arc::default(),
        }
    }

    fn write(&mut self, batch: &Batch) {
        if let Some(gate) = &self.gate {
            gate.recv().ok();
        }
        self.steps.lock().unwrap().push(batch.clone());
        assert!(!batch.tokens.is_empty() && batch.tokens.len() <= self.num_batch as usize && batch.wanted.len() <= self.max_wanted());
        for at in &batch.tokens {
            assert!(at.position < self.num_ctx, "beyond the cache");
            let cells = &mut self.cells[at.slot as usize];
            assert!(at.position as usize <= cells.len(), "a place before this one was never written");
            cells.truncate(at.position as usize);
            cells.push(at.token);
            if let Some(ring) = self.ring {
                if at.position == 0 {
                    self.rings[at.slot as usize] = Ring::default();
                }
                self.rings[at.slot as usize].write(at.token, at.position as usize, cells, ring);
            }
            assert!(at.token != u32::from(b'!'), "an exclamation mark");
        }
    }
}

fn next(sequence: &[u32]) -> u32 {
    let last = sequence[sequence.len() - 1];
    if sequence.contains(&u32::from(b'+')) {
        return u32::from(b'a') + sequence.iter().sum::<u32>() % 26;
    }
    if sequence.contains(&u32::from(b'*')) {
        let round = if sequence.len().is_multiple_of(17) { sequence.len() as u32 % 26 } else { (last + 4) % 5 };
        return u32::from(b'a') + round;
    }
    if last == u32::from(b'z') { END } else { last + 1 }
}

impl Model for Letters {
    fn in_file(&self) -> usize {
        self.in_file
    }

    fn bring_over(&mut self, bytes: usize) {
        let count = bytes.min(self.in_file);
        self.in_file -= count;
        self.brought.lock().unwrap().push(count);
    }
    fn step(&mut self, batch: &Batch) -> Result<&[f32], EngineError> {
        self.write(batch);
        if batch.tokens.iter().any(|at| at.token == u32::from(b'?')) {
            return Err(EngineError::new(Reason::InferenceFailed, "a question mark"));
        }
        self.output.clear();
        for &row in &batch.wanted {
            let at = batch.tokens[row as usize];
            let mut logits = vec![0.0; VOCABULARY];
            // It never says by itself what it fails at.
            [b'!', b'?'].iter().for_each(|&mark| logits[mark as usize] = -1e3);
            logits[next(&self.cells[at.slot as usize][..=at.position as usize]) as usize] = 10.0;
            self.output.extend(logits);
        }
        Ok(&self.output)
    }

    fn embed_step(&mut self, batch: &Batch) -> Result<&[f32], EngineError> {
        self.write(batch);
        self.output = batch.tokens.iter().flat_map(|at| [at.token as f32, at.position as f32]).collect();
        Ok(&self.output)
    }

    fn self_test(&mut self) -> Result<(), EngineError> {
        Ok(())
    }
    fn measure_speed(&mut self) -> Result<MeasuredSpeed, EngineError> {
        assert_eq!(self.in_file, 0);
        self.cells.iter_mut().for_each(Vec::clear);
        Ok(MeasuredSpeed::default())
    }

    fn can_rewind(&self, from: usize, to: usize) -> bool {
        self.ring.is_none_or(|(window, length)| to == 0 || (to + 1).saturating_sub(window) >= from.saturating_sub(length))
    }

    fn checkpoint(&mut self, slot: u32, index: usize, copy: Checkpoint) {
        match copy {
            Checkpoint::Keep => drop(self.copies.insert((slot, index), self.rings[slot as usize].clone())),
            Checkpoint::PutBack => self.rings[slot as usize] = self.copies[&(slot, index)].clone(),
        }
    }

    fn generates(&self) -> bool {
        true
    }

    fn pooling(&self) -> Pooling {
        Pooling::Mean
    }

    fn longest_text(&self) -> u32 {
        self.num_ctx
    }

    fn vocabulary(&self) -> usize {
        VOCABULARY
    }

    fn embedding(&self) -> usize {
        2
    }

    fn slots(&self) -> u32 {
        self.cells.len() as u32
    }

    fn num_ctx(&self) -> u32 {
        self.num_ctx
    }

    fn num_batch(&self) -> u32 {
        self.num_batch
    }

    fn max_wanted(&self) -> usize {
        self.cells.len().max(8)
    }
}

fn scheduler(model: Letters) -> Scheduler {
    Scheduler::start(Box::new(model), Arc::new(byte_tokenizer()), 4).unwrap()
}

/// A scheduler whose model takes a step for each word sent.
fn gated(mut model: Letters) -> (Scheduler, std_mpsc::Sender<()>, Arc<Mutex<Vec<Batch>>>) {
    let (go, gate) = std_mpsc::channel();
    model.gate = Some(gate);
    let steps = Arc::clone(&model.steps);
    (scheduler(model), go, steps)
}

fn letters(text: &str) -> Vec<u32> {
    text.bytes().map(u32::from).collect()
}

fn request(prompt: &str) -> GenerateRequest {
    let sampling = SamplingOptions { temperature: 0.0, repeat_penalty: 1.0, ..SamplingOptions::default() };
    GenerateRequest { prompt: letters(prompt), sampling, ..GenerateRequest::default() }
}

fn all(mut events: mpsc::Receiver<GenerateEvent>) -> (String, Result<Finish, EngineError>) {
    let mut answer = String::new();
    loop {
        match events.blocking_recv().expect("an answer ends with Done or Failed") {
            GenerateEvent::Text { text, .. } => answer += &text,
            GenerateEvent::Done(finish) => return (answer, Ok(finish)),
            GenerateEvent::Failed(error) => return (answer, Err(error)),
        }
    }
}

fn ask(scheduler: &Scheduler, request: GenerateRequest) -> (String, Finish) {
    let (text, finish) = all(scheduler.generate(request).unwrap());
    (text, finish.unwrap())
}

#[test]
fn an_answer_is_generated_to_the_models_end() {
    let (text, finish) = ask(&scheduler(Letters::new(1, 64, 8)), request("abw"));
    assert_eq!(text, "xyz");
    assert_eq!((finish.reason, finish.prompt_tokens, finish.generated_tokens, finish.cached_tokens), (FinishReason::Stop, 3, 3, 0));
}

#[test]
fn an_answer_ends_before_a_stop_string_and_at_max_tokens() {
    let scheduler = scheduler(Letters::new(1, 64, 8));
    let (text, finish) = ask(&scheduler, GenerateRequest { stop: vec!["fg".into()], ..request("a") });
    assert_eq!((text.as_str(), finish.reason), ("bcde", FinishReason::Stop));
    let (text, finish) = ask(&scheduler, GenerateRequest { max_tokens: Some(2), ..request("a") });
    assert_eq!((text.as_str(), finish.reason, finish.generated_tokens), ("bc", FinishReason::Length, 2));
    let (text, finish) = ask(&scheduler, GenerateRequest { max_tokens: Some(0), ..request("a") });
    assert_eq!((text.as_str(), finish.reason, finish.generated_tokens), ("", FinishReason::Length, 0));
}

#[test]
fn weights_are_brought_over_little_by_little_between_steps_and_hold_nobody_up() {
    let model = Letters { in_file: 1 << 60, ..Letters::new(1, 64, 8) };
    let brought = Arc::clone(&model.brought);
    let endless = scheduler(model);
    // More than can ever be: who asks is answered all the same, and the thread ends when it is to.
    assert_eq!(ask(&endless, request("abw")).0, "xyz");
    let while_busy = brought.lock().unwrap().iter().filter(|bytes| **bytes == 1 << 54).count();
    assert!(while_busy >= 3, "after {while_busy} steps");
    tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(endless.shutdown());
    let few = Letters { in_file: 40 << 20, ..Letters::new(1, 64, 8) };
    let brought = Arc::clone(&few.brought);
    let few = scheduler(few);
    ask(&few, request("abw"));
    let deadline = Instant::now() + Duration::from_secs(60);
    while brought.lock().unwrap().iter().sum::<usize>() < 40 << 20 {
        assert!(Instant::now() < deadline, "{:?}", brought.lock().unwrap());
        std::thread::yield_now();
    }
    drop(few);
}

#[test]
fn what_was_held_back_for_a_stop_string_is_shown_at_the_end() {
    let (text, _) = ask(&scheduler(Letters::new(1, 64, 8)), GenerateRequest { stop: vec!["yzzz".into()], ..request("w") });
    assert_eq!(text, "xyz");
}

#[test]
fn an_answer_that_reaches_the_end_of_the_context_ends_there() {
    let (text, finish) = ask(&scheduler(Letters::new(1, 8, 8)), request("abc"));
    assert_eq!((text.as_str(), finish.reason), ("defgh", FinishReason::Length));
}

#[test]
fn a_prompt_that_does_not_fit_is_refused_with_both_numbers() {
    let error = scheduler(Letters::new(1, 8, 8)).generate(request("abcdefgh")).unwrap_err();
    assert_eq!(error.reason, Reason::PromptTooLong);
    assert!(error.message.contains("8 tokens") && error.message.contains("num_ctx 8"), "{error}");
    assert!(error.is_callers_fault() && !error.is_busy());
}

#[test]
fn an_empty_prompt_a_token_that_is_none_and_options_without_meaning_are_refused() {
    let scheduler = scheduler(Letters::new(1, 8, 8));
    let refused = |request| scheduler.generate(request).unwrap_err().message;
    assert_eq!(refused(request("")), "the prompt has no tokens");
    assert!(refused(GenerateRequest { prompt: vec![260], ..request("") }).contains("token 260"));
    let sampling = SamplingOptions { min_p: -1.0, ..SamplingOptions::default() };
    assert!(refused(GenerateRequest { sampling, ..request("a") }).contains("min_p"));
}

#[test]
fn a_long_prompt_is_read_in_parts_and_the_others_go_on_meanwhile() {
    let (scheduler, go, steps) = gated(Letters::new(2, 64, 4));
    let short = scheduler.generate(request("s")).unwrap();
    go.send(()).unwrap();
    let long = scheduler.generate(request("aaaaaaaaaaw")).unwrap();
    drop(go);
    assert_eq!(all(short).0, "tuvwxyz");
    assert_eq!(all(long).0, "xyz");
    let steps = steps.lock().unwrap();
    let both = steps.iter().filter(|batch| batch.tokens[0].slot != batch.tokens[batch.tokens.len() - 1].slot).collect::<Vec<_>>();
    // The next token of the one, and three of the other's prompt: a whole batch.
    assert!(both.iter().any(|batch| batch.tokens.len() == 4 && batch.wanted == [0]), "{steps:?}");
}

#[test]
fn answers_at_once_are_those_that_come_one_by_one() {
    let prompts = ["+a", "+bcdefgh", "s+", "w", "mm"];
    let limited = |prompt| GenerateRequest { max_tokens: Some(9), ..request(prompt) };
    let alone: Vec<_> = prompts.iter().map(|prompt| ask(&scheduler(Letters::new(1, 64, 4)), limited(prompt)).0).collect();
    let together = Scheduler::start(Box::new(Letters::new(3, 64, 4)), Arc::new(byte_tokenizer()), 64).unwrap();
    let receivers: Vec<_> = prompts.iter().map(|prompt| together.generate(limited(prompt)).unwrap()).collect();
    assert_eq!(receivers.into_iter().map(|events| all(events).0).collect::<Vec<_>>(), alone);
}

#[test]
fn with_more_slots_than_a_batch_has_room_each_has_its_turn() {
    let scheduler = scheduler(Letters::new(4, 64, 2));
    let receivers: Vec<_> = ["m", "n", "o", "p"].map(|prompt| scheduler.generate(request(prompt)).unwrap()).into();
    let answers: Vec<_> = receivers.into_iter().map(|events| all(events).0).collect();
    assert_eq!(answers, ["nopqrstuvwxyz", "opqrstuvwxyz", "pqrstuvwxyz", "qrstuvwxyz"]);
}

#[test]
fn the_next_turn_of_a_chat_reads_only_what_is_new() {
    let chat = scheduler(Letters::new(2, 64, 8));
    let (answer, _) = ask(&chat, GenerateRequest { max_tokens: Some(4), ..request("abcd+") });
    let next_turn = || GenerateRequest { max_tokens: Some(4), ..request(&format!("abcd+{answer}xy")) };
    let (second, finish) = ask(&chat, next_turn());
    // The last token of an answer is not read unless another follows.
    assert_eq!(finish.cached_tokens, 5 + 3);
    let (fresh, finish) = ask(&scheduler(Letters::new(1, 64, 8)), next_turn());
    assert_eq!((finish.cached_tokens, second), (0, fresh));
}

/// A model whose layers look back 3 tokens and keep 8.
fn with_ring(num_ctx: u32) -> Letters {
    Letters { ring: Some((3, 8)), ..Letters::new(1, num_ctx, 4) }
}

#[test]
fn a_question_that_is_asked_again_goes_on_from_the_copy_where_the_answer_has_written_over_it() {
    let chat = scheduler(with_ring(64));
    let question = || GenerateRequest { max_tokens: Some(30), ..request("abcdefghij+") };
    let (answer, first) = ask(&chat, question());
    let (again, second) = ask(&chat, question());
    assert_eq!((first.cached_tokens, second.cached_tokens, second.lost_tokens), (0, 10, 0));
    assert_eq!(again, answer);
    // A last question that is asked differently, and then the first one once more: two copies are kept.
    let other = || GenerateRequest { max_tokens: Some(30), ..request("abcdefghik+") };
    assert_eq!(ask(&chat, other()).1.cached_tokens, 9);
    assert_eq!(ask(&chat, question()).0, answer);
}

#[test]
fn what_no_copy_reaches_is_read_again_and_said() {
    let chat = scheduler(with_ring(64));
    ask(&chat, GenerateRequest { max_tokens: Some(30), ..request("abcdefghij+") });
    let (answer, finish) = ask(&chat, GenerateRequest { max_tokens: Some(9), ..request("abyz+") });
    assert_eq!((finish.cached_tokens, finish.lost_tokens), (0, 2));
    let (fresh, _) = ask(&scheduler(with_ring(64)), GenerateRequest { max_tokens: Some(9), ..request("abyz+") });
    assert_eq!(answer, fresh);
}

#[test]
fn what_was_written_before_a_question_was_taken_back_is_lost_to_the_next_all_the_same() {
    let chat = scheduler(with_ring(64));
    ask(&chat, GenerateRequest { max_tokens: Some(5), ..request("abcdefghij") });
    ask(&chat, GenerateRequest { max_tokens: Some(1), ..request("abcdefgh+") });
    // Of 14 tokens the last 8 are kept, and the eighth would look back on the sixth: only a copy has it.
    let (answer, finish) = ask(&chat, GenerateRequest { max_tokens: Some(9), ..request("abcdefg+") });
    assert_eq!((finish.cached_tokens, finish.lost_tokens), (7, 0));
    assert_eq!(answer, ask(&scheduler(with_ring(64)), GenerateRequest { max_tokens: Some(9), ..request("abcdefg+") }).0);
}

#[test]
fn the_next_turn_of_a_chat_needs_no_copy() {
    let chat = scheduler(with_ring(64));
    let (answer, _) = ask(&chat, GenerateRequest { max_tokens: Some(20), ..request("abcd+") });
    let (_, finish) = ask(&chat, GenerateRequest { max_tokens: Some(4), ..request(&format!("abcd+{answer}xy")) });
    assert_eq!((finish.cached_tokens, finish.lost_tokens), (5 + 19, 0));
}

#[test]
fn a_short_common_beginning_does_not_cost_another_chat_its_history() {
    let scheduler = scheduler(Letters::new(2, 64, 8));
    ask(&scheduler, request("abcdefghijw"));
    ask(&scheduler, request("abzyxvutsrw"));
    let (_, finish) = ask(&scheduler, request("abcdefghijwx"));
    assert_eq!(finish.cached_tokens, 11);
}

#[test]
fn dropping_the_receiver_ends_the_generation_within_a_step() {
    let (scheduler, go, steps) = gated(Letters::new(1, 64, 8));
    let mut cancelled = scheduler.generate(request("ab")).unwrap();
    go.send(()).unwrap();
    assert!(matches!(cancelled.blocking_recv(), Some(GenerateEvent::Text { .. })));
    drop(cancelled);
    let after = scheduler.generate(request("x")).unwrap();
    drop(go);
    assert_eq!(all(after).0, "yz");
    let of_cancelled = steps.lock().unwrap().iter().take_while(|batch| batch.tokens[0].token != u32::from(b'x')).count();
    assert!(of_cancelled <= 2, "{of_cancelled} steps");
}

#[test]
fn a_reader_that_does_not_read_holds_up_nobody() {
    let scheduler = scheduler(Letters::new(1, 64, 8));
    let unread = scheduler.generate(request("a")).unwrap();
    assert_eq!(ask(&scheduler, request("w")).0, "xyz");
    assert_eq!(all(unread).0, "bcdefghijklmnopqrstuvwxyz");
}

#[test]
fn a_panic_in_a_step_fails_what_was_being_answered_and_nothing_after() {
    let scheduler = scheduler(Letters::new(2, 64, 8));
    let (_, failed) = all(scheduler.generate(request("a!b")).unwrap());
    let error = failed.unwrap_err();
    assert_eq!(error.reason, Reason::InferenceFailed);
    assert!(error.message.contains("an exclamation mark"), "{error}");
    assert_eq!(ask(&scheduler, request("aw")).0, "xyz");
}

#[test]
fn an_error_of_a_step_reaches_whoever_asked() {
    let scheduler = scheduler(Letters::new(1, 64, 8));
    let (_, failed) = all(scheduler.generate(request("a?")).unwrap());
    assert_eq!(failed.unwrap_err().message, "a question mark");
    let (text, finish) = ask(&scheduler, request("aw"));
    assert_eq!((text.as_str(), finish.cached_tokens), ("xyz", 0));
}

#[test]
fn a_full_queue_says_so_and_has_room_again_when_those_who_wait_give_up() {
    let (scheduler, go, _) = gated(Letters::new(1, 64, 8));
    let running = scheduler.generate(request("a")).unwrap();
    // The thread may or may not have taken the first one out of the queue yet.
    let mut waiting = Vec::new();
    let error = loop {
        match scheduler.generate(request("w")) {
            Ok(events) => waiting.push(events),
            Err(error) => break error,
        }
        assert!(waiting.len() <= 5);
    };
    assert!(error.is_busy() && error.reason == Reason::QueueFull, "{error}");
    waiting.clear();
    let again = scheduler.generate(request("x")).unwrap();
    drop(go);
    assert_eq!(all(running).0.len(), 25);
    assert_eq!(all(again).0, "yz");
}

#[tokio::test]
async fn shutdown_finishes_what_was_taken_and_then_frees_the_model() {
    let (scheduler, go, steps) = gated(Letters::new(1, 64, 8));
    let (running, waiting) = (scheduler.generate(request("a")).unwrap(), scheduler.generate(request("w")).unwrap());
    drop(go);
    scheduler.shutdown().await;
    // The model had the other handle.
    assert_eq!(Arc::strong_count(&steps), 1);
    assert_eq!(scheduler.generate(request("a")).unwrap_err().reason, Reason::Draining);
    let answers = tokio::task::spawn_blocking(|| (all(running).0.len(), all(waiting).0)).await.unwrap();
    assert_eq!(answers, (25, "xyz".to_owned()));
    scheduler.shutdown().await;
}

#[tokio::test]
async fn embeddings_are_means_of_length_one_in_the_order_of_the_inputs() {
    let scheduler = scheduler(Letters::new(1, 64, 2));
    // Hidden states are (token, position): the means are (4, 1) and (3, 0).
    let vectors = scheduler.embed(&[vec![3, 4, 5], vec![3]]).await.unwrap();
    let length = 17f32.sqrt();
    assert!((vectors[0][0] - 4.0 / length).abs() < 1e-6 && (vectors[0][1] - 1.0 / length).abs() < 1e-6, "{vectors:?}");
    assert_eq!(vectors[1], [1.0, 0.0]);
    assert!(scheduler.embed(&[]).await.unwrap().is_empty());
    assert_eq!(scheduler.embed(&[vec![1; 65]]).await.unwrap_err().reason, Reason::PromptTooLong);
}

#[tokio::test]
async fn embedding_and_answering_take_turns() {
    let scheduler = scheduler(Letters::new(2, 64, 2));
    let answer = scheduler.generate(request("a")).unwrap();
    assert_eq!(scheduler.embed(&vec![vec![1; 9]; 5]).await.unwrap().len(), 5);
    assert_eq!(tokio::task::spawn_blocking(|| all(answer).0.len()).await.unwrap(), 25);
}

#[tokio::test]
async fn a_self_test_waits_until_nothing_is_active_and_forgets_what_was_cached() {
    let scheduler = scheduler(Letters::new(2, 64, 8));
    let answer = scheduler.generate(request("abcdefgh")).unwrap();
    scheduler.self_test().await.unwrap();
    let (first, second) = tokio::task::spawn_blocking(move || (all(answer), ask(&scheduler, request("abcdefgh")))).await.unwrap();
    assert_eq!(first.0, second.0);
    assert_eq!(second.1.cached_tokens, 0);
}

#[tokio::test]
async fn a_speed_is_measured_when_all_weights_are_in_memory_and_lets_others_go_first() {
    let scheduler = scheduler(Letters { in_file: 40 << 20, ..Letters::new(2, 64, 8) });
    let answer = scheduler.generate(request("a")).unwrap();
    let (measured, ()) = tokio::join!(scheduler.measure_speed(), async {
        let later = scheduler.generate(request("a")).unwrap();
        let answers = tokio::task::spawn_blocking(|| [all(answer).0, all(later).0]);
        assert_eq!(answers.await.unwrap().map(|text| text.len()), [25; 2]);
    });
    measured.unwrap();
    scheduler.shutdown().await;
    assert_eq!(scheduler.measure_speed().await.unwrap_err().reason, Reason::Draining);
}

#[tokio::test]
async fn who_waits_for_a_speed_hears_when_the_replica_ends() {
    let scheduler = scheduler(Letters { in_file: 1 << 60, ..Letters::new(1, 64, 8) });
    let (measured, ()) = tokio::join!(scheduler.measure_speed(), scheduler.shutdown());
    assert!(measured.is_err());
}

#[test]
fn log_probabilities_come_with_the_text() {
    let mut events = scheduler(Letters::new(1, 64, 8)).generate(GenerateRequest { top_logprobs: Some(2), ..request("y") }).unwrap();
    let Some(GenerateEvent::Text { text, logprobs }) = events.blocking_recv() else { panic!("text comes first") };
    assert_eq!((text.as_str(), logprobs.len()), ("z", 1));
    let expected = 10.0 - (10f32.exp() + 259.0).ln();
    assert!((logprobs[0].logprob - expected).abs() < 1e-4);
    assert_eq!(logprobs[0].top.iter().map(|(_, text, _)| text.as_str()).collect::<Vec<_>>(), ["z", "\u{0}"]);
}

#[test]
fn the_same_seed_gives_the_same_answer() {
    let scheduler = scheduler(Letters::new(2, 64, 8));
    let seeded = |seed| {
        let sampling = SamplingOptions { temperature: 8.0, top_k: 0, top_p: 1.0, seed: Some(seed), ..SamplingOptions::default() };
        ask(&scheduler, GenerateRequest { sampling, max_tokens: Some(20), ..request("a") }).0
    };
    assert_eq!(seeded(3), seeded(3));
    assert_ne!(seeded(3), seeded(4));
}
