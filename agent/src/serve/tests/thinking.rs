//! What a model thinks, told from what it answers.

use serde_json::json;

use super::parrot::{OPENING, THINKING};
use super::*;

fn with(content: &str, more: Value) -> Value {
    let mut body = json!({"model": "parrot", "messages": [{"role": "user", "content": content}]});
    body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    body
}

#[tokio::test]
async fn ollama_gets_what_is_thought_in_a_field_of_its_own() {
    for template in [THINKING, OPENING] {
        let router = parrot_with(template);
        let answer = post(&router, "/api/chat", with("ponder hm|yes", json!({"stream": false, "think": true}))).await.json();
        assert_eq!(answer["message"], json!({"role": "assistant", "thinking": "hm", "content": "yes"}), "{template}");
        let body = json!({"model": "parrot", "stream": false, "prompt": "ponder hm|yes"});
        let generated = post(&router, "/api/generate", body).await.json();
        assert_eq!((&generated["thinking"], &generated["response"]), (&json!("hm"), &json!("yes")));
        let off = post(&router, "/api/chat", with("ponder hm|yes", json!({"stream": false, "think": false}))).await.json();
        assert_eq!(off["message"], json!({"role": "assistant", "content": "yes"}));
    }
}

#[tokio::test]
async fn ollama_streams_what_is_thought_before_the_answer_with_the_log_probabilities_of_both() {
    let body = with("ponder hm|yes", json!({"logprobs": true}));
    let lines = post(&parrot_with(THINKING), "/api/chat", body).await.lines();
    let all = |field: &str| lines.iter().filter_map(|line| line["message"][field].as_str()).collect::<String>();
    assert_eq!((all("thinking").as_str(), all("content").as_str()), ("hm", "yes"));
    let logprobs = lines.iter().filter_map(|line| line["logprobs"].as_array()).flatten();
    let said: String = logprobs.map(|logprob| logprob["token"].as_str().unwrap()).collect();
    assert_eq!(said, "<think>\nhm\n</think>\n\nyes");
}

#[tokio::test]
async fn openai_gets_what_is_thought_as_reasoning_content() {
    for template in [THINKING, OPENING] {
        let router = parrot_with(template);
        let answer = post(&router, "/v1/chat/completions", with("ponder hm|yes", json!({"logprobs": true}))).await.json();
        let choice = &answer["choices"][0];
        assert_eq!((&choice["message"]["reasoning_content"], &choice["message"]["content"]), (&json!("hm"), &json!("yes")));
        let tokens: Vec<&str> =
            choice["logprobs"]["content"].as_array().unwrap().iter().map(|token| token["token"].as_str().unwrap()).collect();
        assert_eq!(tokens.concat().trim_start(), "yes");
        let events = post(&router, "/v1/chat/completions", with("ponder hm|yes", json!({"stream": true}))).await.events();
        let all = |field: &str| events.iter().filter_map(|event| event["choices"][0]["delta"][field].as_str()).collect::<String>();
        assert_eq!((all("reasoning_content").as_str(), all("content").as_str()), ("hm", "yes"));
        for off in [json!({"reasoning_effort": "none"}), json!({"chat_template_kwargs": {"enable_thinking": false}})] {
            let message = post(&router, "/v1/chat/completions", with("ponder hm|yes", off)).await.json()["choices"][0]["message"].clone();
            assert_eq!((&message["content"], message.get("reasoning_content")), (&json!("yes"), None));
        }
    }
}

#[tokio::test]
async fn an_answer_is_held_to_its_format_from_the_end_of_what_is_thought_on() {
    for template in [THINKING, OPENING] {
        let router = parrot_with(template);
        let held = async |more: Value| {
            let mut body = with("after", json!({"stream": false, "format": "json"}));
            body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
            post(&router, "/api/chat", body).await.json()["message"]["content"].clone()
        };
        assert_eq!(held(json!({})).await, r#"Some("</think>")"#, "{template}");
        assert_eq!(held(json!({"think": false})).await, "None", "{template}");
    }
    let plain = with("after", json!({"stream": false, "format": "json"}));
    assert_eq!(post(&parrot(), "/api/chat", plain).await.json()["message"]["content"], "None");
}

#[tokio::test]
async fn a_model_that_thinks_says_so_and_knows_no_levels() {
    let router = parrot_with(THINKING);
    let shown = post(&router, "/api/show", json!({"model": "parrot"})).await.json();
    assert_eq!(shown["capabilities"], json!(["completion", "tools", "thinking"]));
    let level = post(&router, "/v1/chat/completions", with("x", json!({"reasoning_effort": "high"}))).await;
    assert_eq!((level.status, &level.json()["error"]["param"]), (StatusCode::BAD_REQUEST, &json!("reasoning_effort")));
    let raw = post(&router, "/api/generate", json!({"model": "parrot", "prompt": "x", "raw": true, "think": true})).await;
    assert!(raw.status == StatusCode::BAD_REQUEST && raw.text.contains("`think`"), "{}", raw.text);
}
