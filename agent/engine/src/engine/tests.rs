mod constrained;

use super::*;
use crate::api::{Finish, FinishReason, SamplingOptions};
use crate::host_plan::on_host;
use crate::test_models;
use stowage_placement::{Request, Tokens};

/// SmolLM2 on the host, two sequences at once; `None` where its file is not at hand.
fn smollm2() -> Option<Engine> {
    let request = Request { num_ctx: Tokens(1024), num_gpu: 0, parallel: 2, num_batch: 128, ..Request::default() };
    let load = on_host(&test_models::smollm2()?, &request, 2).unwrap();
    let mut reported = Vec::new();
    let engine = Engine::load(load, |progress| reported.push(progress.loaded)).unwrap();
    assert!(reported.is_sorted(), "progress goes forward");
    Some(engine)
}

fn greedy() -> SamplingOptions {
    SamplingOptions { temperature: 0.0, repeat_penalty: 1.0, ..SamplingOptions::default() }
}

fn question(engine: &Engine, content: &str, sampling: SamplingOptions) -> GenerateRequest {
    let message = ChatMessage { role: "user".into(), content: content.into(), ..ChatMessage::default() };
    let prompt = engine.tokenize(&engine.render_chat(&[message], &[]).unwrap(), true);
    GenerateRequest { prompt, sampling, max_tokens: Some(40), ..GenerateRequest::default() }
}

async fn answer(engine: &Engine, request: GenerateRequest) -> (String, Finish) {
    let mut events = engine.generate(request).unwrap();
    let mut answer = String::new();
    loop {
        match events.recv().await.unwrap() {
            GenerateEvent::Text { text, .. } => answer += &text,
            GenerateEvent::Done(finish) => return (answer, finish),
            GenerateEvent::Failed(error) => panic!("{error}"),
        }
    }
}

// What llama.cpp (llama-server, temperature 0) answers from the same file. Of the capital of France this model, asked in a chat, knows nothing there either
// ("L'Étoile, la Marseillaise, ..."); of Japan's it is sure: no token of the answer has another within 1.18 nats, so that no rounding changes it.
const JAPAN: (&str, &str) = ("What is the capital of Japan?", "The capital of Japan is Tokyo.");

#[tokio::test]
async fn smollm2_answers_a_question_and_says_the_same_again() {
    let Some(engine) = smollm2() else { return };
    let speed = engine.measure_speed().await.unwrap();
    assert!(speed.prefill > 0.0 && speed.decode.is_some_and(|decode| decode > 0.0) && speed.threads == 2, "{speed:?}");
    let (text, finish) = answer(&engine, question(&engine, JAPAN.0, greedy())).await;
    assert_eq!((text.as_str(), finish.reason), (JAPAN.1, FinishReason::Stop));
    let (again, finish) = answer(&engine, question(&engine, JAPAN.0, greedy())).await;
    assert_eq!(again, text);
    assert_eq!(finish.cached_tokens, finish.prompt_tokens - 1);
    engine.shutdown().await;
}

#[tokio::test]
async fn smollm2_completes_a_text() {
    let Some(engine) = smollm2() else { return };
    let prompt = engine.tokenize("The capital of France is", false);
    let request =
        GenerateRequest { prompt, sampling: greedy(), stop: vec!["\n".into()], max_tokens: Some(8), ..GenerateRequest::default() };
    assert_eq!(answer(&engine, request).await.0, " Paris.");
}

#[tokio::test]
async fn smollm2_repeats_itself_with_the_same_seed_only() {
    let Some(engine) = smollm2() else { return };
    let seeded = |seed| SamplingOptions { temperature: 1.0, seed: Some(seed), ..SamplingOptions::default() };
    let story = async |seed| answer(&engine, question(&engine, "Tell me a story about a ship.", seeded(seed))).await.0;
    let first = story(5).await;
    assert_eq!(story(5).await, first);
    assert_ne!(story(6).await, first);
}

