"""Answers against the types of the clients' own packages, field by field: nothing missing, nothing of another type, nothing that they don't know."""

import json

import httpx
import ollama
import pydantic
import pytest
from openai.types import Completion, CreateEmbeddingResponse, Model
from openai.types.chat import ChatCompletion, ChatCompletionChunk

from servers import ASSISTANT, FEW, MODEL, QUESTION

# Fields beyond OpenAI's and Ollama's, each told of in the documentation.
MORE = {"reasoning_content", "processor", "gpu_layers", "total_layers", "context_length", "system"}
WEATHER = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}


def unknown(value, path=""):
    """Paths of the fields that a type does not know."""
    if isinstance(value, list):
        return [found for index, item in enumerate(value) for found in unknown(item, f"{path}[{index}]")]
    if not isinstance(value, pydantic.BaseModel):
        return []
    extra = [f"{path}.{name}" for name in (value.model_extra or {}) if name not in MORE]
    return extra + [found for name in type(value).model_fields for found in unknown(getattr(value, name), f"{path}.{name}")]


def check(kind, data, strict=True):
    value = kind.model_validate(data, strict=strict)
    assert unknown(value) == []
    return value


def post(url, path, body):
    response = httpx.post(url + path, json=body, timeout=300)
    assert response.status_code == 200, response.text
    return response


def events(response):
    lines = [line.removeprefix("data: ") for line in response.text.splitlines() if line.startswith("data: ")]
    assert lines.pop() == "[DONE]"
    return [json.loads(line) for line in lines]


CHATS = [
    {"logprobs": True, "top_logprobs": 2, "n": 2, "stop": ["zzz"], "seed": 1},
    {"response_format": {"type": "json_object"}, "max_completion_tokens": 8},
    {"model": ASSISTANT},
    {"model": ASSISTANT, "tools": [WEATHER], "tool_choice": "required", "reasoning_effort": "none", "max_tokens": 60},
]


@pytest.mark.parametrize("more", CHATS, ids=lambda more: "-".join(more))
def test_chats_are_of_openais_types(door, more):
    body = {"model": MODEL, "messages": QUESTION, "max_tokens": 8, **more}
    answer = check(ChatCompletion, post(door, "/v1/chat/completions", body).json())
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens
    streamed = events(post(door, "/v1/chat/completions", {**body, "stream": True, "stream_options": {"include_usage": True}}))
    chunks = [check(ChatCompletionChunk, event) for event in streamed]
    assert chunks[-1].usage.completion_tokens > 0 and all(chunk.usage is None for chunk in chunks[:-1])


def test_completions_embeddings_and_models_are_of_openais_types(url):
    body = {"model": MODEL, "prompt": ["Once", "Twice"], "max_tokens": 3, "logprobs": 2}
    check(Completion, post(url, "/v1/completions", body).json())
    for event in events(post(url, "/v1/completions", {**body, "stream": True})):
        # Its one type for both has no reason that is still to come.
        for choice in event["choices"]:
            choice["finish_reason"] = choice["finish_reason"] or "stop"
        check(Completion, event)
    # Its types have the vectors as numbers, and its own client gets them in base64.
    check(CreateEmbeddingResponse, post(url, "/v1/embeddings", {"model": MODEL, "input": "a"}).json())
    listed = httpx.get(f"{url}/v1/models").json()
    assert listed["object"] == "list"
    for model in listed["data"]:
        check(Model, model)
        check(Model, httpx.get(f"{url}/v1/models/{model['id']}").json())


def test_answers_are_of_ollamas_types(url):
    # Not strictly: times come as texts.
    asked = {"model": MODEL, "options": FEW, "stream": False, "logprobs": True, "top_logprobs": 2}
    chat = check(ollama.ChatResponse, post(url, "/api/chat", {**asked, "messages": QUESTION}).json(), strict=False)
    assert len(chat.logprobs) == chat.eval_count and len(chat.logprobs[0].top_logprobs) == 2
    check(ollama.GenerateResponse, post(url, "/api/generate", {**asked, "prompt": "Hello"}).json(), strict=False)
    for line in post(url, "/api/chat", {**asked, "messages": QUESTION, "stream": True}).text.splitlines():
        check(ollama.ChatResponse, json.loads(line), strict=False)
    check(ollama.EmbedResponse, post(url, "/api/embed", {"model": MODEL, "input": "a"}).json(), strict=False)
    check(ollama.ListResponse, httpx.get(f"{url}/api/tags").json(), strict=False)
    check(ollama.ProcessResponse, httpx.get(f"{url}/api/ps").json(), strict=False)
    check(ollama.ShowResponse, post(url, "/api/show", {"model": MODEL}).json(), strict=False)


def test_the_command_line_client_can_show_what_runs(url):
    """Ollama's own program cuts the first twelve letters of a digest, and tells the processor by two sizes."""
    for listed in ("tags", "ps"):
        for model in httpx.get(f"{url}/api/{listed}").json()["models"]:
            assert len(model["digest"]) >= 12, model
    for model in httpx.get(f"{url}/api/ps").json()["models"]:
        share = round(100 * model["size_vram"] / model["size"])
        shown = {0: "100% CPU", 100: "100% GPU"}.get(share, f"{100 - share}%/{share}% CPU/GPU")
        assert model["processor"] == shown
