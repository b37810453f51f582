use serde_json::json;

use super::*;

fn chat(content: &str) -> Value {
    json!({"model": "parrot", "stream": false, "messages": [{"role": "user", "content": content}]})
}

#[tokio::test]
async fn a_chat_is_answered_with_measured_counts_and_times() {
    let answer = post(&parrot(), "/api/chat", chat("hello")).await;
    assert_eq!(answer.status, StatusCode::OK);
    let body = answer.json();
    assert_eq!(body["message"], json!({"role": "assistant", "content": "hello"}));
    assert_eq!((&body["done"], &body["done_reason"], &body["model"]), (&json!(true), &json!("stop"), &json!("parrot")));
    assert_eq!((&body["prompt_eval_count"], &body["eval_count"]), (&json!("<user>hello<assistant>".len()), &json!(5)));
    assert_eq!(
        (&body["load_duration"], &body["prompt_eval_duration"], &body["eval_duration"]),
        (&json!(1_000), &json!(2_000), &json!(3_000))
    );
    assert!(body["total_duration"].as_u64().unwrap() > 0);
}

#[tokio::test]
async fn a_chat_streams_one_object_a_line_unless_asked_not_to() {
    let answer = post(&parrot(), "/api/chat", json!({"model": "parrot", "messages": [{"role": "user", "content": "hey"}]})).await;
    assert_eq!(answer.headers["content-type"], "application/x-ndjson");
    let lines = answer.lines();
    let text: String = lines.iter().map(|line| line["message"]["content"].as_str().unwrap()).collect();
    assert_eq!((text.as_str(), lines.len()), ("hey", 4));
    assert!(lines[..3].iter().all(|line| line["done"] == false));
    assert_eq!(lines[3]["done_reason"], "stop");
}

#[tokio::test]
async fn generate_reads_system_and_prompt_through_the_template_and_raw_prompts_as_they_are() {
    let router = parrot();
    let templated = post(&router, "/api/generate", json!({"model": "polly:1b", "stream": false, "system": "s", "prompt": "roles"})).await;
    assert_eq!(templated.json()["response"], "system user");
    let raw = post(&router, "/api/generate", json!({"model": "birds/parrot:latest", "stream": false, "raw": true, "prompt": "abc"})).await;
    assert_eq!((&raw.json()["response"], &raw.json()["prompt_eval_count"]), (&json!("abc"), &json!(3)));
}

#[tokio::test]
async fn an_empty_prompt_says_that_the_model_is_loaded() {
    for (path, body) in
        [("/api/generate", json!({"model": "parrot"})), ("/api/chat", json!({"model": "parrot", "keep_alive": "5m", "messages": []}))]
    {
        let answer = post(&parrot(), path, body).await.json();
        assert_eq!((&answer["done"], &answer["done_reason"]), (&json!(true), &json!("load")), "{path}");
    }
}

#[tokio::test]
async fn unloading_a_model_is_answered_with_what_to_do_instead_and_an_answer_that_should_be_the_last_is_given() {
    let router = parrot();
    let said = json!([{"role": "user", "content": "hello"}]);
    for (path, asked, none) in [("/api/generate", "prompt", json!("")), ("/api/chat", "messages", json!([]))] {
        for keep_alive in [json!(0), json!("0s")] {
            let refused = post(&router, path, json!({"model": "parrot", "keep_alive": keep_alive, asked: none})).await;
            assert_eq!(refused.status, StatusCode::NOT_IMPLEMENTED);
            assert!(refused.text.contains("ModelDeployment birds/parrot") && refused.text.contains("spec.replicas"), "{}", refused.text);
            let prompt = if asked == "prompt" { json!("hello") } else { said.clone() };
            let answer = post(&router, path, json!({"model": "parrot", "keep_alive": keep_alive, "stream": false, asked: prompt})).await;
            assert!(answer.status == StatusCode::OK && answer.text.contains("hello"), "{}", answer.text);
        }
    }
}

#[tokio::test]
async fn options_limit_stop_and_sample() {
    let router = parrot();
    let with = |content: &str, options: Value| {
        let mut body = chat(content);
        body["options"] = options;
        body
    };
    let limited = post(&router, "/api/chat", with("hello", json!({"num_predict": 2}))).await.json();
    assert_eq!((&limited["message"]["content"], &limited["done_reason"]), (&json!("he"), &json!("length")));
    let stopped = post(&router, "/api/chat", with("hello", json!({"stop": ["l"]}))).await.json();
    assert_eq!((&stopped["message"]["content"], &stopped["done_reason"]), (&json!("he"), &json!("stop")));
    let sampled = post(&router, "/api/chat", with("options", json!({"seed": 7, "temperature": 0}))).await.json();
    let said = sampled["message"]["content"].as_str().unwrap().to_owned();
    assert!(said.contains("seed: Some(7)") && said.contains("temperature: 0.0") && said.contains("top_k: 40"), "{said}");
}

