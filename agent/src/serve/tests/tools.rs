//! Tools that an answer may call or must, and formats beside them.

use serde_json::json;

use super::*;

fn asked(more: Value) -> Value {
    let weather =
        json!({"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"], "additionalProperties": false});
    let tools = json!([
        {"type": "function", "function": {"name": "weather", "parameters": weather}},
        {"type": "function", "function": {"name": "time"}},
    ]);
    let mut body = json!({"model": "parrot", "stream": false, "messages": [{"role": "user", "content": "held"}], "tools": tools});
    body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    body
}

async fn openai(more: Value) -> String {
    let answer = post(&parrot(), "/v1/chat/completions", asked(more)).await.json();
    answer["choices"][0]["message"]["content"].as_str().unwrap_or_else(|| panic!("{answer}")).to_owned()
}

const WEATHER: &str = r#"before: "{\"name\": \"weather\", \"arguments\": ""#;
const TIME: &str = r#"before: "{\"name\": \"time\", \"arguments\": ""#;
const PLAIN: &str = r#"before: "", schema: Object([("type", String("object"))])"#;

#[tokio::test]
async fn a_call_is_free_to_be_made_unless_it_is_required() {
    assert_eq!(openai(json!({})).await, "None");
    assert_eq!(openai(json!({"tool_choice": "auto"})).await, "None");
    let required = openai(json!({"tool_choice": "required"})).await;
    assert!(required.contains(WEATHER) && required.contains(TIME) && !required.contains(PLAIN), "{required}");
    let named = openai(json!({"tool_choice": {"type": "function", "function": {"name": "time"}}})).await;
    assert!(named.contains(TIME) && !named.contains(WEATHER), "{named}");
    let unknown = asked(json!({"tool_choice": {"type": "function", "function": {"name": "tide"}}}));
    assert_eq!(post(&parrot(), "/v1/chat/completions", unknown).await.json()["error"]["param"], "tool_choice");
}

#[tokio::test]
async fn an_answer_of_a_format_may_be_a_call_instead() {
    let both = openai(json!({"response_format": {"type": "json_object"}})).await;
    assert!(both.contains(PLAIN) && both.contains(WEATHER) && both.contains(TIME), "{both}");
    let answer = post(&parrot(), "/api/chat", asked(json!({"format": "json"}))).await.json();
    let both = answer["message"]["content"].as_str().unwrap();
    assert!(both.contains(PLAIN) && both.contains(WEATHER), "{both}");
}

#[tokio::test]
async fn tools_of_which_the_model_would_not_be_told_are_refused() {
    let router = parrot_with("{{ messages }}");
    for path in ["/api/chat", "/v1/chat/completions"] {
        let answer = post(&router, path, asked(json!({}))).await;
        assert_eq!(answer.status, StatusCode::BAD_REQUEST);
        assert!(
            answer.text.contains("`tools`") && answer.text.contains("spec.template of ModelDeployment birds/parrot"),
            "{}",
            answer.text
        );
    }
    let shown = post(&router, "/api/show", json!({"model": "parrot"})).await.json();
    assert_eq!(shown["capabilities"], json!(["completion"]));
}

#[tokio::test]
async fn tools_with_a_schema_that_is_not_supported_are_refused_where_they_are_required() {
    let tools = json!([{"type": "function", "function": {"name": "f", "parameters": {"not": {}}}}]);
    let answer = post(&parrot(), "/v1/chat/completions", asked(json!({"tools": tools, "tool_choice": "required"}))).await;
    assert_eq!((answer.status, &answer.json()["error"]["param"]), (StatusCode::BAD_REQUEST, &json!("tool_choice")));
}

#[tokio::test]
async fn a_strict_function_that_may_be_called_is_held_to_its_schema_from_its_name_on() {
    let asked = |template: &str, more: Value| {
        let router = parrot_with(template);
        let schema = json!({"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]});
        let function = |name: &str, strict| json!({"type": "function", "function": {"name": name, "strict": strict, "parameters": schema}});
        let mut body = json!({"model": "parrot", "stream": false, "messages": [{"role": "user", "content": "occasions"}]});
        body["tools"] = json!([function("free", false), function("weather", true)]);
        body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        async move { post(&router, "/v1/chat/completions", body).await }
    };
    let text = asked(parrot::PLAIN, json!({})).await.json()["choices"][0]["message"]["content"].as_str().unwrap().to_owned();
    assert!(text.contains(r#"name\": \"weather"#) && text.contains(r#"before: ", \"arguments\": ""#) && !text.contains("free"), "{text}");
    let required = asked(parrot::PLAIN, json!({"tool_choice": "required"})).await.json();
    assert_eq!(required["choices"][0]["message"]["content"], "", "it is held from its beginning: {required}");
    let tags = format!("{}<function=", parrot::PLAIN);
    let refused = asked(&tags, json!({})).await;
    assert_eq!((refused.status, &refused.json()["error"]["param"]), (StatusCode::BAD_REQUEST, &json!("tools[1].function.strict")));
    assert_eq!(asked(&tags, json!({"tool_choice": "required"})).await.status, StatusCode::OK);
}
