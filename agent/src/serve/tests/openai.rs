use serde_json::json;

use super::*;

const CHAT: &str = "/v1/chat/completions";

fn chat(content: &str) -> Value {
    json!({"model": "parrot", "messages": [{"role": "user", "content": content}]})
}

fn with(content: &str, more: Value) -> Value {
    let mut body = chat(content);
    for (name, value) in more.as_object().unwrap() {
        body[name] = value.clone();
    }
    body
}

#[tokio::test]
async fn a_chat_is_answered_with_its_usage() {
    let answer = post(&parrot(), CHAT, chat("hello")).await.json();
    assert_eq!(answer["object"], "chat.completion");
    assert!(answer["id"].as_str().unwrap().starts_with("chatcmpl-"));
    let choice = &answer["choices"][0];
    assert_eq!((&choice["message"]["content"], &choice["finish_reason"], &choice["index"]), (&json!("hello"), &json!("stop"), &json!(0)));
    let usage = &answer["usage"];
    assert_eq!((&usage["prompt_tokens"], &usage["completion_tokens"], &usage["total_tokens"]), (&json!(22), &json!(5), &json!(27)));
}

#[tokio::test]
async fn a_stream_says_role_text_reason_and_usage_where_asked_for() {
    let answer = post(&parrot(), CHAT, with("hey", json!({"stream": true, "stream_options": {"include_usage": true}}))).await;
    assert_eq!(answer.headers["content-type"], "text/event-stream");
    let events = answer.events();
    assert_eq!(events[0]["choices"][0]["delta"]["role"], "assistant");
    let text: String = events.iter().filter_map(|event| event["choices"][0]["delta"]["content"].as_str()).collect();
    assert_eq!(text, "hey");
    assert_eq!(events[events.len() - 2]["choices"][0]["finish_reason"], "stop");
    let last = events.last().unwrap();
    assert_eq!((&last["choices"], &last["usage"]["completion_tokens"]), (&json!([]), &json!(3)));
    assert!(events.iter().all(|event| event["object"] == "chat.completion.chunk" && event["id"] == events[0]["id"]));
    let plain = post(&parrot(), CHAT, with("hey", json!({"stream": true}))).await.events();
    assert!(plain.iter().all(|event| event.get("usage").is_none()));
}

#[tokio::test]
async fn several_answers_have_an_index_and_a_seed_each_and_count_their_prompt_once() {
    let answer = post(&parrot(), CHAT, with("options", json!({"n": 3, "seed": 5}))).await.json();
    for (index, choice) in answer["choices"].as_array().unwrap().iter().enumerate() {
        assert_eq!(choice["index"], json!(index));
        let said = choice["message"]["content"].as_str().unwrap();
        assert!(said.contains(&format!("seed: Some({})", 5 + index)), "{said}");
        assert!(said.contains("temperature: 1.0") && said.contains("top_p: 1.0"), "{said}");
    }
    assert_eq!(answer["usage"]["prompt_tokens"], json!("<user>options<assistant>".len()));
    let events = post(&parrot(), CHAT, with("hey", json!({"n": 2, "stream": true}))).await.events();
    let second: String =
        events.iter().filter(|e| e["choices"][0]["index"] == 1).filter_map(|e| e["choices"][0]["delta"]["content"].as_str()).collect();
    assert_eq!(second, "hey");
}

#[tokio::test]
async fn limits_and_stops_are_kept_to() {
    let router = parrot();
    let limited = post(&router, CHAT, with("hello", json!({"max_completion_tokens": 2}))).await.json();
    assert_eq!((&limited["choices"][0]["message"]["content"], &limited["choices"][0]["finish_reason"]), (&json!("he"), &json!("length")));
    let stopped = post(&router, CHAT, with("hello", json!({"stop": "l", "max_tokens": 4}))).await.json();
    assert_eq!(stopped["choices"][0]["message"]["content"], "he");
}

#[tokio::test]
async fn log_probabilities_come_in_openais_shape() {
    let answer = post(&parrot(), CHAT, with("hi", json!({"logprobs": true, "top_logprobs": 2}))).await.json();
    let first = &answer["choices"][0]["logprobs"]["content"][0];
    assert_eq!((&first["token"], &first["bytes"], &first["top_logprobs"][1]["token"]), (&json!("h"), &json!([104]), &json!("t1")));
    let old = post(&parrot(), "/v1/completions", json!({"model": "parrot", "prompt": "hi", "logprobs": 1})).await.json();
    assert_eq!(old["choices"][0]["logprobs"]["tokens"], json!(["h", "i"]));
    assert_eq!(old["choices"][0]["logprobs"]["text_offset"], json!([0, 1]));
}