#[tokio::test]
async fn load_options_are_taken_where_they_ask_for_what_is_so_and_else_name_the_deployments_field() {
    let router = parrot();
    for options in [json!({"num_ctx": 300}), json!({"num_ctx": 400, "num_gpu": 12, "num_thread": 2, "num_batch": 512, "use_mmap": true})] {
        let body = json!({"model": "parrot", "stream": false, "prompt": "x", "options": options});
        assert_eq!(post(&router, "/api/generate", body).await.status, StatusCode::OK);
    }
    let refused = post(&router, "/api/generate", json!({"model": "parrot", "prompt": "x", "options": {"num_ctx": 4096}})).await;
    let message = refused.json()["error"].as_str().unwrap().to_owned();
    assert_eq!(refused.status, StatusCode::BAD_REQUEST);
    let expected = "`options.num_ctx` is 4096, and this replica was placed for 400: set spec.parameters.num_ctx of ModelDeployment \
                    birds/parrot to have more; when it was placed, up to 8192 fitted on its node, and up to 3072 with the whole model on GPU";
    assert_eq!(message, expected);
    let refused = post(&router, "/api/generate", json!({"model": "parrot", "prompt": "x", "options": {"num_gpu": 999}})).await;
    assert!(refused.text.contains("spec.parameters.num_gpu"), "{}", refused.text);
}

#[tokio::test]
async fn what_cannot_be_honoured_is_refused_by_name() {
    let router = parrot();
    let cases = [
        ("/api/generate", json!({"format": "xml"}), "format"),
        ("/api/generate", json!({"prompt": "x", "format": {"type": "object", "properties": {"a": {"not": {}}}}}), "format"),
        ("/api/chat", json!({"format": 3}), "format"),
        ("/api/chat", json!({"tools": [{"type": "function"}]}), "tools[0].function"),
        ("/api/chat", json!({"tools": [{"type": "function", "function": {"description": "f"}}]}), "tools[0].function.name"),
        ("/api/chat", json!({"tools": [{"type": "function", "function": {"name": "f", "parameters": 1}}]}), "tools[0].function.parameters"),
        ("/api/generate", json!({"images": ["aGk="]}), "images"),
        ("/api/generate", json!({"suffix": "x"}), "suffix"),
        ("/api/generate", json!({"context": [1]}), "context"),
        ("/api/generate", json!({"prompt": 5}), "prompt"),
        ("/api/generate", json!({"stream": "yes"}), "stream"),
        ("/api/generate", json!({"frobnicate": 1}), "frobnicate"),
        ("/api/generate", json!({"options": {"mirostat": 1}}), "options.mirostat"),
        ("/api/generate", json!({"options": {"temperature": -1}}), "options.temperature"),
        ("/api/generate", json!({"options": {"frobnicate": 1}}), "options.frobnicate"),
        ("/api/generate", json!({"options": 3}), "options"),
        ("/api/chat", json!({"think": true}), "think"),
        ("/api/generate", json!({"think": "high"}), "think"),
        ("/api/generate", json!({"think": 1}), "think"),
        ("/api/chat", json!({"messages": [{"role": "user", "content": "x", "images": ["aGk="]}]}), "messages[0].images"),
        ("/api/chat", json!({"messages": [{"role": "king", "content": "x"}]}), "messages[0].role"),
        ("/api/chat", json!({"messages": ["x"]}), "messages[0]"),
        ("/api/chat", json!({"top_logprobs": 2}), "top_logprobs"),
        ("/api/embed", json!({}), "input"),
        ("/api/embed", json!({"input": "x", "dimensions": 9}), "dimensions"),
    ];
    for (path, mut body, name) in cases {
        body["model"] = json!("parrot");
        let answer = post(&router, path, body.clone()).await;
        assert_eq!(answer.status, StatusCode::BAD_REQUEST, "{body}");
        let message = answer.json()["error"].as_str().unwrap().to_owned();
        assert!(message.contains(&format!("`{name}`")), "{name} in {message}");
    }
}

