use super::*;
use serde_json::json;

fn message(role: &str, content: &str) -> ChatMessage {
    ChatMessage { role: role.into(), content: content.into(), ..ChatMessage::default() }
}

fn render(source: &str, messages: &[ChatMessage]) -> Result<String, EngineError> {
    ChatTemplate::new(Some(source), "", "<s>", "</s>").unwrap().render(messages, &[], &RenderOptions::default())
}

/// SmolLM2's, as its file has it.
const CHATML: &str = "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}{{ '<|im_start|>system\nBe helpful<|im_end|>\n' }}{% endif %}{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}";

#[test]
fn a_chatml_template_writes_each_turn_and_begins_the_answer() {
    assert_eq!(
        render(CHATML, &[message("user", "Hi")]).unwrap(),
        "<|im_start|>system\nBe helpful<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    );
    let with_system = [message("system", "Be brief"), message("user", "Hi")];
    assert!(render(CHATML, &with_system).unwrap().starts_with("<|im_start|>system\nBe brief<|im_end|>\n<|im_start|>user"));
}

#[test]
fn python_string_methods_namespaces_and_loop_controls_work() {
    let source = "{% set ns = namespace(n=0) %}{% for m in messages %}{% if m.role.startswith('sys') %}{% continue %}{% endif %}\
                  {% set ns.n = ns.n + 1 %}{{ m['content'].strip().split('|')[-1].upper() }}{% endfor %}{{ ns.n }}{{ bos_token }}{{ eos_token }}";
    assert_eq!(render(source, &[message("system", "x"), message("user", " a|b ")]).unwrap(), "B1<s></s>");
}

#[test]
fn blocks_take_their_line_end_and_indentation_with_them() {
    assert_eq!(
        render("{% for m in messages %}\n  {% if true %}\n{{ m.content }}\n  {% endif %}\n{% endfor %}\n", &[message("user", "a")])
            .unwrap(),
        "a\n"
    );
}

#[test]
fn what_the_template_refuses_is_the_callers_fault_and_says_why() {
    let error = render("{{ raise_exception('roles must alternate') }}", &[]).unwrap_err();
    assert!(error.is_callers_fault());
    assert_eq!(error.message, "the model's chat template refuses these messages: roles must alternate");
}

#[test]
fn tools_are_written_as_python_writes_json() {
    let template = ChatTemplate::new(Some("{% if tools %}{{ tools[0] | tojson }}{% else %}none{% endif %}"), "", "", "").unwrap();
    let tool = r#"{"type": "function", "function": {"name": "f", "description": "", "parameters": {}}}"#;
    let rendered = |tools: &[Json]| template.render(&[], tools, &RenderOptions::default()).unwrap();
    assert_eq!(rendered(&[serde_json::from_str(tool).unwrap()]), tool);
    assert_eq!(rendered(&[]), "none");
}

#[test]
fn more_variables_reach_the_template() {
    let template = ChatTemplate::new(Some("{{ 'off' if enable_thinking is defined and not enable_thinking }}"), "", "", "").unwrap();
    let extra = json!({"enable_thinking": false}).as_object().unwrap().clone();
    assert_eq!(template.render(&[], &[], &RenderOptions { extra, ..RenderOptions::default() }).unwrap(), "off");
}

#[test]
fn a_variable_of_the_callers_goes_before_the_templates_own() {
    let template = ChatTemplate::new(Some("{{ documents | length }}{{ bos_token }}"), "", "<s>", "").unwrap();
    let extra = json!({"documents": [1, 2], "bos_token": "<b>"}).as_object().unwrap().clone();
    assert_eq!(template.render(&[], &[], &RenderOptions { extra, ..RenderOptions::default() }).unwrap(), "2<b>");
}

#[test]
fn the_assistants_turn_is_begun_only_where_it_is_asked_for() {
    let template = ChatTemplate::new(Some(CHATML), "", "", "").unwrap();
    let options = RenderOptions { add_generation_prompt: false, ..RenderOptions::default() };
    assert!(template.render(&[message("user", "Hi")], &[], &options).unwrap().ends_with("<|im_start|>user\nHi<|im_end|>\n"));
}

#[test]
fn what_the_model_thought_is_told_by_the_name_that_the_template_knows() {
    let thought = ChatMessage { reasoning_content: Some("hm".into()), ..message("assistant", "a") };
    for name in ["reasoning_content", "thinking"] {
        let source = format!("{{% for message in messages %}}{{{{ message.{name} if message.{name} is defined else '-' }}}}{{% endfor %}}");
        assert_eq!(render(&source, &[message("user", "q"), thought.clone()]).unwrap(), "-hm", "{name}");
    }
}

#[test]
fn a_calls_arguments_are_passed_as_they_were_given() {
    let source = "{% for call in messages[0].tool_calls %}{{ call.arguments if call.arguments is string else call.arguments | tojson }};{% endfor %}";
    let calls = [r#"{"arguments": {"b": 1, "a": 2}}"#, r#"{"arguments": "{\"b\":1}"}"#].map(|call| serde_json::from_str(call).unwrap());
    let calling = ChatMessage { tool_calls: calls.to_vec(), ..message("assistant", "") };
    assert_eq!(render(source, &[calling]).unwrap(), r#"{"b": 1, "a": 2};{"b":1};"#);
}

#[test]
fn the_date_is_written_in_the_format_asked_for() {
    let year: i32 = render("{{ strftime_now('%Y') }}", &[]).unwrap().parse().unwrap();
    assert!(year >= 2024);
    assert!(render("{{ strftime_now('%!') }}", &[]).is_err());
    let template = ChatTemplate::new(Some("{{ strftime_now('%d %b %Y, %H:%M') }}"), "", "", "").unwrap();
    let now = jiff::civil::datetime(2025, 2, 3, 4, 5, 6, 0).to_zoned(jiff::tz::TimeZone::UTC).unwrap();
    let options = RenderOptions { now: Some(now), ..RenderOptions::default() };
    assert_eq!(template.render(&[], &[], &options).unwrap(), "03 Feb 2025, 04:05");
}

#[test]
fn a_model_without_a_template_gets_the_contents_a_line_each() {
    let template = ChatTemplate::new(None, "", "", "").unwrap();
    assert!(!template.exists());
    let rendered = template.render(&[message("system", "One."), message("user", "Two")], &[], &RenderOptions::default());
    assert_eq!(rendered.unwrap(), "One.\nTwo");
}

#[test]
fn a_go_template_is_refused_and_a_jinja_one_replaces_the_files() {
    let go = "{{ if .System }}<|system|>{{ .System }}{{ end }}{{ .Prompt }}";
    for source in [go, "{{- range $i, $_ := .Messages }}{{ end }}", "{{ .Prompt }}", "x {{ $last }}"] {
        let error = ChatTemplate::new(Some(CHATML), source, "", "").err().unwrap();
        assert_eq!(error.reason, Reason::InvalidRequest);
        assert!(error.message.contains("Go's template language") && error.message.contains("{% for message in messages %}"), "{error}");
    }
    let template = ChatTemplate::new(Some(CHATML), "{{ messages[0].content if messages }}{{ ending }}", "", "").unwrap();
    assert_eq!(template.render(&[message("user", "a")], &[], &RenderOptions::default()).unwrap(), "a");
}

#[test]
fn a_broken_template_of_the_file_fails_the_chat_but_one_of_the_user_fails_the_load() {
    assert_eq!(ChatTemplate::new(None, "{% for %}", "", "").err().unwrap().reason, Reason::InvalidRequest);
    assert_eq!(render("{% for %}", &[]).unwrap_err().reason, Reason::EngineCannotRun);
}

#[test]
fn a_template_that_never_ends_is_stopped() {
    assert!(render("{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}", &[]).is_err());
}
