//! What runs in Pods of `make e2e`'s own: without arguments it holds a Pod's network, as the image called pause does elsewhere; `in-pod ask URL MODEL` asks a
//! model on and on, and prints a line for each answer, with how many there were so far.

use std::process::ExitCode;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tokio::signal::unix::{SignalKind, signal};
use tokio::task::JoinSet;
use tokio::time::{MissedTickBehavior, interval};

/// Between two requests.
const EVERY: Duration = Duration::from_millis(50);
/// While so many answers are waited for, nothing more is asked: a machine too busy to keep up is not what is tested.
const MOST_WAITED_FOR: usize = 4;
/// For one answer.
const ANSWER_DEADLINE: Duration = Duration::from_secs(20);

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    // The first process of a Pod ends by no signal that it does not listen for.
    let Ok(mut terminate) = signal(SignalKind::terminate()) else { return ExitCode::FAILURE };
    let work = async {
        match arguments.iter().map(String::as_str).collect::<Vec<_>>().as_slice() {
            [] => std::future::pending().await,
            ["ask", url, model] => ask_on_and_on(url, model).await,
            other => eprintln!("in-pod: not known: {other:?}; known: nothing, or `ask URL MODEL`"),
        }
    };
    tokio::select! {
        () = work => ExitCode::FAILURE,
        _ = terminate.recv() => ExitCode::SUCCESS,
    }
}

async fn ask_on_and_on(url: &str, model: &str) {
    let _ = rustls::crypto::ring::default_provider().install_default();
    let (mut asked, mut ticks) = (JoinSet::new(), interval(EVERY));
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let (mut answered, mut failed) = (0, 0);
    loop {
        tokio::select! {
            _ = ticks.tick(), if asked.len() < MOST_WAITED_FOR => {
                let (url, model) = (url.to_owned(), model.to_owned());
                asked.spawn(async move {
                    let sent = Instant::now();
                    (ask(&url, &model).await, sent.elapsed().as_millis())
                });
            }
            Some(Ok((answer, took))) = asked.join_next() => {
                let told = match answer {
                    Ok(said) => {
                        answered += 1;
                        format!("answered in {took} ms: {said:?}")
                    }
                    Err(error) => {
                        failed += 1;
                        format!("failed after {took} ms: {error}")
                    }
                };
                println!("{answered} answered, {failed} failed: {told}");
            }
        }
    }
}

/// Over a connection of its own, as from a client that has not been here before.
async fn ask(url: &str, model: &str) -> Result<String, String> {
    let client = reqwest::Client::builder().timeout(ANSWER_DEADLINE).build().map_err(told)?;
    let options = json!({"temperature": 0, "num_predict": 2});
    let body = json!({"model": model, "prompt": "The capital of Japan is", "raw": true, "stream": false, "options": options});
    let response = client.post(format!("{url}/api/generate")).json(&body).send().await.map_err(told)?;
    let (status, text) = (response.status(), response.text().await.map_err(told)?);
    let answer: Value = serde_json::from_str(&text).map_err(|_| format!("{status}: {text}"))?;
    let said = answer["response"].as_str().filter(|said| status.is_success() && !said.is_empty());
    said.map(str::to_owned).ok_or_else(|| format!("{status}: {answer}"))
}

/// With the causes, of which the last says most.
fn told(error: reqwest::Error) -> String {
    let causes = std::iter::successors(std::error::Error::source(&error), |cause| cause.source());
    causes.fold(error.to_string(), |said, cause| format!("{said}: {cause}"))
}