#[tokio::test]
async fn an_answer_is_held_to_json_or_to_a_schema_with_its_fields_in_order() {
    let router = parrot();
    let held = async |path: &str, format: Value| {
        let mut body = chat("held");
        body["prompt"] = json!("held");
        body["format"] = format;
        body.as_object_mut().unwrap().remove(if path == "/api/chat" { "prompt" } else { "messages" });
        let answer = post(&router, path, body).await.json();
        answer["message"]["content"].as_str().or(answer["response"].as_str()).unwrap_or_else(|| panic!("{answer}")).to_owned()
    };
    for path in ["/api/chat", "/api/generate"] {
        assert_eq!(held(path, json!("json")).await, "Some(JsonObject)");
        for nothing in [json!(""), Value::Null] {
            assert_eq!(held(path, nothing).await, "None");
        }
    }
    let schema = r#"{"type":"object","properties":{"z":{"type":"integer"},"a":{"type":"string"}},"required":["z","a"]}"#;
    let body = format!(r#"{{"model":"parrot","stream":false,"prompt":"held","format":{schema}}}"#);
    let said = send(&router, Method::POST, "/api/generate", body).await.json()["response"].as_str().unwrap().to_owned();
    assert!(said.starts_with("Some(JsonSchema(") && said.find("\"z\"") < said.find("\"a\""), "{said}");
}

#[tokio::test]
async fn a_schema_that_is_not_supported_is_refused_before_a_stream_begins_with_what_and_where() {
    let format = json!({"type": "object", "properties": {"tags": {"type": "array", "uniqueItems": true}}});
    let answer = post(&parrot(), "/api/generate", json!({"model": "parrot", "prompt": "x", "format": format})).await;
    assert_eq!(answer.status, StatusCode::BAD_REQUEST);
    let message = answer.json()["error"].as_str().unwrap().to_owned();
    for part in ["`format`", "/properties/tags", "uniqueItems"] {
        assert!(message.contains(part), "{part} in {message}");
    }
}

#[tokio::test]
async fn a_chat_that_is_too_long_loses_its_oldest_turns_and_keeps_its_system_message() {
    let filler = "x".repeat(100);
    let mut messages = vec![json!({"role": "system", "content": "S"})];
    for _ in 0..5 {
        messages.push(json!({"role": "user", "content": filler}));
        messages.push(json!({"role": "assistant", "content": filler}));
    }
    messages.push(json!({"role": "user", "content": "roles"}));
    let body = json!({"model": "parrot", "stream": false, "messages": messages});
    let answer = post(&parrot(), "/api/chat", body.clone()).await.json();
    assert_eq!(answer["message"]["content"], "system user assistant user", "{answer}");
    let mut refused = body;
    refused["truncate"] = json!(false);
    let refused = post(&parrot(), "/api/chat", refused).await;
    assert_eq!(refused.status, StatusCode::BAD_REQUEST);
    assert!(refused.text.contains("400 tokens") && refused.text.contains("num_ctx"), "{}", refused.text);
}

#[tokio::test]
async fn a_last_turn_that_is_too_long_by_itself_is_refused_with_both_numbers() {
    let answer = post(&parrot(), "/api/chat", chat(&"x".repeat(500))).await;
    assert_eq!(answer.status, StatusCode::BAD_REQUEST);
    assert!(answer.text.contains("517 tokens") && answer.text.contains("400 tokens"), "{}", answer.text);
}

#[tokio::test]
async fn an_answer_ends_where_the_context_that_was_asked_for_ends() {
    let mut body = chat("write 0123456789");
    body["options"] = json!({"num_ctx": 36});
    let answer = post(&parrot(), "/api/chat", body).await.json();
    assert_eq!((&answer["message"]["content"], &answer["done_reason"]), (&json!("012"), &json!("length")));
}

#[tokio::test]
async fn errors_have_ollamas_shape_and_status() {
    let router = parrot();
    let missing = post(&router, "/api/chat", json!({"model": "owl", "messages": []})).await;
    assert_eq!(missing.status, StatusCode::NOT_FOUND);
    assert!(missing.json()["error"].as_str().unwrap().contains("birds/parrot, parrot, polly:1b"), "{}", missing.text);
    let busy = post(&router, "/api/chat", chat("busy")).await;
    assert_eq!((busy.status, busy.headers["retry-after"].to_str().unwrap()), (StatusCode::SERVICE_UNAVAILABLE, "1"));
    assert_eq!(post(&router, "/api/chat", chat("fail")).await.status, StatusCode::INTERNAL_SERVER_ERROR);
    let large = post(&router, "/api/chat", chat(&"x".repeat(5000))).await;
    assert_eq!((large.status, large.json()["error"].is_string()), (StatusCode::PAYLOAD_TOO_LARGE, true));
    assert_eq!(send(&router, Method::POST, "/api/chat", "{").await.status, StatusCode::BAD_REQUEST);
    assert_eq!(fetch(&router, "/api/chat").await.status, StatusCode::METHOD_NOT_ALLOWED);
    assert_eq!(fetch(&router, "/api/nothing").await.status, StatusCode::NOT_FOUND);
}

#[tokio::test]
async fn a_stream_that_breaks_off_ends_with_an_error_line() {
    let answer = post(&parrot(), "/api/generate", json!({"model": "parrot", "prompt": "fail"})).await;
    assert_eq!(answer.lines().last().unwrap(), &json!({"error": "the parrot flew away"}));
}

#[tokio::test]
async fn tool_calls_are_told_from_text() {
    let call = r#"write <tool_call>{"name": "weather", "arguments": {"city": "Oslo"}}</tool_call>"#;
    // The parrot reads no further than the last `>`, as its chats are written with them.
    let call = call.replace("write <tool_call>", "write ").replace("</tool_call>", "");
    let mut body = chat(&call);
    body["tools"] = json!([{"type": "function", "function": {"name": "weather"}}]);
    let answer = post(&parrot(), "/api/chat", body.clone()).await.json();
    let call = &answer["message"]["tool_calls"][0];
    assert_eq!(call["function"], json!({"index": 0, "name": "weather", "arguments": {"city": "Oslo"}}));
    assert!(call["id"].as_str().unwrap().starts_with("call_"));
    assert_eq!(answer["message"]["content"], "");
    body["tools"] = json!([]);
    assert!(post(&parrot(), "/api/chat", body).await.json()["message"].get("tool_calls").is_none());
}

#[tokio::test]
async fn log_probabilities_come_with_their_alternatives() {
    let body = json!({"model": "parrot", "stream": false, "prompt": "hi", "logprobs": true, "top_logprobs": 2});
    let answer = post(&parrot(), "/api/generate", body).await.json();
    assert_eq!(answer["logprobs"].as_array().unwrap().len(), 2);
    assert_eq!((&answer["logprobs"][0]["token"], &answer["logprobs"][0]["top_logprobs"][1]["token"]), (&json!("h"), &json!("t1")));
}

#[tokio::test]
async fn embeddings_are_one_vector_an_input() {
    let router = parrot();
    let answer = post(&router, "/api/embed", json!({"model": "parrot", "input": ["ab", "c"]})).await.json();
    assert_eq!((&answer["embeddings"], &answer["prompt_eval_count"]), (&json!([[0.5, 0.5, 0.5, 0.5], [0.5, 0.5, 0.5, 0.5]]), &json!(3)));
    let cut = post(&router, "/api/embed", json!({"model": "parrot", "input": "ab", "dimensions": 1})).await.json();
    assert_eq!(cut["embeddings"], json!([[1.0]]));
    let long = json!({"model": "parrot", "input": "x".repeat(500), "truncate": false});
    assert_eq!(post(&router, "/api/embed", long).await.status, StatusCode::BAD_REQUEST);
    let old = post(&router, "/api/embeddings", json!({"model": "parrot", "prompt": "ab"})).await.json();
    assert_eq!(old["embedding"].as_array().unwrap().len(), 4);
}

#[tokio::test]
async fn the_model_is_described_under_each_of_its_names_with_its_placement() {
    let router = parrot();
    let tags = fetch(&router, "/api/tags").await.json();
    let names: Vec<&str> = tags["models"].as_array().unwrap().iter().map(|model| model["model"].as_str().unwrap()).collect();
    assert_eq!(names, ["parrot:latest", "polly:1b"]);
    assert_eq!((&tags["models"][0]["details"]["parameter_size"], &tags["models"][0]["size"]), (&json!("134.52M"), &json!(900)));
    let ps = fetch(&router, "/api/ps").await.json();
    let model = &ps["models"][0];
    assert_eq!((&model["size"], &model["size_vram"], &model["context_length"]), (&json!(1000), &json!(380), &json!(400)));
    assert_eq!(model["processor"], "62%/38% CPU/GPU");
    // As Ollama's command-line client asks.
    let asked = json!({"model": "", "system": "", "template": "", "verbose": false, "options": null, "name": "parrot"});
    let show = post(&router, "/api/show", asked).await.json();
    assert_eq!(show["capabilities"], json!(["completion", "tools"]));
    assert_eq!(show["model_info"]["general.architecture"], "parrot");
    assert!(show["modelfile"].as_str().unwrap().contains("PARAMETER num_ctx 400"));
    let version = fetch(&router, "/api/version").await.json();
    assert_eq!((&version["version"], &version["stowage"]), (&json!("0.12.11"), &json!(env!("CARGO_PKG_VERSION"))));
}

#[tokio::test]
async fn managing_models_is_answered_with_what_to_do_instead() {
    let router = parrot();
    for path in ["/api/pull", "/api/push", "/api/create", "/api/copy"] {
        let answer = post(&router, path, json!({"model": "llama3"})).await;
        assert_eq!(answer.status, StatusCode::NOT_IMPLEMENTED, "{path}");
        assert!(answer.json()["error"].as_str().unwrap().contains("ModelDeployment"), "{path}");
    }
    let deleted = send(&router, Method::DELETE, "/api/delete", json!({"model": "parrot"}).to_string()).await;
    assert!(deleted.text.contains("delete its ModelDeployment"));
}

#[tokio::test]
async fn clients_find_the_server_and_probes_its_phase() {
    let (router, phase) = worker("birds", "parrot");
    assert_eq!(fetch(&router, "/").await.status, StatusCode::OK);
    let head = send(&router, Method::HEAD, "/", Body::empty()).await;
    assert_eq!((head.status, head.text.as_str()), (StatusCode::OK, ""));
    assert_eq!(fetch(&router, "/readyz").await.status, StatusCode::OK);
    phase.send_replace(Phase::Draining);
    assert_eq!(fetch(&router, "/readyz").await.status, StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(fetch(&router, "/healthz").await.status, StatusCode::OK);
    assert_eq!(post(&router, "/api/chat", chat("x")).await.status, StatusCode::SERVICE_UNAVAILABLE);
}

#[tokio::test]
async fn what_runs_when_a_drain_begins_is_finished() {
    let (router, phase) = worker("birds", "parrot");
    let request =
        Request::post("/api/chat").body(Body::from(chat("hello").to_string().replace("\"stream\":false", "\"stream\":true"))).unwrap();
    let mut body = router.oneshot(request).await.unwrap().into_body().into_data_stream();
    let first = futures::StreamExt::next(&mut body).await.unwrap().unwrap();
    phase.send_replace(Phase::Draining);
    let rest: Vec<_> = futures::StreamExt::collect(body).await;
    let last = rest.last().unwrap().as_ref().unwrap();
    assert!(first.starts_with(b"{") && String::from_utf8_lossy(last).contains("\"done_reason\":\"stop\""));
}

#[tokio::test]
async fn metrics_count_requests_tokens_and_outcomes_by_model() {
    let router = parrot();
    post(&router, "/api/chat", chat("hello")).await;
    post(&router, "/api/chat", json!({"model": "owl"})).await;
    // A client that leaves in the middle of an answer.
    let request = Request::post("/api/generate").body(Body::from(json!({"model": "parrot", "prompt": "forever"}).to_string())).unwrap();
    let mut body = router.clone().oneshot(request).await.unwrap().into_body().into_data_stream();
    futures::StreamExt::next(&mut body).await.unwrap().unwrap();
    let running = fetch(&router, "/metrics").await.text;
    assert!(running.contains("stowage_generations_running 1"), "{running}");
    drop(body);
    let text = fetch(&router, "/metrics").await.text;
    for line in [
        r#"stowage_requests_total{model="birds/parrot",api="ollama.chat",outcome="ok"} 1"#,
        r#"stowage_requests_total{model="",api="ollama.chat",outcome="model_not_found"} 1"#,
        r#"stowage_requests_total{model="birds/parrot",api="ollama.generate",outcome="cancelled"} 1"#,
        r#"stowage_generated_tokens_total{model="birds/parrot",api="ollama.chat"} 5"#,
        r#"stowage_prompt_tokens_total{model="birds/parrot",api="ollama.chat"} 22"#,
        r#"stowage_time_to_first_token_seconds_count{model="birds/parrot",api="ollama.chat"} 1"#,
        "stowage_generations_running 0",
    ] {
        assert!(text.contains(line), "{line} in\n{text}");
    }
}

#[tokio::test]
async fn a_deployments_system_options_and_names_change_without_a_reload() {
    let names = ModelNames::new("birds", "parrot", Vec::new());
    let (router, _phase, settings) = worker_with(Settings { names, defaults: RequestDefaults::default() });
    assert_eq!(post(&router, "/api/chat", chat("roles")).await.json()["message"]["content"], "user");
    settings.send_modify(|settings| {
        settings.names.aliases.push("polly".into());
        settings.defaults.system = "Be brief.".into();
        settings.defaults.options.num_predict = Some(6);
    });
    let mut body = chat("roles");
    body["model"] = json!("polly");
    assert_eq!(post(&router, "/api/chat", body.clone()).await.json()["message"]["content"], "system");
    body["options"] = json!({"num_predict": -1});
    assert_eq!(post(&router, "/api/chat", body).await.json()["message"]["content"], "system user");
}
