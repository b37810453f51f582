//! What gpt-oss says in channels, with its own chat template.

use serde_json::json;

use super::*;

const THOUGHT: &str = "<|channel|>analysis<|message|>Hm.<|end|><|start|>assistant";
const CALL: &str = "<|channel|>commentary to=functions.weather <|constrain|>json<|message|>{\"city\": \"Oslo\"}";

fn gpt_oss(says: &str) -> Router {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/engine/testdata/reference/templates/gpt-oss.json");
    let reference: Value = serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
    let parrot = Parrot::with_template(NUM_CTX, reference["template"].as_str().unwrap()).saying(says);
    worker_of(parrot, Settings { names: ModelNames::new("birds", "parrot", Vec::new()), defaults: RequestDefaults::default() }).0
}

fn asked(more: Value) -> Value {
    let city = json!({"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"], "additionalProperties": false});
    let tools = json!([{"type": "function", "function": {"name": "weather", "description": "d", "parameters": city}}]);
    let mut body = json!({"model": "parrot", "messages": [{"role": "user", "content": "hi"}], "tools": tools, "stream": false});
    body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    body
}

#[tokio::test]
async fn a_call_comes_apart_from_what_was_thought_before_it() {
    let router = gpt_oss(&format!("{THOUGHT}{CALL}"));
    let message = post(&router, "/api/chat", asked(json!({}))).await.json()["message"].clone();
    assert_eq!((&message["thinking"], &message["content"]), (&json!("Hm."), &json!("")));
    assert_eq!(message["tool_calls"][0]["function"], json!({"index": 0, "name": "weather", "arguments": {"city": "Oslo"}}));
    let choice = post(&router, "/v1/chat/completions", asked(json!({}))).await.json()["choices"][0].clone();
    assert_eq!((&choice["finish_reason"], &choice["message"]["reasoning_content"]), (&json!("tool_calls"), &json!("Hm.")));
    assert_eq!(choice["message"]["tool_calls"][0]["function"], json!({"name": "weather", "arguments": "{\"city\":\"Oslo\"}"}));
    let events = post(&router, "/v1/chat/completions", asked(json!({"stream": true}))).await.events();
    let calls = events.iter().filter(|event| event["choices"][0]["delta"]["tool_calls"][0]["function"]["name"] == "weather");
    assert_eq!(calls.count(), 1);
}

#[tokio::test]
async fn an_answer_comes_without_its_channel_and_with_its_log_probabilities() {
    let router = gpt_oss(&format!("{THOUGHT}<|channel|>final<|message|>Yes."));
    let choice = post(&router, "/v1/chat/completions", asked(json!({"logprobs": true}))).await.json()["choices"][0].clone();
    assert_eq!((&choice["finish_reason"], &choice["message"]["content"]), (&json!("stop"), &json!("Yes.")));
    let tokens = choice["logprobs"]["content"].as_array().unwrap().iter().map(|token| token["token"].as_str().unwrap());
    assert!(tokens.collect::<String>().ends_with("Yes."));
    let lines = post(&router, "/api/chat", asked(json!({"stream": true}))).await.lines();
    let all = |field: &str| lines.iter().filter_map(|line| line["message"][field].as_str()).collect::<String>();
    assert_eq!((all("thinking").as_str(), all("content").as_str()), ("Hm.", "Yes."));
}

#[tokio::test]
async fn it_takes_how_much_to_think_and_not_that_it_should_not() {
    let router = gpt_oss("<|channel|>final<|message|>Yes.");
    for level in ["low", "medium", "high"] {
        assert_eq!(post(&router, "/api/chat", asked(json!({"think": level}))).await.status, StatusCode::OK);
        assert_eq!(post(&router, "/v1/chat/completions", asked(json!({"reasoning_effort": level}))).await.status, StatusCode::OK);
    }
    let off = post(&router, "/api/chat", asked(json!({"think": false}))).await;
    assert!(off.status == StatusCode::BAD_REQUEST && off.text.contains("`think`"), "{}", off.text);
}