#[tokio::test]
async fn tool_calls_have_ids_and_arguments_as_text() {
    let tools = json!([{"type": "function", "function": {"name": "weather"}}]);
    let call = r#"write {"name": "weather", "arguments": {"city": "Oslo"}}"#;
    let answer = post(&parrot(), CHAT, with(call, json!({"tools": tools}))).await.json();
    let choice = &answer["choices"][0];
    assert_eq!((&choice["finish_reason"], &choice["message"]["content"]), (&json!("tool_calls"), &Value::Null));
    let called = &choice["message"]["tool_calls"][0];
    assert_eq!(called["function"], json!({"name": "weather", "arguments": "{\"city\":\"Oslo\"}"}));
    assert!(called["id"].as_str().unwrap().starts_with("call_"));
    let events = post(&parrot(), CHAT, with(call, json!({"tools": tools, "stream": true}))).await.events();
    let streamed: Vec<&Value> =
        events.iter().map(|event| &event["choices"][0]["delta"]["tool_calls"][0]).filter(|call| !call.is_null()).collect();
    assert_eq!((streamed.len(), &streamed[0]["index"], &streamed[0]["function"]["name"]), (1, &json!(0), &json!("weather")));
    assert_eq!(events.last().unwrap()["choices"][0]["finish_reason"], "tool_calls");
}

#[tokio::test]
async fn a_conversation_with_parts_tools_and_a_developer_is_read() {
    let body = json!({"model": "parrot", "messages": [
        {"role": "developer", "content": "d"},
        {"role": "assistant", "content": null, "tool_calls": [{"id": "c1", "type": "function", "function": {"name": "f", "arguments": "{\"a\":1}"}}]},
        {"role": "tool", "tool_call_id": "c1", "content": [{"type": "text", "text": "4"}]},
        {"role": "user", "content": [{"type": "text", "text": "ro"}, {"type": "text", "text": "les"}]},
    ]});
    let answer = post(&parrot(), CHAT, body).await.json();
    assert_eq!(answer["choices"][0]["message"]["content"], "system assistant tool user", "{answer}");
}

