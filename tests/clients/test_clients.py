"""Ollama's and OpenAI's own Python clients, unmodified, against a worker and against the node's door."""

import asyncio
import json
from typing import Literal

import ollama
import openai
import pydantic
import pytest

from servers import FEW, MODEL, QUESTION

SHIP = [{"role": "user", "content": "Describe the ship Aurora as JSON."}]
MANY_WORDS = "stow " * 200_000


class Ship(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(extra="forbid")

    name: str = pydantic.Field(max_length=12)
    built: int = pydantic.Field(ge=1500, le=2030)
    cargo: list[Literal["grain", "coal", "wine"]] = pydantic.Field(max_length=3)


# OpenAI's client makes schemas for `strict` out of plain classes only.
class Boat(pydantic.BaseModel):
    afloat: bool
    colour: Literal["red", "blue"]


# Ollama's client


def test_ollama_lists_shows_and_says_where_the_model_runs(olla):
    listed = {model.model: model for model in olla.list().models}
    assert f"{MODEL}:latest" in listed
    assert listed[f"{MODEL}:latest"].size > 0
    assert listed[f"{MODEL}:latest"].details.format == "gguf"
    running = next(model for model in olla.ps().models if model.model == f"{MODEL}:latest")
    assert 0 <= running.size_vram <= running.size
    assert running.context_length > 0
    assert running.expires_at.year > 2100, "a replica is never unloaded by keep_alive"
    shown = olla.show(MODEL)
    assert "completion" in shown.capabilities
    assert shown.modelinfo["general.architecture"] == shown.details.family
    assert "num_ctx" in shown.parameters


def test_ollama_chats_with_measured_counts(olla):
    answer = olla.chat(MODEL, QUESTION, options=FEW)
    assert answer.message.role == "assistant" and answer.message.content
    assert answer.done and answer.done_reason in ("stop", "length")
    assert answer.prompt_eval_count > 0 and 0 < answer.eval_count <= 16
    assert answer.total_duration >= answer.eval_duration > 0


def test_ollama_streams_what_it_answers_at_once(olla):
    whole = olla.chat(MODEL, QUESTION, options=FEW)
    parts = list(olla.chat(MODEL, QUESTION, options=FEW, stream=True))
    assert len(parts) > 2, "a stream comes in parts"
    assert all(not part.done for part in parts[:-1]) and parts[-1].done
    assert "".join(part.message.content for part in parts) == whole.message.content
    assert parts[-1].eval_count == whole.eval_count


def test_ollama_streams_to_its_async_client(url):
    async def several():
        client = ollama.AsyncClient(host=url, timeout=300)

        async def one():
            return "".join([part.message.content async for part in await client.chat(MODEL, QUESTION, options=FEW, stream=True)])

        return await asyncio.gather(one(), one(), one())

    answers = asyncio.run(several())
    assert answers[0] and answers == [answers[0]] * 3, "the same seed gives the same answer"


def test_ollama_generates_from_prompts_raw_and_templated(olla):
    assert olla.generate(MODEL, "Once upon a time", raw=True, options=FEW).response
    assert olla.generate(MODEL, "Say hello.", system="Be brief.", options=FEW).response
    streamed = list(olla.generate(MODEL, "Say hello.", options=FEW, stream=True))
    assert streamed[-1].done and "".join(part.response for part in streamed)
    assert olla.generate(MODEL, "", keep_alive="5m").done_reason == "load"


def test_ollama_keeps_to_num_predict_and_stop(olla):
    assert olla.generate(MODEL, "Count: 1 2 3 4 5", raw=True, options={**FEW, "num_predict": 3}).eval_count <= 3
    whole = olla.generate(MODEL, "Once upon a time", raw=True, options=FEW).response
    letter = next(character for character in whole if character.isalpha())
    assert letter not in olla.generate(MODEL, "Once upon a time", raw=True, options={**FEW, "stop": [letter]}).response


def test_ollama_holds_answers_to_a_schema(olla):
    hot = {"num_predict": 300, "temperature": 1.5, "seed": 1}
    chatted = olla.chat(MODEL, SHIP, format=Ship.model_json_schema(), options=hot)
    Ship.model_validate_json(chatted.message.content)
    assert chatted.done_reason == "stop"
    streamed = olla.generate(MODEL, SHIP[0]["content"], format=Ship.model_json_schema(), options=hot, stream=True)
    Ship.model_validate_json("".join(part.response for part in streamed))
    any_object = olla.chat(MODEL, SHIP, format="json", options=FEW)
    assert any_object.message.content.startswith("{")


def test_ollama_embeds(olla):
    embedded = olla.embed(MODEL, ["a ship", "a harbour"])
    assert len(embedded.embeddings) == 2 and len(embedded.embeddings[0]) == len(embedded.embeddings[1]) > 0
    assert abs(sum(value * value for value in embedded.embeddings[0]) - 1) < 1e-3
    assert embedded.prompt_eval_count > 0
    assert len(olla.embeddings(MODEL, "a ship").embedding) == len(embedded.embeddings[0])


def test_ollama_drops_the_oldest_turns_of_a_chat_that_is_too_long(olla):
    turns = [{"role": "user", "content": "stow " * 40}, {"role": "assistant", "content": "Aye."}] * 10
    answer = olla.chat(MODEL, turns + QUESTION, options={**FEW, "num_ctx": 256})
    assert 0 < answer.prompt_eval_count < 256
    assert answer.message.content


def test_ollama_raises_its_own_errors(olla):
    def error(call):
        with pytest.raises(ollama.ResponseError) as raised:
            call()
        return raised.value

    missing = error(lambda: olla.chat("no-such-model", QUESTION))
    assert missing.status_code == 404 and MODEL in missing.error
    assert error(lambda: list(olla.chat("no-such-model", QUESTION, stream=True))).status_code == 404
    more = error(lambda: olla.chat(MODEL, QUESTION, options={"num_ctx": 100_000_000}))
    assert more.status_code == 400 and "spec.parameters.num_ctx" in more.error
    # SmolLM2 was trained for 8192 tokens, and the machine has room for them.
    assert "up to 8192 fitted on its node" in more.error
    unsupported = error(lambda: olla.chat(MODEL, QUESTION, format={"type": "array", "uniqueItems": True}))
    assert unsupported.status_code == 400 and "uniqueItems" in unsupported.error
    assert error(lambda: olla.generate(MODEL, MANY_WORDS)).status_code == 400
    for call in (lambda: olla.generate(MODEL, "", keep_alive=0), lambda: olla.pull("llama3"), lambda: olla.delete(MODEL), lambda: olla.copy(MODEL, "other"), lambda: olla.create("x", from_=MODEL)):
        managed = error(call)
        assert managed.status_code == 501 and "ModelDeployment" in managed.error


# OpenAI's client


def test_openai_lists_and_retrieves(oai):
    assert MODEL in [model.id for model in oai.models.list()]
    assert oai.models.retrieve(MODEL).object == "model"


def test_openai_chats_with_usage(oai):
    answer = oai.chat.completions.create(model=MODEL, messages=QUESTION, max_completion_tokens=16, temperature=0)
    assert answer.choices[0].message.content and answer.choices[0].finish_reason in ("stop", "length")
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens
    assert 0 < answer.usage.completion_tokens <= 16


def test_openai_streams_what_it_answers_at_once(oai):
    asked = dict(model=MODEL, messages=QUESTION, max_tokens=16, temperature=0, seed=1)
    whole = oai.chat.completions.create(**asked)
    chunks = list(oai.chat.completions.create(**asked, stream=True, stream_options={"include_usage": True}))
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices) == whole.choices[0].message.content
    assert chunks[-1].choices == [] and chunks[-1].usage.completion_tokens == whole.usage.completion_tokens
    assert [chunk.choices[0].finish_reason for chunk in chunks[:-1] if chunk.choices[0].finish_reason] == [whole.choices[0].finish_reason]


