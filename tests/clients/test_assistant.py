"""Tools and thinking, of a model whose chat template has both."""

import json

import httpx
import ollama
import openai
import pytest

from servers import ASSISTANT, FEW, MODEL, QUESTION

WEATHER = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "The weather of a city.",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string", "maxLength": 12}, "days": {"type": "integer", "minimum": 1, "maximum": 9}},
            "required": ["city", "days"],
            "additionalProperties": False,
        },
    },
}
TIME = {"type": "function", "function": {"name": "time", "description": "The time of day."}}
OSLO = [{"role": "user", "content": "What is the weather in Oslo?"}]
# Answers with what was thought before them: the small model thinks as shortly when it has seen it done.
THOUGHT = [
    {"role": "user", "content": "Say red."},
    {"role": "assistant", "thinking": "I say red.", "content": "red"},
    {"role": "user", "content": "Say green."},
    {"role": "assistant", "thinking": "I say green.", "content": "green"},
    {"role": "user", "content": "Say blue."},
    {"role": "assistant", "thinking": "I say blue.", "content": "blue"},
    {"role": "user", "content": "Say white."},
]
REASONED = [{("reasoning_content" if key == "thinking" else key): value for key, value in turn.items()} for turn in THOUGHT]


@pytest.fixture
def url(door):
    return door


def test_the_model_says_what_it_can(olla):
    assert set(olla.show(ASSISTANT).capabilities) == {"completion", "tools", "thinking"}
    assert set(olla.show(MODEL).capabilities) == {"completion"}


def test_a_call_that_is_required_is_made_with_arguments_that_meet_their_schema(oai):
    asked = dict(model=ASSISTANT, messages=OSLO, tools=[WEATHER, TIME], reasoning_effort="none", max_tokens=200, temperature=0.5, seed=4)
    named = {"type": "function", "function": {"name": "weather"}}
    choice = oai.chat.completions.create(**asked, tool_choice=named).choices[0]
    assert choice.finish_reason == "tool_calls" and choice.message.content is None
    call = choice.message.tool_calls[0]
    assert call.type == "function" and call.function.name == "weather" and call.id.startswith("call_")
    arguments = json.loads(call.function.arguments)
    assert set(arguments) == {"city", "days"} and 1 <= arguments["days"] <= 9
    any_call = oai.chat.completions.create(**asked, tool_choice="required").choices[0].message.tool_calls[0]
    assert any_call.function.name in ("weather", "time")


def test_a_call_is_streamed_as_openais_client_puts_it_together(oai):
    asked = dict(model=ASSISTANT, messages=OSLO, tools=[WEATHER], tool_choice="required", reasoning_effort="none", max_tokens=200)
    with oai.chat.completions.stream(**asked) as stream:
        final = stream.get_final_completion()
    call = final.choices[0].message.tool_calls[0]
    assert call.function.name == "weather" and "city" in json.loads(call.function.arguments)


def test_a_tools_result_is_answered(oai, olla):
    call = {"id": "call_1", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Oslo", "days": 1}'}}
    turns = OSLO + [{"role": "assistant", "content": None, "tool_calls": [call]}, {"role": "tool", "tool_call_id": "call_1", "content": "Rain."}]
    answer = oai.chat.completions.create(model=ASSISTANT, messages=turns, tools=[WEATHER], reasoning_effort="none", max_tokens=16)
    assert answer.usage.prompt_tokens > 50
    mine = {"function": {"name": "weather", "arguments": {"city": "Oslo", "days": 1}}}
    turns = OSLO + [{"role": "assistant", "tool_calls": [mine]}, {"role": "tool", "tool_name": "weather", "content": "Rain."}]
    assert olla.chat(ASSISTANT, turns, tools=[WEATHER], think=False, options=FEW).prompt_eval_count > 50


def test_an_answer_of_a_format_may_be_a_call_instead(door):
    schema = {"type": "object", "properties": {"rain": {"type": "boolean"}}, "required": ["rain"], "additionalProperties": False}
    for seed in range(4):
        options = {"num_predict": 200, "temperature": 1.5, "seed": seed}
        # Ollama's client leaves out of a tool's schema what its types don't have, the limits among it.
        asked = {"model": ASSISTANT, "messages": OSLO, "tools": [WEATHER], "format": schema, "think": False, "options": options, "stream": False}
        message = httpx.post(f"{door}/api/chat", json=asked, timeout=300).raise_for_status().json()["message"]
        if "tool_calls" in message:
            assert set(message["tool_calls"][0]["function"]["arguments"]) == {"city", "days"}
        else:
            assert set(json.loads(message["content"])) == {"rain"}


def test_tools_are_refused_where_the_model_would_not_be_told_of_them(olla, oai):
    with pytest.raises(ollama.ResponseError) as raised:
        olla.chat(MODEL, OSLO, tools=[WEATHER])
    assert raised.value.status_code == 400 and "tools" in raised.value.error
    with pytest.raises(openai.BadRequestError) as raised:
        oai.chat.completions.create(model=MODEL, messages=OSLO, tools=[WEATHER])
    assert raised.value.param == "tools"


def test_what_is_thought_comes_apart_from_the_answer(olla, oai):
    options = {"num_predict": 60, "temperature": 0}
    message = olla.chat(ASSISTANT, THOUGHT, think=True, options=options).message
    assert message.thinking and "</think>" not in message.thinking
    assert message.content and "think>" not in message.content
    parts = list(olla.chat(ASSISTANT, THOUGHT, think=True, options=options, stream=True))
    assert "".join(part.message.thinking or "" for part in parts) == message.thinking
    assert "".join(part.message.content for part in parts) == message.content
    asked = dict(model=ASSISTANT, messages=REASONED, max_tokens=60, temperature=0)
    reasoned = oai.chat.completions.create(**asked).choices[0].message
    assert reasoned.reasoning_content and reasoned.content and "think>" not in reasoned.content
    plain = oai.chat.completions.create(**asked, reasoning_effort="none").choices[0].message
    assert plain.content and not hasattr(plain, "reasoning_content")


def test_an_answer_is_held_to_a_schema_from_the_end_of_what_is_thought_on(olla):
    schema = {"type": "object", "properties": {"colour": {"enum": ["white", "black"]}}, "required": ["colour"], "additionalProperties": False}
    message = olla.chat(ASSISTANT, THOUGHT, format=schema, options={"num_predict": 100, "temperature": 0}).message
    assert message.thinking and json.loads(message.content)["colour"] in ("white", "black")


def test_thinking_is_refused_of_a_model_that_does_not(olla, oai):
    with pytest.raises(ollama.ResponseError) as raised:
        olla.chat(MODEL, QUESTION, think=True)
    assert raised.value.status_code == 400 and "think" in raised.value.error
    with pytest.raises(openai.BadRequestError) as raised:
        oai.chat.completions.create(model=ASSISTANT, messages=QUESTION, reasoning_effort="high")
    assert raised.value.param == "reasoning_effort"
