"""Agent frameworks, unmodified, on both APIs."""

import asyncio

import litellm
import pydantic
import pytest
from langchain_core.messages import HumanMessage
from langchain_core.tools import tool
from langchain_ollama import ChatOllama, OllamaEmbeddings
from langchain_openai import ChatOpenAI

from servers import ASSISTANT, MODEL, QUESTION

litellm.telemetry = False


class Weather(pydantic.BaseModel):
    """The weather of a city."""

    model_config = pydantic.ConfigDict(extra="forbid")

    city: str = pydantic.Field(max_length=12)
    rain: bool


@tool
def weather(city: str) -> str:
    """Tells the weather of a city."""
    return f"Rain in {city}."


def test_langchain_chats_streams_and_embeds_through_ollamas_api(url):
    model = ChatOllama(model=MODEL, base_url=url, temperature=0, num_predict=16, seed=1)
    whole = model.invoke("Say hello in one short sentence.")
    assert whole.content and whole.usage_metadata["output_tokens"] > 0
    assert whole.response_metadata["done_reason"] in ("stop", "length")
    assert "".join(part.content for part in model.stream("Say hello in one short sentence.")) == whole.content
    assert asyncio.run(model.ainvoke("Say hello.")).content
    vectors = OllamaEmbeddings(model=MODEL, base_url=url).embed_documents(["a ship", "a harbour"])
    assert len(vectors) == 2 and len(vectors[0]) == len(vectors[1]) > 0


def test_langchain_gets_structured_answers_through_ollamas_api(url):
    model = ChatOllama(model=MODEL, base_url=url, temperature=0.5, seed=1, num_predict=200)
    structured = model.with_structured_output(Weather, method="json_schema")
    assert isinstance(structured.invoke("What is the weather in Oslo?"), Weather)


def test_langchain_binds_tools_and_keeps_thoughts_apart_through_ollamas_api(door):
    model = ChatOllama(model=ASSISTANT, base_url=door, temperature=0, num_predict=24, reasoning=True)
    answer = model.bind_tools([weather]).invoke([HumanMessage("What is the weather in Oslo?")])
    assert "think>" not in answer.content
    assert answer.additional_kwargs["reasoning_content"]


def test_langchain_has_tools_called_through_openais_api(door):
    asked = dict(model=ASSISTANT, base_url=f"{door}/v1", api_key="unused", temperature=0.5, seed=2, max_tokens=200, reasoning_effort="none")
    model = ChatOpenAI(**asked)
    answer = model.bind_tools([weather], tool_choice="any").invoke("What is the weather in Oslo?")
    assert answer.tool_calls[0]["name"] == "weather" and "city" in answer.tool_calls[0]["args"]
    assert isinstance(model.with_structured_output(Weather, method="function_calling").invoke("The weather in Oslo?"), Weather)
    assert isinstance(model.with_structured_output(Weather, method="json_schema").invoke("The weather in Oslo?"), Weather)


@pytest.mark.parametrize("provider, path", [("ollama_chat", ""), ("openai", "/v1")])
def test_litellm_chats_and_streams(url, provider, path):
    asked = dict(model=f"{provider}/{MODEL}", api_base=url + path, api_key="unused", messages=QUESTION, max_tokens=16, temperature=0, seed=1)
    whole = litellm.completion(**asked)
    assert whole.choices[0].message.content and whole.usage.completion_tokens > 0
    streamed = "".join(chunk.choices[0].delta.content or "" for chunk in litellm.completion(**asked, stream=True))
    assert streamed == whole.choices[0].message.content


def test_litellm_raises_its_own_errors(url):
    with pytest.raises(litellm.NotFoundError):
        litellm.completion(model="openai/no-such-model", api_base=f"{url}/v1", api_key="unused", messages=QUESTION)
    with pytest.raises(litellm.ContextWindowExceededError):
        long = [{"role": "user", "content": "stow " * 20_000}]
        litellm.completion(model=f"openai/{MODEL}", api_base=f"{url}/v1", api_key="unused", messages=long)