def test_openai_streams_to_its_async_client(url):
    async def stream():
        client = openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="unused", timeout=300, max_retries=0)
        chunks = await client.chat.completions.create(model=MODEL, messages=QUESTION, max_tokens=16, stream=True)
        return "".join([chunk.choices[0].delta.content or "" async for chunk in chunks])

    assert asyncio.run(stream())


def test_openai_completes_with_several_answers_and_log_probabilities(oai):
    answer = oai.completions.create(model=MODEL, prompt="Once upon a time", max_tokens=4, n=2, logprobs=2, seed=3)
    assert [choice.index for choice in answer.choices] == [0, 1]
    assert all(value <= 0 for value in answer.choices[0].logprobs.token_logprobs)
    chat = oai.chat.completions.create(model=MODEL, messages=QUESTION, max_tokens=4, logprobs=True, top_logprobs=3)
    first = chat.choices[0].logprobs.content[0]
    assert first.logprob <= 0 and len(first.top_logprobs) == 3


def test_openai_holds_answers_to_a_schema(oai):
    asked = dict(model=MODEL, messages=SHIP, max_tokens=300, temperature=1.5, seed=1)
    parsed = oai.chat.completions.parse(**asked, response_format=Boat)
    assert isinstance(parsed.choices[0].message.parsed, Boat)
    schema = {"type": "json_schema", "json_schema": {"name": "ship", "strict": True, "schema": Ship.model_json_schema()}}
    chunks = oai.chat.completions.create(**asked, response_format=schema, stream=True)
    Ship.model_validate_json("".join(chunk.choices[0].delta.content or "" for chunk in chunks))
    any_object = oai.chat.completions.create(**{**asked, "temperature": 0}, response_format={"type": "json_object"}).choices[0]
    assert any_object.message.content.startswith("{")
    assert any_object.finish_reason == "length" or isinstance(json.loads(any_object.message.content), dict)


def test_openai_embeds_as_numbers_and_as_base64(oai):
    plain = oai.embeddings.create(model=MODEL, input=["a ship", "a harbour"], encoding_format="float")
    packed = oai.embeddings.create(model=MODEL, input=["a ship", "a harbour"])
    assert len(plain.data) == len(packed.data) == 2
    assert plain.data[0].embedding == pytest.approx(packed.data[0].embedding, abs=1e-4)
    assert plain.usage.prompt_tokens > 0


def test_openai_raises_its_own_errors(oai):
    with pytest.raises(openai.NotFoundError) as missing:
        oai.chat.completions.create(model="no-such-model", messages=QUESTION)
    assert missing.value.code == "model_not_found" and MODEL in missing.value.message
    with pytest.raises(openai.NotFoundError):
        oai.models.retrieve("no-such-model")
    with pytest.raises(openai.BadRequestError) as long:
        oai.chat.completions.create(model=MODEL, messages=[{"role": "user", "content": MANY_WORDS}])
    assert long.value.code == "context_length_exceeded"
    with pytest.raises(openai.BadRequestError) as unsupported:
        schema = {"name": "n", "schema": {"type": "array", "uniqueItems": True}}
        oai.chat.completions.create(model=MODEL, messages=QUESTION, response_format={"type": "json_schema", "json_schema": schema})
    assert unsupported.value.param == "response_format" and "uniqueItems" in unsupported.value.message
    with pytest.raises(openai.BadRequestError) as range_:
        oai.chat.completions.create(model=MODEL, messages=QUESTION, temperature=9)
    assert range_.value.param == "temperature"