#[tokio::test]
async fn answers_are_held_to_what_response_format_says() {
    let router = parrot();
    let held = async |more: Value| {
        let answer = post(&router, CHAT, with("held", more)).await.json();
        answer["choices"].as_array().unwrap_or_else(|| panic!("{answer}")).last().unwrap()["message"]["content"].clone()
    };
    assert_eq!(held(json!({"response_format": {"type": "text"}})).await, "None");
    assert_eq!(held(json!({"response_format": {"type": "json_object"}, "n": 2})).await, "Some(JsonObject)");
    for strict in [json!(true), json!(false), Value::Null] {
        let format = json!({"type": "json_schema", "json_schema": {"name": "ship", "strict": strict, "schema": {"type": "integer"}}});
        assert_eq!(held(json!({"response_format": format})).await, r#"Some(JsonSchema(Object([("type", String("integer"))])))"#);
    }
    let tools = json!([{"type": "function", "function": {"name": "f"}}]);
    let untold = json!({"response_format": {"type": "json_object"}, "tools": tools, "tool_choice": "none"});
    assert_eq!(held(untold).await, "Some(JsonObject)");
}

#[tokio::test]
async fn what_cannot_be_honoured_is_refused_by_name() {
    let router = parrot();
    let image = json!([{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]);
    let cases = [
        (json!({"response_format": "json"}), "response_format"),
        (json!({"response_format": {"type": "xml"}}), "response_format.type"),
        (json!({"response_format": {"type": "json_schema"}}), "response_format.json_schema"),
        (json!({"response_format": {"type": "json_schema", "json_schema": {"schema": {}}}}), "response_format.json_schema.name"),
        (json!({"response_format": {"type": "json_schema", "json_schema": {"name": "n"}}}), "response_format.json_schema.schema"),
        (json!({"response_format": {"type": "json_schema", "json_schema": {"name": "n", "schema": {"not": {}}}}}), "response_format"),
        (json!({"response_format": {"type": "json_object", "schema": {}}}), "response_format.schema"),
        (json!({"tools": [{"type": "function"}]}), "tools[0].function"),
        (json!({"tools": [{"type": "custom", "custom": {"name": "c"}}]}), "tools[0].type"),
        (json!({"tool_choice": {"type": "function", "function": {"name": "f"}}}), "tool_choice"),
        (json!({"tool_choice": "any"}), "tool_choice"),
        (json!({"chat_template_kwargs": {"enable_thinking": true}}), "chat_template_kwargs.enable_thinking"),
        (json!({"chat_template_kwargs": {"colour": "red"}}), "chat_template_kwargs.colour"),
        (json!({"temperature": 3}), "temperature"),
        (json!({"n": 0}), "n"),
        (json!({"max_tokens": 0}), "max_tokens"),
        (json!({"logit_bias": {"1": 5}}), "logit_bias"),
        (json!({"stream_options": {"include_usage": true}}), "stream_options"),
        (json!({"tool_choice": "required"}), "tool_choice"),
        (json!({"top_logprobs": 3}), "top_logprobs"),
        (json!({"reasoning_effort": "high"}), "reasoning_effort"),
        (json!({"store": true}), "store"),
        (json!({"audio": {"voice": "x"}}), "audio"),
        (json!({"messages": []}), "messages"),
        (json!({"messages": null}), "messages"),
        (json!({"messages": image}), "messages[0].content[0].type"),
        (json!({"stop": ["a", ""]}), "stop"),
        (json!({"seed": "x"}), "seed"),
    ];
    for (more, name) in cases {
        let answer = post(&router, CHAT, with("x", more.clone())).await;
        assert_eq!(answer.status, StatusCode::BAD_REQUEST, "{more}");
        assert_eq!(answer.json()["error"]["param"], name, "{more}");
        assert_eq!(answer.json()["error"]["type"], "invalid_request_error");
    }
    let harmless = json!({"user": "u", "store": false, "service_tier": "auto", "response_format": {"type": "text"}, "logit_bias": {}, "metadata": {"a": "b"}});
    assert_eq!(post(&router, CHAT, with("x", harmless)).await.status, StatusCode::OK);
}

#[tokio::test]
async fn errors_have_openais_shape_and_status() {
    let router = parrot();
    let missing = post(&router, CHAT, json!({"model": "owl", "messages": []})).await;
    assert_eq!((missing.status, &missing.json()["error"]["code"]), (StatusCode::NOT_FOUND, &json!("model_not_found")));
    let long = post(&router, CHAT, chat(&"x".repeat(500))).await;
    assert_eq!((long.status, &long.json()["error"]["code"]), (StatusCode::BAD_REQUEST, &json!("context_length_exceeded")));
    let message = long.json()["error"]["message"].as_str().unwrap().to_owned();
    assert!(message.contains("517") && message.contains("400"), "{message}");
    assert_eq!(long.json()["error"]["param"], "messages");
    for stream in [false, true] {
        let busy = post(&router, CHAT, with("busy", json!({"stream": stream}))).await;
        assert_eq!((busy.status, busy.headers.contains_key("retry-after")), (StatusCode::SERVICE_UNAVAILABLE, true));
    }
    assert_eq!(post(&router, CHAT, chat(&"x".repeat(5000))).await.status, StatusCode::PAYLOAD_TOO_LARGE);
    let unknown = fetch(&router, "/v1/files").await;
    assert_eq!((unknown.status, unknown.json()["error"]["message"].is_string()), (StatusCode::NOT_FOUND, true));
}

#[tokio::test]
async fn a_stream_that_breaks_off_ends_with_an_error_and_not_with_done() {
    let answer = post(&parrot(), CHAT, with("fail", json!({"stream": true}))).await;
    assert!(answer.text.contains("the parrot flew away") && !answer.text.contains("[DONE]"), "{}", answer.text);
}

#[tokio::test]
async fn completions_answer_each_prompt() {
    let body = json!({"model": "parrot", "prompt": ["ab", "c"], "n": 2, "max_tokens": 5});
    let answer = post(&parrot(), "/v1/completions", body).await.json();
    let texts: Vec<&str> = answer["choices"].as_array().unwrap().iter().map(|choice| choice["text"].as_str().unwrap()).collect();
    assert_eq!((texts, &answer["usage"]["prompt_tokens"]), (vec!["ab", "ab", "c", "c"], &json!(3)));
    let tokens = post(&parrot(), "/v1/completions", json!({"model": "parrot", "prompt": [104, 105]})).await.json();
    assert_eq!((&tokens["object"], &tokens["choices"][0]["text"]), (&json!("text_completion"), &json!("hi")));
    let refused = post(&parrot(), "/v1/completions", json!({"model": "parrot", "prompt": []})).await;
    assert_eq!(refused.json()["error"]["param"], "prompt");
}

#[tokio::test]
async fn embeddings_come_as_numbers_or_as_the_base64_that_openais_client_asks_for() {
    let router = parrot();
    let floats = post(&router, "/v1/embeddings", json!({"model": "parrot", "input": "ab"})).await.json();
    assert_eq!(floats["data"], json!([{"object": "embedding", "index": 0, "embedding": [0.5, 0.5, 0.5, 0.5]}]));
    let base64 =
        post(&router, "/v1/embeddings", json!({"model": "parrot", "input": [[1, 2], [3]], "encoding_format": "base64"})).await.json();
    assert_eq!((&base64["data"][1]["embedding"], &base64["usage"]["total_tokens"]), (&json!("AAAAPwAAAD8AAAA/AAAAPw=="), &json!(3)));
}

#[tokio::test]
async fn models_are_listed_and_found_by_each_name() {
    let router = parrot();
    let list = fetch(&router, "/v1/models").await.json();
    assert_eq!(
        (&list["data"][0]["id"], &list["data"][1]["id"], &list["data"][0]["owned_by"]),
        (&json!("parrot"), &json!("polly:1b"), &json!("birds"))
    );
    assert_eq!(fetch(&router, "/v1/models/birds/parrot").await.json()["id"], "birds/parrot");
    assert_eq!(fetch(&router, "/v1/models/owl").await.status, StatusCode::NOT_FOUND);
}