#[tokio::test]
async fn smollm2_begins_an_answer_with_the_probabilities_of_llama_cpp() {
    let Some(engine) = smollm2() else { return };
    let request =
        GenerateRequest { max_tokens: Some(1), top_logprobs: Some(4), ..question(&engine, "What is the capital of France?", greedy()) };
    let Some(GenerateEvent::Text { logprobs, .. }) = engine.generate(request).unwrap().recv().await else { panic!("text comes first") };
    for ((_, text, logprob), (expected_text, expected)) in
        logprobs[0].top.iter().zip([("L", -1.852), ("The", -2.094), ("La", -2.246), ("Al", -2.767)])
    {
        assert!(text == expected_text && (logprob - expected).abs() < 0.15, "{:?}", logprobs[0].top);
    }
}

#[tokio::test]
async fn smollm2_answers_two_at_once_as_it_answers_one() {
    let Some(engine) = smollm2() else { return };
    let sum = ("What is 2 + 2?", "The answer to this classic math problem is 4.");
    let together = tokio::join!(answer(&engine, question(&engine, JAPAN.0, greedy())), answer(&engine, question(&engine, sum.0, greedy())));
    assert_eq!((together.0.0.as_str(), together.1.0.as_str()), (JAPAN.1, sum.1));
}

#[tokio::test]
async fn smollm2_embeds_like_beside_like() {
    let Some(engine) = smollm2() else { return };
    let texts = ["The cat sat on the mat.", "A cat was sitting on a rug.", "Quarterly revenue grew by nine percent."];
    let tokens: Vec<_> = texts.iter().map(|text| engine.tokenize(text, false)).collect();
    let vectors = engine.embed(&tokens).await.unwrap();
    let cosine = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(x, y)| x * y).sum::<f32>();
    assert_eq!(vectors[0].len() as u64, engine.info().embedding_length);
    assert!((cosine(&vectors[0], &vectors[0]) - 1.0).abs() < 1e-4);
    assert!(cosine(&vectors[0], &vectors[1]) > cosine(&vectors[0], &vectors[2]));
}

#[test]
fn smollm2_is_described_as_its_file_does() {
    let Some(engine) = smollm2() else { return };
    let info = engine.info();
    assert_eq!((info.architecture.as_str(), info.trained_context, info.num_ctx, info.embedding_length), ("llama", 8192, 1024, 576));
    assert_eq!(info.metadata["llama.block_count"], 30);
    assert!(!info.metadata.contains_key("tokenizer.ggml.tokens") && info.has_chat_template && info.chat_template.contains("<|im_start|>"));
    assert_eq!(engine.detokenize(&engine.tokenize("Grüße 123", false)), "Grüße 123");
}

/// A small model of BERT's family with random weights, and a text of which it is known what vector it has.
fn bert() -> (Engine, Vec<u32>, Vec<f32>) {
    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata/reference/models/bert-cls");
    let case: serde_json::Value = serde_json::from_slice(&std::fs::read(folder.join("case.json")).unwrap()).unwrap();
    let numbers = |key: &str| case["sequences"][0][key].as_array().unwrap().clone();
    let tokens = numbers("tokens").iter().map(|token| token.as_u64().unwrap() as u32).collect();
    let vector = numbers("embedding").iter().map(|x| x.as_f64().unwrap() as f32).collect();
    let request = Request { num_ctx: Tokens(128), num_batch: 32, ..Request::default() };
    let engine = Engine::load(on_host(&folder.join("model.gguf"), &request, 1).unwrap(), |_| {}).unwrap();
    (engine, tokens, vector)
}

#[tokio::test]
async fn a_model_that_embeds_gives_vectors_and_no_text() {
    let (engine, tokens, expected) = bert();
    assert_eq!(engine.measure_speed().await.unwrap().decode, None);
    let vectors = engine.embed(&[tokens.clone(), tokens[..5].to_vec(), tokens]).await.unwrap();
    assert!(vectors[0].iter().zip(&expected).all(|(found, expected)| (found - expected).abs() < 1e-3));
    assert!(vectors[0] == vectors[2] && vectors[0] != vectors[1]);
    let error = engine.embed(&[vec![3; 33]]).await.unwrap_err();
    assert_eq!(error.message, "input 0 has 33 tokens; this replica embeds texts of at most 32");
    let request = GenerateRequest { prompt: vec![3], sampling: Default::default(), ..GenerateRequest::default() };
    let error = engine.generate(request).err().unwrap();
    assert!(error.is_callers_fault() && error.message.contains("embeddings"), "{error}");
}
