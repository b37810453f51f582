//! Requests that went wrong in many ways: each gets an answer, and none that blames the server. `fuzz/` goes on with it for longer.

use std::fs;
use std::path::Path;

use rand::SeedableRng;
use rand::rngs::StdRng;
use serde_json::json;

use super::parrot::THINKING;
use super::*;
use crate::serve::fuzzed::{Target, changed};

/// Requests with about every field that there is, and what failed once.
fn corpus() -> Vec<Vec<u8>> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz/corpus/requests");
    let mut paths: Vec<_> = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    paths.into_iter().map(|path| fs::read(path).unwrap()).collect()
}

#[test]
fn every_disturbed_request_is_answered_and_none_is_the_servers_fault() {
    let (target, corpus, mut rng) = (Target::new(), corpus(), StdRng::seed_from_u64(1));
    corpus.iter().for_each(|input| drop(target.request(input)));
    for run in 0..2000 {
        target.request(&changed(&mut rng, &corpus[run % corpus.len()]));
    }
}

#[tokio::test]
async fn every_request_of_the_corpus_is_honoured_and_every_field_that_is_not_known_refused_by_its_name() {
    for input in corpus() {
        let text = String::from_utf8(input).unwrap();
        let (path, body) = text.split_once('\n').unwrap();
        let Ok(mut body) = serde_json::from_str::<Value>(body) else { continue };
        let answer = post(&parrot_with(THINKING), path, body.clone()).await;
        assert_eq!(answer.status, StatusCode::OK, "{path} {}", answer.text);
        body["frobnicate"] = json!(1);
        let answer = post(&parrot_with(THINKING), path, body).await;
        assert!(answer.status == StatusCode::BAD_REQUEST && answer.text.contains("`frobnicate`"), "{path} {}", answer.text);
    }
}
