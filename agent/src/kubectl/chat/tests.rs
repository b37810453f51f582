use clap::Parser;
use serde_json::json;

use super::*;
use crate::serve::tests::worker;

#[derive(Parser)]
struct Command {
    #[command(flatten)]
    chat: ChatArgs,
}

fn args(line: &[&str]) -> ChatArgs {
    Command::parse_from([&["chat", "mdl/smollm2"], line].concat()).chat
}

/// The API of a replica, whose model repeats what it is told.
async fn serve() -> String {
    let listener = tokio::net::TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let (router, phase) = worker("default", "smollm2");
    tokio::spawn(async move {
        let _phase = phase;
        axum::serve(listener, router).await
    });
    url
}

async fn said(conversation: &mut Conversation, prompt: &str) -> Result<String, Error> {
    let mut out = Vec::new();
    conversation.say(prompt, &mut out).await?;
    Ok(String::from_utf8(out).unwrap())
}

fn provider() {
    let _ = rustls::crypto::ring::default_provider().install_default();
}

#[tokio::test]
async fn an_answer_is_printed_as_it_comes_and_the_model_is_told_what_was_said_before() {
    provider();
    let mut conversation = Conversation::new(&serve().await, "default/smollm2", &args(&[]));
    assert_eq!(said(&mut conversation, "hello").await.unwrap(), "hello\n");
    assert_eq!(said(&mut conversation, "roles").await.unwrap(), "user assistant user\n");
    conversation.clear();
    assert_eq!(said(&mut conversation, "roles").await.unwrap(), "user\n");
}

#[tokio::test]
async fn options_go_along() {
    provider();
    let options = args(&["--option", "temperature=0.25", "--option", "stop=END"]);
    assert_eq!(options.options, [("temperature".to_owned(), json!(0.25)), ("stop".to_owned(), json!("END"))]);
    let told = said(&mut Conversation::new(&serve().await, "default/smollm2", &options), "options").await.unwrap();
    assert!(told.contains("0.25"), "{told}");
}

#[tokio::test]
async fn what_breaks_off_or_is_refused_is_said_and_ends_no_conversation() {
    provider();
    let url = serve().await;
    let mut conversation = Conversation::new(&url, "default/other", &args(&[]));
    let refused = said(&mut conversation, "hello").await.unwrap_err().to_string();
    assert!(refused.contains("answered 404") && refused.contains("default/other"), "{refused}");
    let mut conversation = Conversation::new(&url, "default/smollm2", &args(&[]));
    let broken = said(&mut conversation, "fail").await.unwrap_err().to_string();
    assert!(broken.contains("/api/chat broke off: the parrot flew away"), "{broken}");
    conversation.clear();
    assert_eq!(said(&mut conversation, "hello").await.unwrap(), "hello\n");
}

#[tokio::test]
async fn what_a_terminal_would_obey_is_not_printed() {
    provider();
    let mut conversation = Conversation::new(&serve().await, "default/smollm2", &args(&[]));
    assert_eq!(said(&mut conversation, "write a\u{1b}[2Jb").await.unwrap(), "a\u{fffd}[2Jb\n");
}

#[test]
fn the_figures_are_those_that_ollamas_client_prints() {
    let last = json!({
        "done": true, "total_duration": 2_000_000_000u64, "prompt_eval_count": 10, "prompt_eval_duration": 500_000_000u64,
        "eval_count": 30, "eval_duration": 1_500_000_000u64,
    });
    let text = conversation::figures(&last);
    assert!(text.contains("eval rate:            20.00 tokens/s\n") && text.contains("total duration:       2.000s\n"), "{text}");
}

#[test]
fn a_prompt_as_an_argument_gets_one_answer_and_an_empty_one_none() {
    assert_eq!(once(&args(&["hello"])).unwrap().as_deref(), Some("hello"));
    assert!(matches!(once(&args(&[" "])), Err(ChatError::NoPrompt)));
}
